//! Sessions: which agents are connected to this node, the only one.

use super::store::{SqliteStore, json};
use crate::domain::time::Timestamp;
use crate::store::sql::Key;
use crate::store::sql::sessions::{self, EpochRow, Known, SessionRow, ValidToken};
use crate::store::{Opened, SessionHeld, SessionOpening, SessionState, Sessions, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use std::collections::HashSet;

#[async_trait]
impl Sessions for SqliteStore {
    async fn session_open(&self, sessions: &[SessionOpening]) -> StoreResult<Vec<Opened>> {
        let (openings, here, now) = (sessions.to_vec(), self.incarnation.clone(), self.now());
        self.write("session_open", move |conn| open(conn, &openings, &here, now)).await
    }

    async fn session_check(&self, held: &[SessionHeld]) -> StoreResult<Vec<SessionState>> {
        let (held, here, now) = (held.to_vec(), self.incarnation.clone(), self.now());
        self.write("session_check", move |conn| check(conn, &held, &here, now)).await
    }

    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()> {
        let (closed, here, now) = (sessions.to_vec(), self.incarnation.clone(), self.now());
        self.write("session_close", move |conn| close(conn, &closed, &here, now)).await
    }

    async fn session_elsewhere(&self, _: &[i64]) -> StoreResult<Vec<i64>> {
        Ok(Vec::new())
    }
}

fn known(
    conn: &mut SqliteConnection,
    agents: &[i64],
    tokens: &[String],
    here: &str,
    now: Timestamp,
) -> QueryResult<Known> {
    let rows = sql_query(
        "SELECT a.no, a.session_epoch AS epoch, a.removed_at IS NULL AND NOT a.disabled AS allowed, \
         EXISTS (SELECT 1 FROM agent_sessions s WHERE s.agent_no = a.no AND s.epoch = a.session_epoch \
         AND s.incarnation = ?2) AS stored, c.instance, c.replaced \
         FROM agents a LEFT JOIN agent_sessions c ON c.agent_no = a.no WHERE a.no IN (SELECT value FROM json_each(?1))",
    )
    .bind::<Text, _>(json(agents)?)
    .bind::<Text, _>(here)
    .load::<SessionRow>(conn)?;
    let valid = sql_query(
        "SELECT id FROM tokens WHERE id IN (SELECT value FROM json_each(?1)) AND revoked_at IS NULL \
         AND (expires_at IS NULL OR expires_at > ?2)",
    )
    .bind::<Text, _>(json(tokens)?)
    .bind::<BigInt, _>(now.0)
    .load::<ValidToken>(conn)?;
    Ok(Known::new(rows, valid))
}

/// Opens connections, at most one per agent. Answers in the given order.
fn open(
    conn: &mut SqliteConnection,
    sessions: &[SessionOpening],
    here: &str,
    now: Timestamp,
) -> QueryResult<Vec<Opened>> {
    let agents: Vec<i64> = sessions.iter().map(|session| session.agent_no).collect();
    let tokens = sessions::token_ids(sessions.iter().map(|session| session.token));
    let known = known(conn, &agents, &tokens, here, now)?;
    let allowed: Vec<i64> =
        sessions.iter().filter(|session| known.refuses(session).is_none()).map(|session| session.agent_no).collect();
    // A store of an older version has epochs of its own, and none with the agent.
    let epochs = sql_query(
        "UPDATE agents SET last_seen = ?2, session_epoch = 1 + max(session_epoch, \
         coalesce((SELECT s.epoch FROM agent_sessions s WHERE s.agent_no = agents.no), 0)) \
         WHERE no IN (SELECT value FROM json_each(?1)) RETURNING no, session_epoch AS epoch",
    )
    .bind::<Text, _>(json(&allowed)?)
    .bind::<BigInt, _>(now.0)
    .load::<EpochRow>(conn)?;
    sql_query(
        "INSERT INTO agent_sessions (agent_no, incarnation, epoch, connected_at, instance, replaced) \
         SELECT value ->> 'agent_no', ?2, value ->> 'epoch', ?3, value ->> 'instance', value ->> 'replaced' \
         FROM json_each(?1) WHERE TRUE \
         ON CONFLICT (agent_no) DO UPDATE SET incarnation = excluded.incarnation, epoch = excluded.epoch, \
         connected_at = excluded.connected_at, instance = excluded.instance, replaced = excluded.replaced",
    )
    .bind::<Text, _>(json(&known.instances(sessions, &epochs))?)
    .bind::<Text, _>(here)
    .bind::<BigInt, _>(now.0)
    .execute(conn)?;
    let duplicates = known.duplicates(sessions);
    if !duplicates.is_empty() {
        sql_query("UPDATE agents SET duplicate_at = ?2 WHERE no IN (SELECT value FROM json_each(?1))")
            .bind::<Text, _>(json(&duplicates)?)
            .bind::<BigInt, _>(now.0)
            .execute(conn)?;
    }
    Ok(sessions::opened(sessions, &known, epochs))
}

/// Compares connections with their rows, and inserts those that are missing.
fn check(
    conn: &mut SqliteConnection,
    held: &[SessionHeld],
    here: &str,
    now: Timestamp,
) -> QueryResult<Vec<SessionState>> {
    let agents: Vec<i64> = held.iter().map(|session| session.agent_no).collect();
    let tokens = sessions::token_ids(held.iter().map(|session| session.token));
    let known = known(conn, &agents, &tokens, here, now)?;
    let missing = held.iter().filter(|session| known.judge(session).is_none());
    let missing: Vec<(i64, i64)> = missing.map(|session| (session.agent_no, session.epoch)).collect();
    if missing.is_empty() {
        return Ok(sessions::checked(held, &known, &HashSet::new()));
    }
    let restored = sql_query(
        "INSERT INTO agent_sessions (agent_no, incarnation, epoch, connected_at) \
         SELECT value ->> 0, ?2, value ->> 1, ?3 FROM json_each(?1) WHERE EXISTS (SELECT 1 FROM agents a \
         WHERE a.no = value ->> 0 AND a.session_epoch = value ->> 1) ON CONFLICT (agent_no) DO NOTHING \
         RETURNING agent_no AS key",
    )
    .bind::<Text, _>(json(&missing)?)
    .bind::<Text, _>(here)
    .bind::<BigInt, _>(now.0)
    .load::<Key>(conn)?;
    Ok(sessions::checked(held, &known, &restored.into_iter().map(|row| row.key).collect()))
}

/// Removes connections (agent, epoch), and older ones of the same agents.
fn close(conn: &mut SqliteConnection, sessions: &[(i64, i64)], here: &str, now: Timestamp) -> QueryResult<()> {
    let closed = json(sessions)?;
    sql_query(
        "DELETE FROM agent_sessions WHERE agent_no IN (SELECT s.agent_no FROM json_each(?1) n CROSS JOIN agent_sessions s \
         ON s.agent_no = n.value ->> 0 WHERE s.epoch <= n.value ->> 1 AND s.incarnation = ?2)",
    )
    .bind::<Text, _>(&closed)
    .bind::<Text, _>(here)
    .execute(conn)?;
    sql_query("UPDATE agents SET last_seen = ?2 WHERE no IN (SELECT value ->> 0 FROM json_each(?1))")
        .bind::<Text, _>(&closed)
        .bind::<BigInt, _>(now.0)
        .execute(conn)
        .map(|_| ())
}
