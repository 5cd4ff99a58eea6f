//! This process among those that share the database: it registers, says that it lives, and takes over from the dead.
//!
//! A node is a row in `nodes`, under a name that is new at each start (its *incarnation*). Each heartbeat gives the row
//! another value; who sees the same one for `dead_after` takes over, see [`super::silence`]. While its process lives it also
//! holds an advisory lock, which goes with its connection: so a node that was killed and started again needn't wait for
//! so long to find that the one before, of the same name, is gone. A free lock alone says little: a connection may break
//! under a process that lives. It counts when the heartbeat has also stayed the same for as long as a node needs to
//! connect again. All of this may be wrong about a process that was only slow or cut off; fencing makes that harmless,
//! see [`super::transaction`].

use super::link::Connected;
use super::silence::Beat;
use super::sql::sql;
use super::{Inner, State, hints};
use crate::domain::hint::Hint;
use crate::store::SqlState;
use crate::store::rows::Key;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Text};
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use std::collections::HashMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The database's clock, in whole milliseconds that have passed.
pub(super) const NOW: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
/// Every how many heartbeats what nobody owns is looked for.
const ADOPT_EVERY: u32 = 5;
/// How long the answer to a heartbeat may take before the database counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a start waits for the server to notice that the process before it is gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a node needs to connect again, beside the time until its next heartbeat.
const CONNECTS_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest that a start watches the process before it. Where heartbeats are so rare, a namesake is like any other node.
const WATCHED_FOR: Duration = Duration::from_secs(5);

#[derive(QueryableByName)]
struct NodeBeat {
    #[diesel(sql_type = Text)]
    incarnation: String,
    #[diesel(sql_type = BigInt)]
    heartbeat: i64,
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

/// Gives the node its name, says what it has senders for, and takes over from those before it that are dead. `every`: how
/// often nodes say that they live.
pub(super) async fn start(
    conn: &mut AsyncPgConnection,
    incarnation: &str,
    name: &str,
    transports: &[String],
    every: Duration,
) -> QueryResult<()> {
    let transports = serde_json::to_string(transports).map_err(|error| Error::SerializationError(error.into()))?;
    sql("UPDATE nodes SET name = ?, transports = CAST(? AS JSONB) WHERE incarnation = ?")
        .bind(name)
        .bind(transports.as_str())
        .bind(incarnation)
        .execute(conn)
        .await?;
    take_over_from_namesakes(conn, incarnation, name, every + CONNECTS_TIMEOUT).await?;
    adopt(conn, incarnation).await?;
    Ok(())
}

/// Takes over from processes of the same name that are dead: they hold no lock, and say nothing for `quiet`.
async fn take_over_from_namesakes(
    conn: &mut AsyncPgConnection,
    incarnation: &str,
    name: &str,
    quiet: Duration,
) -> QueryResult<()> {
    if quiet > WATCHED_FOR {
        return Ok(());
    }
    let started = Instant::now();
    let mut first_seen: HashMap<String, i64> = HashMap::new();
    loop {
        let namesakes: Vec<NodeBeat> =
            sql("SELECT incarnation, heartbeat FROM nodes WHERE name = ? AND incarnation <> ?")
                .bind(name)
                .bind(incarnation)
                .load(conn)
                .await?;
        let (mut watched, mut dead) = (false, Vec::new());
        for NodeBeat { incarnation, heartbeat } in namesakes {
            let is_quiet = *first_seen.entry(incarnation.clone()).or_insert(heartbeat) == heartbeat;
            let is_locked = is_quiet && is_locked(conn, &incarnation).await?;
            if is_quiet && !is_locked && started.elapsed() >= quiet {
                dead.push((incarnation, heartbeat));
            } else {
                // A lock that is held for longer is a living process's.
                watched |= is_quiet && (!is_locked || started.elapsed() < GONE_TIMEOUT);
            }
        }
        take_over(conn, incarnation, dead).await?;
        if !watched {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All nodes, and what they said last.
async fn beats(conn: &mut AsyncPgConnection) -> QueryResult<Vec<Beat>> {
    let nodes: Vec<NodeBeat> = sql("SELECT incarnation, heartbeat FROM nodes ORDER BY incarnation").load(conn).await?;
    Ok(nodes.into_iter().map(|node| (node.incarnation, node.heartbeat)).collect())
}

/// Says goodbye: what this node held is another's at once, or nobody's until one starts.
pub(super) async fn stop(conn: &mut AsyncPgConnection, inner: &Inner) -> QueryResult<()> {
    let incarnation = inner.incarnation.as_str();
    let nodes = beats(conn).await?;
    let heir = {
        let mut watch = inner.watch();
        watch.look(nodes.iter().cloned(), Instant::now());
        // The one that was heard of last; of several the youngest.
        let others = nodes.iter().rev().map(|(node, _)| node).filter(|node| *node != incarnation);
        others.min_by_key(|node| watch.silence(node)).cloned()
    };
    if let Some(heir) = heir {
        sql("UPDATE actions SET owner = n.incarnation FROM nodes n WHERE n.incarnation = ? \
             AND actions.ended_at IS NULL AND actions.owner = ?")
        .bind(heir)
        .bind(incarnation)
        .execute(conn)
        .await?;
    }
    sql("DELETE FROM agent_sessions WHERE incarnation = ?").bind(incarnation).execute(conn).await?;
    sql("DELETE FROM nodes WHERE incarnation = ?").bind(incarnation).execute(conn).await?;
    Ok(())
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

/// Ends other nodes that have said nothing since this heartbeat of theirs, and takes what they had. Waits for their
/// transactions in flight; later ones fail.
async fn take_over(conn: &mut AsyncPgConnection, incarnation: &str, dead: Vec<Beat>) -> QueryResult<bool> {
    if dead.is_empty() {
        return Ok(false);
    }
    let me = incarnation.to_owned();
    let taken = conn.transaction(async move |conn| {
        // One that is taken over itself takes nothing.
        let alive = sql("SELECT 1::bigint AS key FROM nodes WHERE incarnation = ? FOR KEY SHARE").bind(me.as_str());
        if alive.get_result::<Key>(conn).await.optional()?.is_none() {
            return Ok::<_, Error>(Vec::new());
        }
        let (incarnations, heartbeats): (Vec<String>, Vec<i64>) = dead.into_iter().unzip();
        // One that has spoken meanwhile is left alone.
        let gone: Vec<NodeBeat> = sql("DELETE FROM nodes n USING UNNEST(?, ?) AS d (incarnation, heartbeat) \
             WHERE n.incarnation = d.incarnation AND n.heartbeat = d.heartbeat RETURNING n.incarnation, n.heartbeat")
        .bind(incarnations)
        .bind(heartbeats)
        .load(conn)
        .await?;
        let gone: Vec<String> = gone.into_iter().map(|node| node.incarnation).collect();
        sql("DELETE FROM agent_sessions WHERE incarnation = ANY(?)").bind(gone.clone()).execute(conn).await?;
        sql("UPDATE actions SET owner = ? WHERE ended_at IS NULL AND owner = ANY(?)")
            .bind(me)
            .bind(gone.clone())
            .execute(conn)
            .await?;
        Ok(gone)
    });
    let taken = taken.await?;
    if !taken.is_empty() {
        log::info!(nodes = taken.len(); "the work of nodes that are gone is taken over");
    }
    Ok(!taken.is_empty())
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

/// A node's own connection: it says on it that it lives, and its lock goes with it.
pub(super) struct OwnConnection {
    conn: Connected,
    /// The lock is held. It isn't while the server has not noticed that the connection before this one is gone.
    locked: bool,
}

impl OwnConnection {
    pub(super) async fn open(inner: &Inner) -> ConnectionResult<Self> {
        let mut own = Self { conn: inner.connector.connect().await?, locked: false };
        own.lock(&inner.incarnation).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(own)
    }

    pub(super) fn conn(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }

    /// The code of the last error that the server sent on it.
    pub(super) fn code(&self) -> Option<SqlState> {
        self.conn.code()
    }

    /// Takes the lock, if it isn't held and can be had.
    async fn lock(&mut self, incarnation: &str) -> QueryResult<()> {
        if !self.locked {
            self.locked = try_lock(&mut self.conn, incarnation).await?;
        }
        Ok(())
    }
}

/// Keeps saying on `own` that this process lives, for as long as somebody else holds `inner`.
pub(super) async fn heartbeats(inner: Weak<Inner>, own: OwnConnection, every: Duration, dead_after: Duration) {
    let mut own = Some(own);
    // Taking over may have to wait for the transactions of the dead: beside the heartbeats, lest this node looks dead too.
    let mut burying: Option<JoinHandle<()>> = None;
    let mut beats = 0_u32;
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        if !matches!(*inner.state.borrow(), State::Ready | State::Away) {
            return;
        }

        let (was_connected, asked) = (own.is_some(), Instant::now());
        let mut beaten = beat_in_time(&mut own, &inner).await;
        if beaten.is_err() && was_connected && asked.elapsed() < ANSWER_TIMEOUT {
            // The connection broke, and the database may be there: a node shouldn't be without its lock for long.
            own = None;
            beaten = beat_in_time(&mut own, &inner).await;
        }
        match beaten {
            Ok(true) => inner.set_state(State::Ready),
            Ok(false) if *inner.state.borrow() == State::Leaving => return,
            Ok(false) => {
                log::error!(node = inner.incarnation.as_str(); "another node has taken over from this one");
                inner.set_state(State::Fenced);
                return;
            }
            Err(error) => {
                own = None;
                // Nobody could say anything meanwhile: after an outage of the database everybody would look dead.
                inner.watch().forget();
                inner.set_away(&error);
                continue;
            }
        }
        beats = beats.wrapping_add(1);
        let adopts = beats.is_multiple_of(ADOPT_EVERY);
        let dead = inner.watch().silent(dead_after);
        let dead: Vec<Beat> = dead.into_iter().filter(|(node, _)| *node != inner.incarnation).collect();
        if (adopts || !dead.is_empty()) && burying.as_ref().is_none_or(JoinHandle::is_finished) {
            burying = Some(tokio::spawn(async move {
                if let Err(error) = bury(&inner, dead, adopts).await {
                    log::warn!(error = error.as_str(); "dead nodes are looked for again later");
                }
            }));
        }
    }
}

/// Takes over from the dead; and, if it `adopts`, what nobody owns: a node that stopped leaves it to one that may be dead itself.
async fn bury(inner: &Inner, dead: Vec<Beat>, adopts: bool) -> Result<(), String> {
    let told = |error: Error| error.to_string();
    let mut conn = inner.pool.get().await.map_err(|error| error.to_string())?;
    let any = take_over(&mut conn, &inner.incarnation, dead).await.map_err(told)?;
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

async fn beat_in_time(own: &mut Option<OwnConnection>, inner: &Inner) -> Result<bool, String> {
    let beaten = tokio::time::timeout(ANSWER_TIMEOUT, beat(own, inner)).await;
    beaten.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))
}

/// One heartbeat, and a look at those of the others; false when there is no such node any more.
async fn beat(own: &mut Option<OwnConnection>, inner: &Inner) -> Result<bool, String> {
    let told = |error: Error| error.to_string();
    let own = match own {
        Some(own) => own,
        None => own.insert(OwnConnection::open(inner).await.map_err(|error| error.to_string())?),
    };
    own.lock(&inner.incarnation).await.map_err(told)?;
    let asked = Instant::now();
    // Another value each time, whatever the clock does: that is what others look for.
    let row = sql(format!(
        "UPDATE nodes SET heartbeat = t.now + (t.now = heartbeat)::int FROM (SELECT {NOW} AS now OFFSET 0) t \
         WHERE incarnation = ? RETURNING t.now AS key"
    ))
    .bind(inner.incarnation.as_str())
    .get_result::<Key>(own.conn())
    .await
    .optional()
    .map_err(told)?;
    let Some(Key { key: time }) = row else { return Ok(false) };
    inner.clock.observe(time, asked, Instant::now());
    let nodes = beats(own.conn()).await.map_err(told)?;
    inner.others.store(nodes.len() > 1, Ordering::Relaxed);
    inner.watch().look(nodes, Instant::now());
    Ok(true)
}
