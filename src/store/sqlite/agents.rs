//! Agents, and this process.

use super::super::rows::{AgentViewRow, Key, Transports, agent_view, corrupt, sql_limit};
use super::super::schema::{agents, nodes, tokens};
use super::super::{AgentPatch, AgentView, Enrolled, NewAgent, filter};
use super::{audit, json};
use crate::domain::agent::{AgentRef, Enrollment, Role};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use std::sync::Arc;
use uuid::Uuid;

pub(super) fn node_start(
    conn: &mut SqliteConnection,
    name: &str,
    incarnation: &str,
    transports: &[String],
    now: Timestamp,
) -> QueryResult<()> {
    // The database file is locked by one process: whatever else is in here is dead.
    diesel::delete(nodes::table).execute(conn)?;
    sql_query("DELETE FROM agent_sessions").execute(conn)?;
    diesel::insert_into(nodes::table)
        .values((
            nodes::incarnation.eq(incarnation),
            nodes::name.eq(name),
            nodes::started_at.eq(now.0),
            nodes::heartbeat.eq(now.0),
            nodes::transports.eq(json(&transports)?),
        ))
        .execute(conn)?;
    sql_query("UPDATE actions SET owner = ? WHERE ended_at IS NULL").bind::<Text, _>(incarnation).execute(conn)?;
    Ok(())
}

pub(super) fn node_stop(conn: &mut SqliteConnection) -> QueryResult<()> {
    sql_query("DELETE FROM agent_sessions").execute(conn)?;
    diesel::delete(nodes::table).execute(conn)?;
    Ok(())
}

fn insert_one(conn: &mut SqliteConnection, agent: &NewAgent, now: Timestamp) -> QueryResult<Option<i64>> {
    let said = &agent.enrollment;
    // The unique index leaves removed agents out: their names can be used again.
    sql_query(
        "INSERT INTO agents (name, transport, address, labels, facts, version, enrolled_at, secret) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) WHERE removed_at IS NULL DO NOTHING RETURNING no AS key",
    )
    .bind::<Text, _>(&said.name)
    .bind::<Text, _>(&agent.transport)
    .bind::<diesel::sql_types::Nullable<Text>, _>(&agent.address)
    .bind::<Text, _>(json(&said.labels)?)
    .bind::<Text, _>(json(&said.facts)?)
    .bind::<Text, _>(&said.version)
    .bind::<BigInt, _>(now.0)
    .bind::<diesel::sql_types::Nullable<Text>, _>(&agent.secret)
    .get_result::<Key>(conn)
    .optional()
    .map(|row| row.map(|row| row.key))
}

pub(super) fn enroll(
    conn: &mut SqliteConnection,
    agent: &NewAgent,
    token_hash: Vec<u8>,
    nonce_hash: Option<Vec<u8>>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Enrolled> {
    let new = insert_one(conn, agent, now)?;
    let no = match (new, &nonce_hash) {
        (Some(no), _) => Some(no),
        (None, Some(nonce)) => give_up_unused(conn, &agent.enrollment, nonce, now)?,
        (None, None) => None,
    };
    let Some(no) = no else { return Ok(Enrolled::Taken) };
    diesel::insert_into(tokens::table)
        .values((
            tokens::id.eq(Uuid::now_v7().to_string()),
            tokens::hash.eq(token_hash),
            tokens::role.eq(Role::Agent.as_str()),
            tokens::name.eq(&agent.enrollment.name),
            tokens::agent_no.eq(no),
            tokens::created_at.eq(now.0),
            tokens::enroll_nonce.eq(nonce_hash),
        ))
        .execute(conn)?;
    let did = if new.is_some() { "agent.create" } else { "agent.enroll_again" };
    let event = AuditEvent { did, subject: &agent.enrollment.name, detail: &agent.transport };
    audit::insert(conn, by, event, now)?;
    Ok(Enrolled::New(AgentRef {
        no,
        name: agent.enrollment.name.clone(),
        transport: agent.transport.clone(),
        address: agent.address.clone(),
        disabled: false,
    }))
}

/// Revokes the token of an agent that enrolled under this nonce and never used it; answers whose it was.
fn give_up_unused(
    conn: &mut SqliteConnection,
    said: &Enrollment,
    nonce_hash: &[u8],
    now: Timestamp,
) -> QueryResult<Option<i64>> {
    let known = agents::table.filter(agents::name.eq(&said.name)).filter(agents::removed_at.is_null());
    let Some(no) = known.select(agents::no).first::<i64>(conn).optional()? else { return Ok(None) };
    let unused = tokens::table.filter(tokens::agent_no.eq(no)).filter(tokens::enroll_nonce.eq(nonce_hash));
    let revoked =
        diesel::update(unused.filter(tokens::revoked_at.is_null())).set(tokens::revoked_at.eq(now.0)).execute(conn)?;
    if revoked == 0 {
        return Ok(None);
    }
    refresh(conn, no, Some(json(&said.labels)?), json(&said.facts)?, said.version.clone(), now)?;
    Ok(Some(no))
}

pub(super) fn insert(conn: &mut SqliteConnection, agents: &[NewAgent], now: Timestamp) -> QueryResult<()> {
    for agent in agents {
        insert_one(conn, agent, now)?;
    }
    Ok(())
}

/// Whether this is what is stored of the agent already.
pub(super) fn says_the_same(
    conn: &mut SqliteConnection,
    agent_no: i64,
    labels: Option<&str>,
    facts: &str,
    version: &str,
) -> QueryResult<bool> {
    let stored = agents::table
        .find(agent_no)
        .select((agents::labels, agents::facts, agents::version))
        .first::<(String, String, String)>(conn)
        .optional()?;
    Ok(stored.is_some_and(|(old_labels, old_facts, old_version)| {
        labels.is_none_or(|labels| labels == old_labels) && facts == old_facts && version == old_version
    }))
}

pub(super) fn refresh(
    conn: &mut SqliteConnection,
    agent_no: i64,
    labels: Option<String>,
    facts: String,
    version: String,
    now: Timestamp,
) -> QueryResult<()> {
    if let Some(labels) = labels {
        diesel::update(agents::table.find(agent_no)).set(agents::labels.eq(labels)).execute(conn)?;
    }
    diesel::update(agents::table.find(agent_no))
        .set((agents::facts.eq(facts), agents::version.eq(version), agents::last_seen.eq(now.0)))
        .execute(conn)?;
    Ok(())
}

pub(super) fn checked_in_after(conn: &mut SqliteConnection, no: i64, time: Timestamp) -> QueryResult<bool> {
    let at = agents::table.find(no).select(agents::checked_in_at).first::<Option<i64>>(conn).optional()?;
    Ok(at.flatten().is_some_and(|at| at > time.0))
}

pub(super) fn check_in(conn: &mut SqliteConnection, no: i64, now: Timestamp) -> QueryResult<()> {
    diesel::update(agents::table.find(no))
        .set((agents::checked_in_at.eq(now.0), agents::last_seen.eq(now.0)))
        .execute(conn)
        .map(|_| ())
}

pub(super) fn get_many(conn: &mut SqliteConnection, nos: &[i64]) -> QueryResult<Vec<AgentRef>> {
    // One bound list: SQLite allows only so many parameters.
    let among = diesel::dsl::sql::<diesel::sql_types::Bool>("agents.no IN (SELECT value FROM json_each(")
        .bind::<Text, _>(json(nos)?)
        .sql("))");
    let rows = agents::table
        .filter(among)
        .filter(agents::removed_at.is_null())
        .order(agents::no)
        .select((agents::no, agents::name, agents::transport, agents::address, agents::disabled))
        .load::<(i64, String, String, Option<String>, bool)>(conn)?;
    let agent = |(no, name, transport, address, disabled)| AgentRef { no, name, transport, address, disabled };
    Ok(rows.into_iter().map(agent).collect())
}

/// How many agents match.
pub(super) fn count(conn: &mut SqliteConnection, target: &Target, now: Timestamp) -> QueryResult<i64> {
    agents::table.filter(filter::members(target, now)).select(diesel::dsl::count(agents::no)).first(conn)
}

pub(super) fn matching(
    conn: &mut SqliteConnection,
    target: &Target,
    now: Timestamp,
    after: i64,
    limit: usize,
) -> QueryResult<Vec<(i64, Arc<str>)>> {
    let rows = agents::table
        .filter(filter::members(target, now))
        .filter(agents::no.gt(after))
        .order(agents::no)
        .limit(sql_limit(limit))
        .select((agents::no, agents::transport))
        .load::<(i64, String)>(conn)?;
    let mut transports = Transports::default();
    Ok(rows.into_iter().map(|(no, transport)| (no, transports.share(transport))).collect())
}

/// The columns of an [`AgentViewRow`].
macro_rules! seen_by_users {
    ($now:expr) => {
        (
            agents::name,
            agents::transport,
            agents::address,
            diesel::dsl::sql::<Text>("agents.labels"),
            diesel::dsl::sql::<Text>("agents.facts"),
            agents::version,
            agents::enrolled_at,
            agents::last_seen,
            agents::disabled,
            filter::online($now).assume_not_null(),
        )
    };
}

pub(super) fn list(
    conn: &mut SqliteConnection,
    target: Option<&Target>,
    after: &str,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<AgentView>> {
    let rows: Vec<AgentViewRow> = agents::table
        .filter(filter::listed(target, now))
        // Every name is greater than no name.
        .filter(agents::name.gt(after))
        .order(agents::name)
        .limit(sql_limit(limit))
        .select(seen_by_users!(now))
        .load(conn)?;
    rows.into_iter().map(agent_view).collect()
}

pub(super) fn view(conn: &mut SqliteConnection, name: &str, now: Timestamp) -> QueryResult<Option<AgentView>> {
    let row: Option<AgentViewRow> = agents::table
        .filter(filter::listed(None, now))
        .filter(agents::name.eq(name))
        .select(seen_by_users!(now))
        .first(conn)
        .optional()?;
    row.map(agent_view).transpose()
}

pub(super) fn update(
    conn: &mut SqliteConnection,
    name: &str,
    patch: &AgentPatch,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<(i64, AgentView)>> {
    let found = agents::table
        .filter(filter::listed(None, now))
        .filter(agents::name.eq(name))
        .select((agents::no, agents::labels))
        .first::<(i64, String)>(conn)
        .optional()?;
    let Some((no, labels)) = found else { return Ok(None) };
    let labels = json(&patch.labels_after(serde_json::from_str(&labels).map_err(corrupt)?))?;
    diesel::update(agents::table.find(no)).set(agents::labels.eq(labels)).execute(conn)?;
    if let Some(address) = &patch.address {
        diesel::update(agents::table.find(no)).set(agents::address.eq(address)).execute(conn)?;
    }
    if let Some(disabled) = patch.disabled {
        diesel::update(agents::table.find(no)).set(agents::disabled.eq(disabled)).execute(conn)?;
    }
    audit::insert(conn, by, AuditEvent { did: "agent.change", subject: name, detail: &patch.told() }, now)?;
    Ok(view(conn, name, now)?.map(|view| (no, view)))
}

pub(super) fn remove(conn: &mut SqliteConnection, name: &str, by: &Author, now: Timestamp) -> QueryResult<Option<i64>> {
    let removed = diesel::update(agents::table.filter(agents::name.eq(name)).filter(agents::removed_at.is_null()))
        .set(agents::removed_at.eq(now.0))
        .returning(agents::no)
        .get_result::<i64>(conn)
        .optional()?;
    let Some(no) = removed else { return Ok(None) };
    audit::insert(conn, by, AuditEvent { did: "agent.remove", subject: name, detail: "" }, now)?;
    diesel::update(tokens::table.filter(tokens::agent_no.eq(no)).filter(tokens::revoked_at.is_null()))
        .set(tokens::revoked_at.eq(now.0))
        .execute(conn)?;
    for statement in ["DELETE FROM agent_sessions WHERE agent_no = ?", "INSERT INTO departures (agent_no) VALUES (?)"] {
        sql_query(statement).bind::<BigInt, _>(no).execute(conn)?;
    }
    Ok(Some(no))
}

pub(super) fn list_leaving(conn: &mut SqliteConnection, limit: usize) -> QueryResult<Vec<i64>> {
    let rows = sql_query("SELECT agent_no AS key FROM departures ORDER BY agent_no LIMIT ?");
    let rows = rows.bind::<BigInt, _>(sql_limit(limit)).load::<Key>(conn)?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

pub(super) fn left(conn: &mut SqliteConnection, no: i64, before: Timestamp) -> QueryResult<()> {
    sql_query(
        "DELETE FROM departures WHERE agent_no = ?1 \
         AND EXISTS (SELECT 1 FROM agents a WHERE a.no = ?1 AND a.removed_at < ?2)",
    )
    .bind::<BigInt, _>(no)
    .bind::<BigInt, _>(before.0)
    .execute(conn)
    .map(|_| ())
}
