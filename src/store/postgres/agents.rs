//! Agents.

use super::audit;
use super::sql::sql;
use crate::domain::agent::{AgentRef, Enrollment, Role};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::rows::{AgentViewRow, Key, Transports, agent_view, corrupt, sql_limit};
use crate::store::schema::agents;
use crate::store::{AgentPatch, AgentView, Enrolled, NewAgent, filter};
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

fn json<T: serde::Serialize>(what: &T) -> QueryResult<String> {
    serde_json::to_string(what).map_err(|error| Error::SerializationError(Box::new(error)))
}

/// Puts agents in, passing over those whose names are taken; answers the keys of the new ones.
async fn insert_new(conn: &mut AsyncPgConnection, new: &[NewAgent], now: Timestamp) -> QueryResult<Vec<i64>> {
    let said = || new.iter().map(|agent| &agent.enrollment);
    // The unique index leaves removed agents out: their names can be used again.
    let rows: Vec<Key> =
        sql("INSERT INTO agents (name, transport, address, labels, facts, version, secret, enrolled_at) \
         SELECT n.name, n.transport, n.address, n.labels::json, n.facts::json, n.version, n.secret, ? \
         FROM UNNEST(?, ?, ?, ?, ?, ?, ?) AS n (name, transport, address, labels, facts, version, secret) \
         ON CONFLICT (name) WHERE removed_at IS NULL DO NOTHING RETURNING no AS key")
        .bind(now.0)
        .bind(said().map(|said| said.name.clone()).collect::<Vec<_>>())
        .bind(new.iter().map(|agent| agent.transport.clone()).collect::<Vec<_>>())
        .bind(new.iter().map(|agent| agent.address.clone()).collect::<Vec<_>>())
        .bind(said().map(|said| json(&said.labels)).collect::<QueryResult<Vec<_>>>()?)
        .bind(said().map(|said| json(&said.facts)).collect::<QueryResult<Vec<_>>>()?)
        .bind(said().map(|said| said.version.clone()).collect::<Vec<_>>())
        .bind(new.iter().map(|agent| agent.secret.clone()).collect::<Vec<_>>())
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

pub(super) async fn insert(conn: &mut AsyncPgConnection, new: &[NewAgent], now: Timestamp) -> QueryResult<()> {
    insert_new(conn, new, now).await.map(|_| ())
}

pub(super) async fn enroll(
    conn: &mut AsyncPgConnection,
    agent: &NewAgent,
    token_hash: Vec<u8>,
    nonce_hash: Option<Vec<u8>>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Enrolled> {
    let new = insert_new(conn, std::slice::from_ref(agent), now).await?.pop();
    let no = match (new, &nonce_hash) {
        (Some(no), _) => Some(no),
        (None, Some(nonce)) => give_up_unused(conn, &agent.enrollment, nonce, now).await?,
        (None, None) => None,
    };
    let Some(no) = no else { return Ok(Enrolled::Taken) };
    let name = agent.enrollment.name.clone();
    sql("INSERT INTO tokens (id, hash, role, name, agent_no, created_at, enroll_nonce) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(Uuid::now_v7().to_string())
        .bind(token_hash)
        .bind(Role::Agent.as_str())
        .bind(name.as_str())
        .bind(no)
        .bind(now.0)
        .bind(nonce_hash)
        .execute(conn)
        .await?;
    let did = if new.is_some() { "agent.create" } else { "agent.enroll_again" };
    let event = AuditEvent { did, subject: &name, detail: &agent.transport };
    audit::insert(conn, by, event, now).await?;
    let (transport, address) = (agent.transport.clone(), agent.address.clone());
    Ok(Enrolled::New(AgentRef { no, name, transport, address, disabled: false }))
}

/// Revokes the token of an agent that enrolled under this nonce and never used it; answers whose it was.
async fn give_up_unused(
    conn: &mut AsyncPgConnection,
    said: &Enrollment,
    nonce_hash: &[u8],
    now: Timestamp,
) -> QueryResult<Option<i64>> {
    // Those that repeat a call at the same time take turns: the next one has to see the token that this one writes.
    let known = sql("SELECT no AS key FROM agents WHERE name = ? AND removed_at IS NULL FOR UPDATE");
    let known = known.bind(said.name.as_str()).get_result::<Key>(conn).await.optional()?;
    let Some(Key { key: no }) = known else { return Ok(None) };
    let revoked =
        sql("UPDATE tokens SET revoked_at = ? WHERE agent_no = ? AND enroll_nonce = ? AND revoked_at IS NULL")
            .bind(now.0)
            .bind(no)
            .bind(nonce_hash.to_vec())
            .execute(conn)
            .await?;
    if revoked == 0 {
        return Ok(None);
    }
    refresh(conn, &Said::new(no, Some(&said.labels), &said.facts, &said.version)?, now).await?;
    Ok(Some(no))
}

/// What an agent says of itself, as it is stored.
pub(super) struct Said {
    agent_no: i64,
    labels: Option<String>,
    facts: String,
    version: String,
}

impl Said {
    pub(super) fn new(
        agent_no: i64,
        labels: Option<&BTreeMap<String, String>>,
        facts: &serde_json::Map<String, serde_json::Value>,
        version: &str,
    ) -> QueryResult<Self> {
        let labels = labels.map(json).transpose()?;
        Ok(Self { agent_no, labels, facts: json(facts)?, version: version.to_owned() })
    }
}

/// Whether this is what is stored of the agent already.
pub(super) async fn says_the_same(conn: &mut AsyncPgConnection, said: &Said) -> QueryResult<bool> {
    let same = sql("SELECT 1::bigint AS key FROM agents WHERE no = ? AND labels::text = coalesce(?, labels::text) \
         AND facts::text = ? AND version = ?")
    .bind(said.agent_no)
    .bind(said.labels.clone())
    .bind(said.facts.as_str())
    .bind(said.version.as_str());
    Ok(same.get_result::<Key>(conn).await.optional()?.is_some())
}

pub(super) async fn refresh(conn: &mut AsyncPgConnection, said: &Said, now: Timestamp) -> QueryResult<()> {
    sql(
        "UPDATE agents SET labels = coalesce(?::text::json, labels), facts = ?::text::json, version = ?, last_seen = ? \
         WHERE no = ?",
    )
    .bind(said.labels.clone())
    .bind(said.facts.as_str())
    .bind(said.version.as_str())
    .bind(now.0)
    .bind(said.agent_no)
    .execute(conn)
    .await
    .map(|_| ())
}

pub(super) async fn checked_in_after(conn: &mut AsyncPgConnection, no: i64, time: Timestamp) -> QueryResult<bool> {
    let at = sql("SELECT no AS key FROM agents WHERE no = ? AND checked_in_at > ?").bind(no).bind(time.0);
    Ok(at.get_result::<Key>(conn).await.optional()?.is_some())
}

pub(super) async fn check_in(conn: &mut AsyncPgConnection, no: i64, now: Timestamp) -> QueryResult<()> {
    sql("UPDATE agents SET checked_in_at = ?, last_seen = ? WHERE no = ?")
        .bind(now.0)
        .bind(now.0)
        .bind(no)
        .execute(conn)
        .await
        .map(|_| ())
}

pub(super) async fn get_many(conn: &mut AsyncPgConnection, nos: &[i64]) -> QueryResult<Vec<AgentRef>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        no: i64,
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = Text)]
        transport: String,
        #[diesel(sql_type = Nullable<Text>)]
        address: Option<String>,
        #[diesel(sql_type = Bool)]
        disabled: bool,
    }
    let rows: Vec<Row> = sql(
        "SELECT no, name, transport, address, disabled FROM agents WHERE no = ANY(?) AND removed_at IS NULL ORDER BY no",
    )
    .bind(nos.to_vec())
    .load(conn)
    .await?;
    let agent = |Row { no, name, transport, address, disabled }| AgentRef { no, name, transport, address, disabled };
    Ok(rows.into_iter().map(agent).collect())
}

/// How many agents match.
pub(super) async fn count(conn: &mut AsyncPgConnection, target: &Target, now: Timestamp) -> QueryResult<i64> {
    agents::table.filter(filter::members(target, now)).select(diesel::dsl::count(agents::no)).first(conn).await
}

pub(super) async fn matching(
    conn: &mut AsyncPgConnection,
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
        .load::<(i64, String)>(conn)
        .await?;
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
            diesel::dsl::sql::<Text>("agents.labels::text"),
            diesel::dsl::sql::<Text>("agents.facts::text"),
            agents::version,
            agents::enrolled_at,
            agents::last_seen,
            agents::disabled,
            filter::online($now).assume_not_null(),
        )
    };
}

pub(super) async fn list(
    conn: &mut AsyncPgConnection,
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
        .load(conn)
        .await?;
    rows.into_iter().map(agent_view).collect()
}

pub(super) async fn view(conn: &mut AsyncPgConnection, name: &str, now: Timestamp) -> QueryResult<Option<AgentView>> {
    let row: Option<AgentViewRow> = agents::table
        .filter(filter::listed(None, now))
        .filter(agents::name.eq(name))
        .select(seen_by_users!(now))
        .first(conn)
        .await
        .optional()?;
    row.map(agent_view).transpose()
}

pub(super) async fn update(
    conn: &mut AsyncPgConnection,
    name: &str,
    patch: &AgentPatch,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<(i64, AgentView)>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        no: i64,
        #[diesel(sql_type = Text)]
        labels: String,
    }
    let found = sql("SELECT no, labels::text AS labels FROM agents WHERE name = ? AND removed_at IS NULL FOR UPDATE")
        .bind(name)
        .get_result::<Row>(conn)
        .await
        .optional()?;
    let Some(Row { no, labels }) = found else { return Ok(None) };
    let labels = json(&patch.labels_after(serde_json::from_str(&labels).map_err(corrupt)?))?;
    sql("UPDATE agents SET labels = ?::text::json, address = CASE WHEN ? THEN ? ELSE address END, \
         disabled = coalesce(?, disabled) WHERE no = ?")
    .bind(labels)
    .bind(patch.address.is_some())
    .bind(patch.address.clone().flatten())
    .bind(patch.disabled)
    .bind(no)
    .execute(conn)
    .await?;
    audit::insert(conn, by, AuditEvent { did: "agent.change", subject: name, detail: &patch.told() }, now).await?;
    Ok(view(conn, name, now).await?.map(|view| (no, view)))
}

pub(super) async fn remove(
    conn: &mut AsyncPgConnection,
    name: &str,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<i64>> {
    let removed = sql("UPDATE agents SET removed_at = ? WHERE name = ? AND removed_at IS NULL RETURNING no AS key")
        .bind(now.0)
        .bind(name)
        .get_result::<Key>(conn)
        .await
        .optional()?;
    let Some(Key { key: no }) = removed else { return Ok(None) };
    audit::insert(conn, by, AuditEvent { did: "agent.remove", subject: name, detail: "" }, now).await?;
    let revoke = sql("UPDATE tokens SET revoked_at = ? WHERE agent_no = ? AND revoked_at IS NULL");
    revoke.bind(now.0).bind(no).execute(conn).await?;
    sql("DELETE FROM agent_sessions WHERE agent_no = ?").bind(no).execute(conn).await?;
    sql("INSERT INTO departures (agent_no) VALUES (?)").bind(no).execute(conn).await?;
    Ok(Some(no))
}

pub(super) async fn list_leaving(conn: &mut AsyncPgConnection, limit: usize) -> QueryResult<Vec<i64>> {
    let rows = sql("SELECT agent_no AS key FROM departures ORDER BY agent_no LIMIT ?").bind(sql_limit(limit));
    let rows: Vec<Key> = rows.load(conn).await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

pub(super) async fn left(conn: &mut AsyncPgConnection, no: i64, before: Timestamp) -> QueryResult<()> {
    sql("DELETE FROM departures d WHERE d.agent_no = ? \
         AND EXISTS (SELECT 1 FROM agents a WHERE a.no = d.agent_no AND a.removed_at < ?)")
    .bind(no)
    .bind(before.0)
    .execute(conn)
    .await
    .map(|_| ())
}
