//! This process among those that share the database: it registers, says that it lives, and takes over from the dead.
//!
//! A node is a row in `nodes`, under a name that is new at each start (its *incarnation*). While its process lives it holds
//! an advisory lock, which goes with its connection: so a node that was killed and started again finds at once that the
//! one before, of the same name, is gone, and needn't wait for `dead_after`. Both ways of finding somebody dead may be
//! wrong, about a process that was only slow or cut off; fencing makes that harmless, see [`super::transaction`].

use super::link::Connected;
use super::sql::sql;
use super::{Inner, State, hints};
use crate::domain::hint::Hint;
use crate::store::rows::Key;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Text};
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The database's clock, in whole milliseconds that have passed.
pub(super) const NOW: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
/// That a node was heard of by the database server as it runs now.
const SINCE_THE_SERVER_STARTED: &str =
    "AND heartbeat >= floor(extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint";
/// Every how many heartbeats what nobody owns is looked for.
const ADOPT_EVERY: u32 = 5;
/// How long the answer to a heartbeat may take before the database counts as away.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long a start waits for the server to notice that the process before it is gone.
const GONE_WITHIN: Duration = Duration::from_secs(2);

#[derive(QueryableByName)]
struct Incarnation {
    #[diesel(sql_type = Text)]
    incarnation: String,
}

#[derive(QueryableByName)]
struct Beat {
    #[diesel(sql_type = BigInt)]
    heartbeat: i64,
    #[diesel(sql_type = BigInt)]
    nodes: i64,
}

/// Makes this process known. Answers the database's time.
pub(super) async fn register(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<i64> {
    // Another start of this prepare may have come this far.
    sql(format!(
        "INSERT INTO nodes (incarnation, name, started_at, heartbeat) VALUES (?, '', {NOW}, {NOW}) \
         ON CONFLICT (incarnation) DO UPDATE SET heartbeat = excluded.heartbeat RETURNING heartbeat AS key"
    ))
    .bind(incarnation)
    .get_result::<Key>(conn)
    .await
    .map(|row| row.key)
}

/// Gives the node its name, says what it has senders for, and takes over from those that are dead.
pub(super) async fn start(
    conn: &mut AsyncPgConnection,
    incarnation: &str,
    name: &str,
    transports: &[String],
    dead_after: Duration,
) -> QueryResult<()> {
    let transports = serde_json::to_string(transports).map_err(|error| Error::SerializationError(error.into()))?;
    sql("UPDATE nodes SET name = ?, transports = CAST(? AS JSONB) WHERE incarnation = ?")
        .bind(name)
        .bind(transports.as_str())
        .bind(incarnation)
        .execute(conn)
        .await?;
    let started = Instant::now();
    loop {
        let namesakes: Vec<Incarnation> = sql("SELECT incarnation FROM nodes WHERE name = ? AND incarnation <> ?")
            .bind(name)
            .bind(incarnation)
            .load(conn)
            .await?;
        let mut alive = false;
        let mut dead = Vec::new();
        for Incarnation { incarnation } in namesakes {
            if is_locked(conn, &incarnation).await? {
                alive = true;
            } else {
                dead.push(incarnation);
            }
        }
        take_over(conn, incarnation, dead).await?;
        if !alive || started.elapsed() >= GONE_WITHIN {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Of other names those that have been silent for too long and hold no lock. After a restart of the database that may be
    // everybody, who is about to connect again: whoever was heard of before it is left to the heartbeat.
    let mut dead = Vec::new();
    for silent in silent(conn, incarnation, dead_after, SINCE_THE_SERVER_STARTED).await? {
        if !is_locked(conn, &silent).await? {
            dead.push(silent);
        }
    }
    take_over(conn, incarnation, dead).await?;
    adopt(conn, incarnation).await?;
    Ok(())
}

/// Says goodbye: what this node held is another's at once, or nobody's until one starts.
pub(super) async fn stop(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<()> {
    sql("UPDATE actions a SET owner = n.incarnation FROM (SELECT incarnation FROM nodes WHERE incarnation <> ? \
         ORDER BY heartbeat DESC, incarnation LIMIT 1) n WHERE a.ended_at IS NULL AND a.owner = ?")
    .bind(incarnation)
    .bind(incarnation)
    .execute(conn)
    .await?;
    sql("DELETE FROM agent_sessions WHERE incarnation = ?").bind(incarnation).execute(conn).await?;
    sql("DELETE FROM nodes WHERE incarnation = ?").bind(incarnation).execute(conn).await?;
    Ok(())
}

/// The other nodes that have said nothing for too long.
async fn silent(
    conn: &mut AsyncPgConnection,
    incarnation: &str,
    dead_after: Duration,
    and: &str,
) -> QueryResult<Vec<String>> {
    let silent: Vec<Incarnation> =
        sql(format!("SELECT incarnation FROM nodes WHERE incarnation <> ? AND heartbeat < {NOW} - ? {and}"))
            .bind(incarnation)
            .bind(i64::try_from(dead_after.as_millis()).unwrap_or(i64::MAX))
            .load(conn)
            .await?;
    Ok(silent.into_iter().map(|node| node.incarnation).collect())
}

/// Takes the actions whose owners are no nodes any more; answers how many they were.
async fn adopt(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<usize> {
    sql("UPDATE actions SET owner = ? WHERE ended_at IS NULL AND NOT EXISTS (SELECT 1 FROM nodes n \
         WHERE n.incarnation = actions.owner) AND EXISTS (SELECT 1 FROM nodes n WHERE n.incarnation = ?)")
    .bind(incarnation)
    .bind(incarnation)
    .execute(conn)
    .await
}

/// Ends other nodes, and takes what they had. Waits for their transactions in flight; later ones fail.
async fn take_over(conn: &mut AsyncPgConnection, incarnation: &str, dead: Vec<String>) -> QueryResult<()> {
    if dead.is_empty() {
        return Ok(());
    }
    let (me, gone) = (incarnation.to_owned(), dead.clone());
    let taken = conn.transaction(async move |conn| {
        // One that is taken over itself takes nothing.
        let alive = sql("SELECT 1::bigint AS key FROM nodes WHERE incarnation = ? FOR KEY SHARE").bind(me.as_str());
        if alive.get_result::<Key>(conn).await.optional()?.is_none() {
            return Ok::<_, Error>(false);
        }
        sql("DELETE FROM nodes WHERE incarnation = ANY(?)").bind(gone.clone()).execute(conn).await?;
        sql("DELETE FROM agent_sessions WHERE incarnation = ANY(?)").bind(gone.clone()).execute(conn).await?;
        sql("UPDATE actions SET owner = ? WHERE ended_at IS NULL AND owner = ANY(?)")
            .bind(me)
            .bind(gone)
            .execute(conn)
            .await?;
        Ok(true)
    });
    if taken.await? {
        log::info!(nodes = dead.len(); "the work of nodes that are gone is taken over");
    }
    Ok(())
}

/// The advisory lock that a node holds while it lives.
fn lock_of(incarnation: &str) -> i64 {
    let (high, low) = Uuid::parse_str(incarnation).unwrap_or_default().as_u64_pair();
    i64::from_be_bytes((high ^ low).to_be_bytes())
}

async fn try_lock(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<bool> {
    let got = sql("SELECT pg_try_advisory_lock(?)::int::bigint AS key").bind(lock_of(incarnation));
    Ok(got.get_result::<Key>(conn).await?.key == 1)
}

async fn is_locked(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<bool> {
    if !try_lock(conn, incarnation).await? {
        return Ok(true);
    }
    sql("SELECT pg_advisory_unlock(?)::int::bigint AS key").bind(lock_of(incarnation)).execute(conn).await?;
    Ok(false)
}

/// Keeps saying on `conn` that this process lives, for as long as somebody else holds `inner`.
pub(super) async fn heartbeats(inner: Weak<Inner>, conn: Connected, every: Duration, dead_after: Duration) {
    let mut conn = Some(conn);
    // Since when all has gone well: after an outage of the database everybody looks dead.
    let mut well_since = Instant::now();
    // Taking over may have to wait for the transactions of the dead: beside the heartbeats, lest this node looks dead too.
    let mut burying: Option<JoinHandle<()>> = None;
    let mut beats = 0_u32;
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        if !matches!(*inner.state.borrow(), State::Ready | State::Away) {
            return;
        }

        let beat = tokio::time::timeout(ANSWER_WITHIN, beat(&mut conn, &inner)).await;
        match beat {
            Ok(Ok(true)) => inner.set_state(State::Ready),
            Ok(Ok(false)) if *inner.state.borrow() == State::Leaving => return,
            Ok(Ok(false)) => {
                log::error!(node = inner.incarnation.as_str(); "another node has taken over from this one");
                inner.set_state(State::Fenced);
                return;
            }
            failed => {
                conn = None;
                well_since = Instant::now();
                let error = match failed {
                    Ok(Err(error)) => error,
                    _ => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
                };
                inner.set_away(&error);
                continue;
            }
        }
        if well_since.elapsed() >= dead_after && burying.as_ref().is_none_or(JoinHandle::is_finished) {
            beats = beats.wrapping_add(1);
            let adopts = beats.is_multiple_of(ADOPT_EVERY);
            burying = Some(tokio::spawn(async move {
                if let Err(error) = bury(&inner, dead_after, adopts).await {
                    log::warn!(error = error.as_str(); "dead nodes are looked for again later");
                }
            }));
        }
    }
}

/// Takes over from the dead; and, if it `adopts`, what nobody owns: a node that stopped leaves it to one that may be dead itself.
async fn bury(inner: &Inner, dead_after: Duration, adopts: bool) -> Result<(), String> {
    let told = |error: Error| error.to_string();
    let mut conn = inner.pool.get().await.map_err(|error| error.to_string())?;
    let dead = silent(&mut conn, &inner.incarnation, dead_after, "").await.map_err(told)?;
    let any = !dead.is_empty();
    take_over(&mut conn, &inner.incarnation, dead).await.map_err(told)?;
    let adopted = if adopts { adopt(&mut conn, &inner.incarnation).await.map_err(told)? } else { 0 };
    if any || adopted > 0 {
        // Whatever they had committed and could tell nobody any more.
        hints::tell(&inner.told, Hint::Everything);
        if inner.notify {
            hints::send(&mut conn, &inner.incarnation, &[Hint::Everything]).await.map_err(told)?;
        }
    }
    Ok(())
}

/// One heartbeat; false when there is no such node any more.
async fn beat(conn: &mut Option<Connected>, inner: &Inner) -> Result<bool, String> {
    let conn = match conn {
        Some(conn) => conn,
        None => conn.insert(connect(inner).await.map_err(|error| error.to_string())?),
    };
    let asked = Instant::now();
    let row = sql(format!(
        "UPDATE nodes SET heartbeat = {NOW} WHERE incarnation = ? \
         RETURNING heartbeat, (SELECT count(*) FROM nodes) AS nodes"
    ))
    .bind(inner.incarnation.as_str())
    .get_result::<Beat>(conn)
    .await
    .optional()
    .map_err(|error| error.to_string())?;
    if let Some(row) = &row {
        inner.clock.observe(row.heartbeat, asked, Instant::now());
        inner.others.store(row.nodes > 1, Ordering::Relaxed);
    }
    Ok(row.is_some())
}

/// A connection that holds the lock of this node.
pub(super) async fn connect(inner: &Inner) -> ConnectionResult<Connected> {
    let mut conn = inner.connector.connect().await?;
    try_lock(&mut conn, &inner.incarnation).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}
