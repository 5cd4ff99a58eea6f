//! Agents: their rows, and statements that are the same for both databases.

use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::agent::{AgentContact, SigningSecret};
use crate::domain::time::Timestamp;
use crate::store::AgentView;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use serde_json::value::RawValue;

/// An agent as users see it: name, transport, address, labels, facts, version, enrolled_at,
/// last_seen, disabled, online.
pub(in crate::store) type AgentViewRow =
    (String, String, Option<String>, String, String, String, i64, Option<i64>, bool, bool);

/// The view of a row.
pub(in crate::store) fn agent_view(row: AgentViewRow) -> QueryResult<AgentView> {
    let (name, transport, address, labels, facts, version, enrolled_at, last_seen, disabled, online) = row;
    Ok(AgentView {
        name,
        status: if online { "online" } else { "offline" },
        transport,
        address,
        labels: RawValue::from_string(labels).map_err(corrupt)?,
        facts: RawValue::from_string(facts).map_err(corrupt)?,
        version,
        enrolled_at: Timestamp(enrolled_at),
        last_seen: last_seen.map(Timestamp),
        disabled,
    })
}

/// How to reach an agent.
#[derive(QueryableByName)]
pub(in crate::store) struct ContactRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Nullable<Text>)]
    address: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    secret: Option<String>,
}

impl ContactRow {
    pub(in crate::store) fn contact(self) -> AgentContact {
        let Self { no, name, address, secret } = self;
        AgentContact { no, name, address, secret: secret.map(SigningSecret::stored) }
    }
}

/// Marks an agent as removed and returns its key.
pub(in crate::store) fn remove(name: &str, now: Timestamp) -> Sql {
    sql("UPDATE agents SET removed_at = ? WHERE name = ? AND removed_at IS NULL RETURNING no AS key")
        .bind(now.0)
        .bind(name)
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
pub(in crate::store) fn list_leaving(here: &str, limit: usize) -> Sql {
    // Nobody owns an agent: the oldest node does it.
    sql("SELECT agent_no AS key FROM departures WHERE coalesce((SELECT min(incarnation) FROM nodes), ?) = ? \
         ORDER BY agent_no LIMIT ?")
    .bind(here.to_owned())
    .bind(here.to_owned())
    .bind(sql_limit(limit))
}

/// Lists an agent as leaving no more, if it was removed before a time.
pub(in crate::store) fn left(no: i64, before: Timestamp) -> Sql {
    sql("DELETE FROM departures WHERE agent_no = ? \
         AND EXISTS (SELECT 1 FROM agents a WHERE a.no = departures.agent_no AND a.removed_at < ?)")
    .bind(no)
    .bind(before.0)
}
