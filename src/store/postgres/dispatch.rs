//! What is due, and which node delivers it.

use super::commands::UNTOUCHED;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::command::OpenState;
use crate::domain::time::Timestamp;
use crate::store::sql::dispatch::{
    self as statements, CommandKey, DueRow, Named, OpenRow, StrayRow, UntouchedRow, due_page, stray_page,
};
use crate::store::sql::{Key, Transports, sql, sql_limit};
use crate::store::{Dispatch, Due, DueCursor, DuePage, Store, StoreResult, StrayPage, UndispatchedPage};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;

/// Joins the action of an open row `p`, unless it is paused, cancelled, expired or ended.
const GOING_OF_P: &str = "CROSS JOIN LATERAL (SELECT x.priority, x.owner FROM actions x WHERE x.no = p.action_no \
     AND x.ended_at IS NULL AND NOT x.cancelled AND NOT x.paused AND NOT x.expired OFFSET 0) a";

/// The node that sends commands of an action `a` to an agent `g` whose transport isn't a stream:
/// the action's owner if it has a sender for the transport, else the first node that has one.
const WHO_SENDS: &str = "(SELECT n.incarnation FROM nodes n WHERE n.transports @> to_jsonb(g.transport) \
     ORDER BY n.incarnation IS DISTINCT FROM a.owner, n.incarnation LIMIT 1)";

#[async_trait]
impl Dispatch for PostgresStore {
    async fn command_undispatched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UndispatchedPage> {
        self.read(Caller::Pipeline, "command_undispatched", body!([] conn => untouched(conn, action_no, after, limit)))
            .await
    }

    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>> {
        let now = self.now();
        self.read(Caller::Sessions, "command_backlog", body!([] conn => backlog(conn, agent_no, horizon, now, limit)))
            .await
    }

    async fn command_due(&self, after: DueCursor, horizon: Timestamp, limit: usize) -> StoreResult<DuePage> {
        let here = self.inner.incarnation.clone();
        self.read(Caller::Pipeline, "command_due", body!([here] conn => due(conn, after, horizon, &here, limit))).await
    }

    async fn agent_with_due(&self, agent_nos: &[i64], horizon: Timestamp) -> StoreResult<Vec<i64>> {
        let agent_nos = Arc::new(agent_nos.to_vec());
        self.read(Caller::Sessions, "agent_with_due", body!([agent_nos] conn => with_due(conn, &agent_nos, horizon)))
            .await
    }

    async fn command_stray(&self, after: &(String, i64), limit: usize) -> StoreResult<StrayPage> {
        let after = after.clone();
        self.read(Caller::Pipeline, "command_stray", body!([after] conn => stray(conn, &after, limit))).await
    }

    async fn command_unserved(&self, limit: usize) -> StoreResult<Vec<(String, i64)>> {
        let now = self.now();
        self.read(Caller::Pipeline, "command_unserved", body!([] conn => unserved(conn, now, limit))).await
    }

    async fn command_overdue(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<(i64, i64)>> {
        let here = self.inner.incarnation.clone();
        self.read(Caller::Pipeline, "command_overdue", body!([here] conn => overdue(conn, &here, now, limit))).await
    }
}

async fn untouched(
    conn: &mut AsyncPgConnection,
    action_no: i64,
    after: i64,
    limit: usize,
) -> QueryResult<UndispatchedPage> {
    let rows: Vec<UntouchedRow> = sql(format!(
        "SELECT c.agent_no, g.transport, coalesce(c.due_at, a.valid_from) AS due_at, {UNTOUCHED} AS untouched \
         FROM (SELECT * FROM commands WHERE action_no = ? AND agent_no > ? ORDER BY agent_no LIMIT ?) c \
         CROSS JOIN LATERAL (SELECT valid_from FROM actions x WHERE x.no = c.action_no OFFSET 0) a \
         CROSS JOIN LATERAL (SELECT transport FROM agents x WHERE x.no = c.agent_no OFFSET 0) g ORDER BY c.agent_no"
    ))
    .bind(action_no)
    .bind(after)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    let through = rows.last().map(|row| row.agent_no);
    let mut transports = Transports::default();
    let commands = rows
        .into_iter()
        .filter(|row| row.untouched)
        .map(|row| (row.agent_no, transports.share(row.transport), Timestamp(row.due_at)))
        .collect();
    Ok(UndispatchedPage { commands, through })
}

async fn backlog(
    conn: &mut AsyncPgConnection,
    agent_no: i64,
    horizon: Timestamp,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<Due>> {
    // Bound once, and named; `now` is also what the order needs.
    let alive = "x.ended_at IS NULL AND NOT x.cancelled AND NOT x.paused AND NOT x.expired AND x.expires_at > v.now";
    let rows: Vec<DueRow> = sql(format!(
        "WITH v AS MATERIALIZED (SELECT ?::bigint AS agent, ?::bigint AS horizon, ?::bigint AS now) \
         SELECT d.* FROM (SELECT p.action_no, p.agent_no, p.run, p.attempts, p.due_at, a.priority, TRUE AS open \
         FROM v CROSS JOIN LATERAL (SELECT * FROM open_commands x WHERE x.agent_no = v.agent \
         AND x.state IN ({waiting}, {retry}, {queued}) AND x.due_at <= v.horizon OFFSET 0) p \
         CROSS JOIN LATERAL (SELECT priority FROM actions x WHERE x.no = p.action_no AND {alive} OFFSET 0) a \
         UNION ALL \
         SELECT c.action_no, c.agent_no, 1, 0, coalesce(c.due_at, a.valid_from), a.priority, FALSE \
         FROM v CROSS JOIN LATERAL (SELECT no, valid_from, priority FROM actions x \
         WHERE x.dispatched_through < x.resolved_through AND x.dispatched_through < v.agent AND x.resolved_through >= v.agent AND {alive} OFFSET 0) a \
         CROSS JOIN LATERAL (SELECT * FROM commands x WHERE x.action_no = a.no AND x.agent_no = v.agent OFFSET 0) c \
         WHERE coalesce(c.due_at, a.valid_from) <= v.horizon AND {UNTOUCHED}) d CROSS JOIN v \
         ORDER BY CASE WHEN d.due_at > v.now THEN d.due_at ELSE 0 END, d.priority DESC, d.due_at, d.action_no LIMIT ?",
        waiting = OpenState::Waiting as i16,
        retry = OpenState::Retry as i16,
        queued = OpenState::Queued as i16,
    ))
    .bind(agent_no)
    .bind(horizon.0)
    .bind(now.0)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.iter().map(DueRow::due).collect())
}

async fn due(
    conn: &mut AsyncPgConnection,
    (after, after_action, after_agent): DueCursor,
    horizon: Timestamp,
    here: &str,
    limit: usize,
) -> QueryResult<DuePage> {
    // The limit is for the rows that are examined: those of others may be many.
    let rows: Vec<OpenRow> = sql(format!(
        "WITH p AS MATERIALIZED (SELECT action_no, agent_no, run, attempts, due_at FROM open_commands \
         WHERE state = {} AND state <> 0 AND (due_at, action_no, agent_no) > (?, ?, ?) AND due_at <= ? \
         ORDER BY due_at, action_no, agent_no LIMIT ?) \
         SELECT p.*, m.priority, m.transport FROM p LEFT JOIN LATERAL (SELECT a.priority, g.transport FROM (SELECT 1) o \
         {GOING_OF_P} CROSS JOIN LATERAL (SELECT no, transport FROM agents x WHERE x.no = p.agent_no AND NOT x.disabled \
         OFFSET 0) g \
         WHERE (g.transport <> 'stream' AND {WHO_SENDS} = ?) OR EXISTS \
         (SELECT 1 FROM (SELECT incarnation FROM agent_sessions x WHERE x.agent_no = g.no OFFSET 0) s \
         WHERE s.incarnation = ?) OFFSET 0) m ON TRUE ORDER BY p.due_at, p.action_no, p.agent_no",
        OpenState::Retry as i16
    ))
    .bind(after.0)
    .bind(after_action)
    .bind(after_agent)
    .bind(horizon.0)
    .bind(sql_limit(limit))
    .bind(here)
    .bind(here)
    .load(conn)
    .await?;
    Ok(due_page(rows, limit))
}

async fn with_due(conn: &mut AsyncPgConnection, agent_nos: &[i64], horizon: Timestamp) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = sql(format!(
        "SELECT j.no AS key FROM UNNEST(?) j (no) WHERE EXISTS (SELECT 1 FROM (SELECT action_no FROM open_commands x \
         WHERE x.agent_no = j.no AND x.due_at <= ? AND x.state IN ({}, {}) OFFSET 0) p {GOING_OF_P})",
        OpenState::Waiting as i16,
        OpenState::Retry as i16
    ))
    .bind(agent_nos.to_vec())
    .bind(horizon.0)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

async fn stray(conn: &mut AsyncPgConnection, after: &(String, i64), limit: usize) -> QueryResult<StrayPage> {
    let rows: Vec<StrayRow> = sql(format!(
        "WITH g AS MATERIALIZED (SELECT transport, no FROM agents WHERE transport <> 'stream' \
         AND (transport, no) > (?, ?) ORDER BY transport, no LIMIT ?) \
         SELECT g.transport, g.no AS agent_no, p.action_no, p.run FROM g LEFT JOIN LATERAL \
         (SELECT action_no, run FROM open_commands x WHERE x.agent_no = g.no AND x.state = {} LIMIT 1000) p ON TRUE \
         ORDER BY g.transport, g.no",
        OpenState::Waiting as i16
    ))
    .bind(after.0.clone())
    .bind(after.1)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(stray_page(rows, limit))
}

async fn unserved(conn: &mut AsyncPgConnection, now: Timestamp, limit: usize) -> QueryResult<Vec<(String, i64)>> {
    let rows: Vec<Named> = sql(format!(
        "SELECT transport AS name, count(*) AS number FROM (SELECT g.transport FROM agents g \
         CROSS JOIN LATERAL (SELECT action_no FROM open_commands x WHERE x.agent_no = g.no AND x.due_at <= ? \
         AND x.state IN ({}, {}) OFFSET 0) p {GOING_OF_P} WHERE g.transport <> 'stream' AND g.removed_at IS NULL \
         AND NOT EXISTS (SELECT 1 FROM nodes n WHERE n.transports @> to_jsonb(g.transport)) LIMIT ?) s \
         GROUP BY transport ORDER BY transport",
        OpenState::Waiting as i16,
        OpenState::Retry as i16
    ))
    .bind(now.0)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.name, row.number)).collect())
}

async fn overdue(
    conn: &mut AsyncPgConnection,
    here: &str,
    now: Timestamp,
    limit: usize,
) -> QueryResult<Vec<(i64, i64)>> {
    let rows: Vec<CommandKey> = statements::overdue("", here, now, limit).load(conn).await?;
    Ok(rows.into_iter().map(|row| (row.action_no, row.agent_no)).collect())
}
