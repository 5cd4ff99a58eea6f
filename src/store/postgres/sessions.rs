//! Sessions: which node holds an agent's connection.
//!
//! Every write locks the agents first, in key order. That excludes deadlocks, and orders it before
//! or after a concurrent disabling or removal of an agent.

use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::time::Timestamp;
use crate::store::sql::sessions::{self, EpochRow, Known, SessionRow, ValidToken, checked};
use crate::store::sql::{Key, sql};
use crate::store::{Opened, SessionHeld, SessionOpening, SessionState, Sessions, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;

/// Selects agents as [`SessionRow`]s. Bind the incarnation and the keys.
const AGENTS: &str = "SELECT a.no, a.session_epoch AS epoch, a.removed_at IS NULL AND NOT a.disabled AS allowed, \
     EXISTS (SELECT 1 FROM agent_sessions s WHERE s.agent_no = a.no AND s.epoch = a.session_epoch AND s.incarnation = ?) \
     AS stored, c.instance, c.replaced FROM agents a LEFT JOIN agent_sessions c ON c.agent_no = a.no WHERE a.no = ANY(?)";

#[async_trait]
impl Sessions for PostgresStore {
    async fn session_open(&self, sessions: &[SessionOpening]) -> StoreResult<Vec<Opened>> {
        let (openings, here, now) = (Arc::new(sessions.to_vec()), self.inner.incarnation.clone(), self.now());
        let open = body!([openings, here] conn => open(conn, &openings, &here, now));
        self.write(Caller::Sessions, "session_open", open).await
    }

    async fn session_check(&self, held: &[SessionHeld]) -> StoreResult<Vec<SessionState>> {
        let (held, here, now) = (Arc::new(held.to_vec()), self.inner.incarnation.clone(), self.now());
        let known = self
            .read(Caller::Sessions, "session_check", body!([held, here] conn => look(conn, &held, &here, now)))
            .await?;
        let missing = held.iter().filter(|session| known.judge(session).is_none());
        let missing: Vec<(i64, i64)> = missing.map(|session| (session.agent_no, session.epoch)).collect();
        let restored = if missing.is_empty() {
            Vec::new()
        } else {
            let missing = Arc::new(missing);
            let restore = body!([missing, here] conn => restore(conn, &missing, &here, now));
            self.write(Caller::Sessions, "session_check", restore).await?
        };
        Ok(checked(&held, &known, &restored.into_iter().collect()))
    }

    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()> {
        let (closed, here, now) = (Arc::new(sessions.to_vec()), self.inner.incarnation.clone(), self.now());
        let close = body!([closed, here] conn => close(conn, &closed, &here, now));
        self.write(Caller::Sessions, "session_close", close).await
    }

    async fn session_elsewhere(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>> {
        if !self.inner.has_others() {
            return Ok(Vec::new());
        }
        let (agent_nos, here) = (Arc::new(agent_nos.to_vec()), self.inner.incarnation.clone());
        let look = body!([agent_nos, here] conn => elsewhere(conn, &agent_nos, &here));
        self.read(Caller::Sessions, "session_elsewhere", look).await
    }
}

async fn valid_tokens(conn: &mut AsyncPgConnection, ids: Vec<String>, now: Timestamp) -> QueryResult<Vec<ValidToken>> {
    sql("SELECT id FROM tokens WHERE id = ANY(?) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)")
        .bind(ids)
        .bind(now.0)
        .load(conn)
        .await
}

async fn lock(conn: &mut AsyncPgConnection, agents: &[i64]) -> QueryResult<()> {
    let rows = sql("SELECT no AS key FROM agents WHERE no = ANY(?) ORDER BY no FOR NO KEY UPDATE");
    rows.bind(agents.to_vec()).load::<Key>(conn).await.map(|_| ())
}

/// Opens connections, at most one per agent. Answers in the given order.
async fn open(
    conn: &mut AsyncPgConnection,
    sessions: &[SessionOpening],
    here: &str,
    now: Timestamp,
) -> QueryResult<Vec<Opened>> {
    let agents: Vec<i64> = sessions.iter().map(|session| session.agent_no).collect();
    lock(conn, &agents).await?;
    // In statements of their own, which see what was committed before the lock was had.
    let rows: Vec<SessionRow> = sql(AGENTS).bind(here).bind(agents).load(conn).await?;
    let tokens = sessions::token_ids(sessions.iter().map(|session| session.token));
    let known = Known::new(rows, valid_tokens(conn, tokens, now).await?);
    let allowed: Vec<i64> =
        sessions.iter().filter(|session| known.refuses(session).is_none()).map(|session| session.agent_no).collect();
    // Nodes of older versions write epochs of their own, and none with the agent.
    let mut epochs: Vec<EpochRow> =
        sql("UPDATE agents SET last_seen = ?, session_epoch = 1 + greatest(session_epoch, \
         (SELECT s.epoch FROM agent_sessions s WHERE s.agent_no = agents.no)) \
         WHERE no = ANY(?) RETURNING no, session_epoch AS epoch")
        .bind(now.0)
        .bind(allowed)
        .load(conn)
        .await?;
    epochs.sort_unstable_by_key(|row| row.no);
    let rows = known.instances(sessions, &epochs);
    sql("INSERT INTO agent_sessions (agent_no, incarnation, epoch, connected_at, instance, replaced) \
         SELECT n.agent_no, ?, n.epoch, ?, n.instance, n.replaced \
         FROM UNNEST(?, ?, ?, ?) AS n (agent_no, epoch, instance, replaced) \
         ON CONFLICT (agent_no) DO UPDATE SET incarnation = excluded.incarnation, epoch = excluded.epoch, \
         connected_at = excluded.connected_at, instance = excluded.instance, replaced = excluded.replaced")
    .bind(here)
    .bind(now.0)
    .bind(rows.iter().map(|row| row.agent_no).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.epoch).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.instance.clone()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.replaced.clone()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    let duplicates = known.duplicates(sessions);
    if !duplicates.is_empty() {
        sql("UPDATE agents SET duplicate_at = ? WHERE no = ANY(?)").bind(now.0).bind(duplicates).execute(conn).await?;
    }
    Ok(sessions::opened(sessions, &known, epochs))
}

/// Reads what is stored of the agents of these connections.
async fn look(
    conn: &mut AsyncPgConnection,
    sessions: &[SessionHeld],
    here: &str,
    now: Timestamp,
) -> QueryResult<Known> {
    let agents: Vec<i64> = sessions.iter().map(|session| session.agent_no).collect();
    let rows: Vec<SessionRow> = sql(AGENTS).bind(here).bind(agents).load(conn).await?;
    let tokens = sessions::token_ids(sessions.iter().map(|session| session.token));
    Ok(Known::new(rows, valid_tokens(conn, tokens, now).await?))
}

/// Inserts missing connections (agent, epoch), unless there are newer ones. Returns the agents of
/// the inserted ones.
async fn restore(
    conn: &mut AsyncPgConnection,
    sessions: &[(i64, i64)],
    here: &str,
    now: Timestamp,
) -> QueryResult<Vec<i64>> {
    let (agents, epochs): (Vec<i64>, Vec<i64>) = sessions.iter().copied().unzip();
    lock(conn, &agents).await?;
    let written: Vec<Key> = sql("INSERT INTO agent_sessions (agent_no, incarnation, epoch, connected_at) \
         SELECT n.agent_no, ?, n.epoch, ? FROM UNNEST(?, ?) AS n (agent_no, epoch) \
         WHERE EXISTS (SELECT 1 FROM agents a WHERE a.no = n.agent_no AND a.session_epoch = n.epoch) \
         ON CONFLICT (agent_no) DO NOTHING RETURNING agent_no AS key")
    .bind(here)
    .bind(now.0)
    .bind(agents)
    .bind(epochs)
    .load(conn)
    .await?;
    Ok(written.into_iter().map(|row| row.key).collect())
}

/// Those of these agents whose connection another node holds.
async fn elsewhere(conn: &mut AsyncPgConnection, agent_nos: &[i64], here: &str) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> = sql(
        "SELECT agent_no AS key FROM agent_sessions WHERE agent_no = ANY(?) AND incarnation <> ? ORDER BY agent_no",
    )
    .bind(agent_nos.to_vec())
    .bind(here)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

/// Removes connections (agent, epoch) of this node, and older ones of the same agents.
async fn close(conn: &mut AsyncPgConnection, sessions: &[(i64, i64)], here: &str, now: Timestamp) -> QueryResult<()> {
    let (agents, epochs): (Vec<i64>, Vec<i64>) = sessions.iter().copied().unzip();
    lock(conn, &agents).await?;
    sql("UPDATE agents SET last_seen = ? WHERE no = ANY(?)").bind(now.0).bind(agents.clone()).execute(conn).await?;
    sql("DELETE FROM agent_sessions s USING UNNEST(?, ?) AS n (agent_no, epoch) \
         WHERE s.agent_no = ANY(?) AND s.agent_no = n.agent_no AND s.epoch <= n.epoch AND s.incarnation = ?")
    .bind(agents.clone())
    .bind(epochs)
    .bind(agents)
    .bind(here)
    .execute(conn)
    .await
    .map(|_| ())
}
