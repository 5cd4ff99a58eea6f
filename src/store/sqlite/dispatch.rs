//! What is due. The only node delivers it all.

use super::commands::UNTOUCHED;
use super::store::{SqliteStore, json};
use crate::domain::command::OpenState;
use crate::domain::time::Timestamp;
use crate::store::sql::dispatch::{
    self as statements, CommandKey, DueRow, Named, OpenRow, StrayRow, UntouchedRow, due_page, stray_page,
};
use crate::store::sql::{Key, Transports, sql_limit};
use crate::store::{Dispatch, Due, DueCursor, DuePage, Store, StoreResult, StrayPage, UndispatchedPage};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};

/// Whether there is a sender for the transport of an agent `g`.
const SERVED: &str = "EXISTS (SELECT 1 FROM nodes n, json_each(n.transports) t WHERE t.value = g.transport)";

#[async_trait]
impl Dispatch for SqliteStore {
    async fn command_undispatched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UndispatchedPage> {
        self.read("command_undispatched", move |conn| untouched(conn, action_no, after, limit)).await
    }

    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>> {
        let now = self.now();
        self.read("command_backlog", move |conn| backlog(conn, agent_no, horizon, now, limit)).await
    }

    async fn command_due(&self, after: DueCursor, horizon: Timestamp, limit: usize) -> StoreResult<DuePage> {
        let here = self.incarnation.clone();
        self.read("command_due", move |conn| due(conn, after, horizon, &here, limit)).await
    }

    async fn agent_with_due(&self, agent_nos: &[i64], horizon: Timestamp) -> StoreResult<Vec<i64>> {
        let agent_nos = agent_nos.to_vec();
        self.read("agent_with_due", move |conn| with_due(conn, &agent_nos, horizon)).await
    }

    async fn command_stray(&self, after: &(String, i64), limit: usize) -> StoreResult<StrayPage> {
        let after = after.clone();
        self.read("command_stray", move |conn| stray(conn, &after, limit)).await
    }

    async fn command_unserved(&self, limit: usize) -> StoreResult<Vec<(String, i64)>> {
        let now = self.now();
        self.read("command_unserved", move |conn| unserved(conn, now, limit)).await
    }

    async fn command_overdue(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<(i64, i64)>> {
        let here = self.incarnation.clone();
        self.read("command_overdue", move |conn| overdue(conn, &here, now, limit)).await
    }
}

fn untouched(conn: &mut SqliteConnection, action_no: i64, after: i64, limit: usize) -> QueryResult<UndispatchedPage> {
    let rows = sql_query(format!(
        "SELECT c.agent_no, g.transport, coalesce(c.due_at, a.valid_from) AS due_at, {UNTOUCHED} AS untouched \
         FROM commands c CROSS JOIN actions a ON a.no = c.action_no CROSS JOIN agents g ON g.no = c.agent_no \
         WHERE c.action_no = ?1 AND c.agent_no > ?2 ORDER BY c.agent_no LIMIT ?3"
    ))
    .bind::<BigInt, _>(action_no)
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<UntouchedRow>(conn)?;
    let through = rows.last().map(|row| row.agent_no);
    let mut transports = Transports::default();
    let commands = rows
        .into_iter()
        .filter(|row| row.untouched)
        .map(|row| (row.agent_no, transports.share(row.transport), Timestamp(row.due_at)))
        .collect();
    Ok(UndispatchedPage { commands, through })
}

fn backlog(
    conn: &mut SqliteConnection,
    agent_no: i64,
    horizon: Timestamp,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<Due>> {
    // By itself SQLite would go through all that is due in the fleet: without statistics a range of
    // one index looks better to it than a key of the other.
    let alive = "a.ended_at IS NULL AND NOT a.cancelled AND NOT a.paused AND NOT a.expired AND a.expires_at > ?3";
    let rows = sql_query(format!(
        "SELECT * FROM (SELECT p.action_no, p.agent_no, p.run, p.attempts, p.due_at, a.priority, TRUE AS open \
         FROM open_commands p INDEXED BY open_commands_agent CROSS JOIN actions a ON a.no = p.action_no \
         WHERE p.agent_no = ?1 AND p.state IN ({waiting}, {retry}, {queued}) AND p.due_at <= ?2 AND {alive} \
         UNION ALL \
         SELECT c.action_no, c.agent_no, 1, 0, coalesce(c.due_at, a.valid_from), a.priority, FALSE \
         FROM actions a INDEXED BY actions_dispatching CROSS JOIN commands c ON c.action_no = a.no AND c.agent_no = ?1 \
         WHERE a.dispatched_through < a.resolved_through AND a.dispatched_through < ?1 AND a.resolved_through >= ?1 AND {alive} \
         AND coalesce(c.due_at, a.valid_from) <= ?2 AND {UNTOUCHED}) \
         ORDER BY CASE WHEN due_at > ?3 THEN due_at ELSE 0 END, priority DESC, due_at, action_no LIMIT ?4",
        waiting = OpenState::Waiting as i16,
        retry = OpenState::Retry as i16,
        queued = OpenState::Queued as i16,
    ))
    .bind::<BigInt, _>(agent_no)
    .bind::<BigInt, _>(horizon.0)
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<DueRow>(conn)?;
    Ok(rows.iter().map(DueRow::due).collect())
}

fn due(
    conn: &mut SqliteConnection,
    (after, after_action, after_agent): DueCursor,
    horizon: Timestamp,
    here: &str,
    limit: usize,
) -> QueryResult<DuePage> {
    // The limit is for the rows that are examined: those of agents that aren't connected may be many.
    let rows = sql_query(format!(
        "SELECT p.*, a.priority, CASE WHEN a.ended_at IS NULL AND NOT a.cancelled AND NOT a.paused AND NOT a.expired \
         AND NOT g.disabled AND ((g.transport <> 'stream' AND {SERVED}) OR EXISTS \
         (SELECT 1 FROM agent_sessions s WHERE s.agent_no = g.no AND s.incarnation = ?3)) THEN g.transport END AS transport \
         FROM (SELECT action_no, agent_no, run, attempts, due_at FROM open_commands \
         INDEXED BY open_commands_due WHERE state = {} AND state <> 0 AND (due_at, action_no, agent_no) > (?1, ?5, ?6) AND due_at <= ?2 \
         ORDER BY due_at, action_no, agent_no LIMIT ?4) p \
         LEFT JOIN actions a ON a.no = p.action_no LEFT JOIN agents g ON g.no = p.agent_no \
         ORDER BY p.due_at, p.action_no, p.agent_no",
        OpenState::Retry as i16
    ))
    .bind::<BigInt, _>(after.0)
    .bind::<BigInt, _>(horizon.0)
    .bind::<Text, _>(here)
    .bind::<BigInt, _>(sql_limit(limit))
    .bind::<BigInt, _>(after_action)
    .bind::<BigInt, _>(after_agent)
    .load::<OpenRow>(conn)?;
    Ok(due_page(rows, limit))
}

fn with_due(conn: &mut SqliteConnection, agent_nos: &[i64], horizon: Timestamp) -> QueryResult<Vec<i64>> {
    let rows = sql_query(format!(
        "SELECT j.value AS key FROM json_each(?1) j WHERE EXISTS (SELECT 1 FROM open_commands p \
         CROSS JOIN actions a ON a.no = p.action_no WHERE p.agent_no = j.value AND p.due_at <= ?2 \
         AND p.state IN ({}, {}) AND a.ended_at IS NULL AND NOT a.cancelled AND NOT a.paused AND NOT a.expired)",
        OpenState::Waiting as i16,
        OpenState::Retry as i16
    ))
    .bind::<Text, _>(json(&agent_nos)?)
    .bind::<BigInt, _>(horizon.0)
    .load::<Key>(conn)?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

fn stray(conn: &mut SqliteConnection, after: &(String, i64), limit: usize) -> QueryResult<StrayPage> {
    let rows = sql_query(format!(
        "SELECT g.transport, g.no AS agent_no, p.action_no, p.run FROM (SELECT transport, no FROM agents \
         INDEXED BY agents_by_transport WHERE transport <> 'stream' AND (transport, no) > (?1, ?2) \
         ORDER BY transport, no LIMIT ?3) g \
         LEFT JOIN open_commands p INDEXED BY open_commands_agent ON p.agent_no = g.no AND p.state = {} \
         ORDER BY g.transport, g.no",
        OpenState::Waiting as i16
    ))
    .bind::<Text, _>(after.0.as_str())
    .bind::<BigInt, _>(after.1)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<StrayRow>(conn)?;
    Ok(stray_page(rows, limit))
}

fn unserved(conn: &mut SqliteConnection, now: Timestamp, limit: usize) -> QueryResult<Vec<(String, i64)>> {
    let rows = sql_query(format!(
        "SELECT transport AS name, count(*) AS number FROM (SELECT g.transport FROM agents g \
         CROSS JOIN open_commands p ON p.agent_no = g.no CROSS JOIN actions a ON a.no = p.action_no \
         WHERE g.transport <> 'stream' AND g.removed_at IS NULL AND NOT {SERVED} AND p.state IN ({}, {}) \
         AND p.due_at <= ?1 AND a.ended_at IS NULL AND NOT a.cancelled AND NOT a.paused AND NOT a.expired LIMIT ?2) \
         GROUP BY transport ORDER BY transport",
        OpenState::Waiting as i16,
        OpenState::Retry as i16
    ))
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<Named>(conn)?;
    Ok(rows.into_iter().map(|row| (row.name, row.number)).collect())
}

fn overdue(conn: &mut SqliteConnection, here: &str, now: Timestamp, limit: usize) -> QueryResult<Vec<(i64, i64)>> {
    let rows: Vec<CommandKey> = statements::overdue("INDEXED BY open_commands_due", here, now, limit).load(conn)?;
    Ok(rows.into_iter().map(|row| (row.action_no, row.agent_no)).collect())
}
