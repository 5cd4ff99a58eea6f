//! Heartbeats: this process shows that it lives, and takes over from nodes that no longer do.

use super::hints;
use super::inner::{Inner, State};
use super::link::Connected;
use super::nodes::{NOW, adopt, beats, take_over, try_lock};
use super::pools::Caller;
use super::silence::Beat;
use crate::domain::hint::Hint;
use crate::store::SqlState;
use crate::store::sql::{Key, sql};
use diesel::prelude::*;
use diesel::result::Error;
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Every how many heartbeats actions without an owner are adopted.
const ADOPT_EVERY: u32 = 5;
/// How long the answer to a heartbeat may take before the database counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The connection for heartbeats, outside the pool. It holds the node's lock.
pub(super) struct OwnConnection {
    conn: Connected,
    /// Whether the lock is held. It isn't until the server has noticed that the connection before
    /// this one is gone.
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

    /// Takes the lock, if it isn't held and is free.
    async fn lock(&mut self, incarnation: &str) -> QueryResult<()> {
        if !self.locked {
            self.locked = try_lock(&mut self.conn, incarnation).await?;
        }
        Ok(())
    }
}

/// Sends heartbeats on `own` and takes over from dead nodes. Ends when nobody else holds `inner`,
/// or when this process is no longer a node.
pub(super) async fn heartbeats(inner: Weak<Inner>, own: OwnConnection, every: Duration, dead_after: Duration) {
    let mut own = Some(own);
    // Taking over may have to wait for transactions of dead nodes. A task of its own does so, or
    // this node would look dead too.
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
            // The connection broke, and the database may be there: a node shouldn't be without its
            // lock for long.
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
                // Nobody could say anything meanwhile: after an outage of the database everybody
                // would look dead.
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

/// Takes over from dead nodes and, if it `adopts`, takes actions without an owner: a node that
/// stopped may have left them to one that was dead itself.
async fn bury(inner: &Inner, dead: Vec<Beat>, adopts: bool) -> Result<(), String> {
    let told = |error: Error| error.to_string();
    let mut conn = inner.pools.get(Caller::Pipeline).await.map_err(|error| error.to_string())?;
    let any = take_over(&mut conn, &inner.incarnation, dead, &inner.hooks.get()).await.map_err(told)?;
    let adopted = if adopts { adopt(&mut conn, &inner.incarnation).await.map_err(told)? } else { 0 };
    if any || adopted > 0 {
        // Whatever they had committed and could tell nobody any more.
        hints::tell(&inner.hints, Hint::Everything);
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

/// Sends one heartbeat and reads those of the other nodes. False when this process is no longer a
/// node.
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
