//! Agents: their rows, and statements that are the same for both databases.

use super::statement::{Sql, sql};
use super::values::{Transports, corrupt, sql_limit};
use crate::domain::agent::{AgentContact, SigningSecret};
use crate::domain::time::Timestamp;
use crate::store::agents::{Known, Labels};
use crate::store::{AgentView, Found, Matching};
use diesel::prelude::*;
use diesel::sql_types::Text;
use serde_json::value::RawValue;

/// An agent as users see it: name, transport, address, labels, set_labels, facts, version, enrolled_at,
/// last_seen, disabled, duplicate_at, online.
pub(in crate::store) type AgentViewRow =
    (String, String, Option<String>, String, String, String, String, i64, Option<i64>, bool, Option<i64>, bool);

/// The view of a row.
pub(in crate::store) fn agent_view(row: AgentViewRow) -> QueryResult<AgentView> {
    let (
        name,
        transport,
        address,
        labels,
        set_labels,
        facts,
        version,
        enrolled_at,
        last_seen,
        disabled,
        duplicate_at,
        online,
    ) = row;
    Ok(AgentView {
        name,
        status: if online { "online" } else { "offline" },
        transport,
        address,
        labels: RawValue::from_string(labels).map_err(corrupt)?,
        set_labels: (set_labels != "{}").then(|| RawValue::from_string(set_labels)).transpose().map_err(corrupt)?,
        facts: RawValue::from_string(facts).map_err(corrupt)?,
        version,
        enrolled_at: Timestamp(enrolled_at),
        last_seen: last_seen.map(Timestamp),
        disabled,
        duplicate_at: duplicate_at.map(Timestamp),
    })
}

/// What a search found: agents as (key, transport). A full page ends with its last agent.
pub(in crate::store) fn found(rows: Vec<(i64, String)>, end: Option<i64>, limit: usize) -> Found<Matching> {
    let through = if rows.len() >= limit { rows.last().map(|(no, _)| *no) } else { end };
    let mut transports = Transports::default();
    let agents = rows.into_iter().map(|(no, transport)| (no, transports.share(transport))).collect();
    Found { agents, through }
}

/// A page of agents as users see them, whatever order their rows have.
pub(in crate::store) fn listed(
    mut rows: Vec<AgentViewRow>,
    end: Option<String>,
    limit: usize,
) -> QueryResult<Found<Vec<AgentView>, String>> {
    rows.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    rows.truncate(limit);
    let agents = rows.into_iter().map(agent_view).collect::<QueryResult<Vec<_>>>()?;
    let through = if agents.len() >= limit { agents.last().map(|agent| agent.name.clone()) } else { end };
    Ok(Found { agents, through })
}

/// Of what an agent has said, what is stored.
#[derive(QueryableByName)]
pub(in crate::store) struct KnownRow {
    #[diesel(sql_type = Text)]
    reported_labels: String,
    #[diesel(sql_type = Text)]
    set_labels: String,
    #[diesel(sql_type = Text)]
    facts: String,
    #[diesel(sql_type = Text)]
    version: String,
}

impl KnownRow {
    pub(in crate::store) fn known(self) -> QueryResult<Known> {
        let Self { reported_labels, set_labels, facts, version } = self;
        Ok(Known { labels: read_labels(&reported_labels, &set_labels)?, facts, version })
    }
}

/// Selects what is stored of what an agent has said.
pub(in crate::store) fn known(agent_no: i64, lock: &'static str) -> Sql {
    sql("SELECT CAST(reported_labels AS TEXT) AS reported_labels, CAST(set_labels AS TEXT) AS set_labels, CAST(facts AS TEXT) AS facts, \
         version FROM agents WHERE no = ?")
    .bind(agent_no)
    .and(lock)
}

/// An agent's labels, from its row.
pub(in crate::store) fn read_labels(reported: &str, set: &str) -> QueryResult<Labels> {
    let reported = serde_json::from_str(reported).map_err(corrupt)?;
    Ok(Labels { reported, set: serde_json::from_str(set).map_err(corrupt)? })
}

/// Labels as a row has them: all, those that the agent reports, and those of operators.
pub(in crate::store) fn written_labels(labels: &Labels) -> QueryResult<(String, String, String)> {
    Ok((written(&labels.all())?, written(&labels.reported)?, written(&labels.set)?))
}

fn written<T: serde::Serialize>(value: &T) -> QueryResult<String> {
    serde_json::to_string(value).map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
}

/// How to reach an agent: key, name, address, secret.
pub(in crate::store) type ContactRow = (i64, String, Option<String>, Option<String>);

/// The first and the last of these keys, if most keys between them are among them: then all rows between them are read,
/// which costs less than looking each up.
pub(in crate::store) fn dense(nos: &[i64]) -> Option<(i64, i64)> {
    let (first, last) = (nos.iter().min()?, nos.iter().max()?);
    (last.abs_diff(*first) < 2 * nos.len() as u64).then_some((*first, *last))
}

/// The contacts of rows in key order whose keys are among these.
pub(in crate::store) fn contacts_of(rows: Vec<ContactRow>, nos: &[i64]) -> Vec<AgentContact> {
    let mut nos = nos.to_vec();
    if !nos.is_sorted() {
        nos.sort_unstable();
    }
    let wanted = rows.into_iter().filter(|(no, ..)| nos.binary_search(no).is_ok());
    let contact = |(no, name, address, secret): ContactRow| AgentContact {
        no,
        name,
        address,
        secret: secret.map(SigningSecret::stored),
    };
    wanted.map(contact).collect()
}

/// Marks an agent as removed and returns its key.
pub(in crate::store) fn remove(name: &str, now: Timestamp) -> Sql {
    sql("UPDATE agents SET removed_at = ? WHERE name = ? AND removed_at IS NULL RETURNING no AS key")
        .bind(now.0)
        .bind(name)
}

/// Deletes agents that were removed before a time and before the oldest action was made, a day at least: clocks may have
/// been set. Their tokens go first.
pub(in crate::store) fn purge(before: Timestamp, limit: usize) -> Sql {
    sql("DELETE FROM agents WHERE no IN (SELECT a.no FROM agents a WHERE a.removed_at < ? \
         AND a.removed_at < coalesce((SELECT x.created_at - 86400000 FROM actions x ORDER BY x.no LIMIT 1), a.removed_at + 1) \
         AND NOT EXISTS (SELECT 1 FROM departures d WHERE d.agent_no = a.no) \
         AND NOT EXISTS (SELECT 1 FROM tokens t WHERE t.agent_no = a.no) ORDER BY a.removed_at LIMIT ?)")
    .bind(before.0)
    .bind(sql_limit(limit))
}

/// Ends the session of an agent.
pub(in crate::store) fn end_session(no: i64) -> Sql {
    sql("DELETE FROM agent_sessions WHERE agent_no = ?").bind(no)
}

/// Lists a removed agent as leaving.
pub(in crate::store) fn leaves(no: i64) -> Sql {
    sql("INSERT INTO departures (agent_no) VALUES (?)").bind(no)
}

/// Selects the keys of leaving agents.
pub(in crate::store) fn list_leaving(here: &str, after: i64, limit: usize) -> Sql {
    // Nobody owns an agent: the oldest node does it.
    sql("SELECT agent_no AS key FROM departures WHERE coalesce((SELECT min(incarnation) FROM nodes), ?) = ? \
         AND agent_no > ? ORDER BY agent_no LIMIT ?")
    .bind(here.to_owned())
    .bind(here.to_owned())
    .bind(after)
    .bind(sql_limit(limit))
}

/// Lists an agent as leaving no more, if it was removed before a time.
pub(in crate::store) fn left(no: i64, before: Timestamp) -> Sql {
    sql("DELETE FROM departures WHERE agent_no = ? \
         AND EXISTS (SELECT 1 FROM agents a WHERE a.no = departures.agent_no AND a.removed_at < ?)")
    .bind(no)
    .bind(before.0)
}
