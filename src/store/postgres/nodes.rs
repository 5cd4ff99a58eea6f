//! Nodes: this process registers, takes over from dead nodes, and unregisters.
//!
//! A node is a row in `nodes`, under an id that is new at each start (its *incarnation*). Each
//! heartbeat changes the row's value; a node that sees the same value for `dead_after` takes over,
//! see [`super::silence`]. While its process lives, a node also holds an advisory lock, which its
//! connection releases when it ends. So a node that was killed and started again needn't wait for
//! `dead_after` to find that its predecessor, a node of the same name, is dead. A free lock alone
//! is not enough, because a connection may break under a living process: the heartbeat must also
//! have stayed the same for as long as a node needs to connect again. All of this may be wrong
//! about a process that was only slow or cut off; fencing makes that harmless, see
//! [`super::transaction`].

use super::inner::{Inner, State};
use super::pools::Caller;
use super::silence::Beat;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::hint::Hint;
use crate::domain::hook::{Listener, NodeLost};
use crate::domain::time::Timestamp;
use crate::store::sql::hooks::nodes_lost;
use crate::store::sql::nodes::{NODES, NodeRow};
use crate::store::sql::{Key, sql};
use crate::store::{Hints, NodeView, Nodes, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The database's clock, in whole milliseconds that have passed.
pub(super) const NOW: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
/// How long a start waits for the server to notice that the process before it is gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a node needs to connect again, beside the time until its next heartbeat.
const CONNECTS_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest that a start watches the process before it. Where heartbeats are so rare, a namesake
/// is like any other node.
const WATCHED_FOR: Duration = Duration::from_secs(5);

#[async_trait]
impl Nodes for PostgresStore {
    async fn node_start(&self, name: &str, transports: &[String]) -> StoreResult<()> {
        let (name, incarnation, heartbeat) = (name.to_owned(), self.inner.incarnation.clone(), self.heartbeat);
        let transports = Arc::new(transports.to_vec());
        let (me, hooks) = (Arc::new((name, incarnation)), self.inner.hooks.get());
        let start = body!([me, transports, hooks] conn => {
            start(conn, (&me.0, &me.1), &transports, heartbeat, &hooks)
        });
        self.read(Caller::Pipeline, "node_start", start).await?;
        // The others learn that there is one more node to notify.
        self.hint_send(&[Hint::Everything]).await.map(|_| ())
    }

    async fn node_stop(&self) -> StoreResult<()> {
        let inner = self.inner.clone();
        // From here on, a heartbeat expects that the node is gone.
        self.inner.set_state(State::Leaving);
        self.write(Caller::Pipeline, "node_stop", body!([inner] conn => stop(conn, &inner))).await?;
        // Another node owns its actions now and should look at them.
        self.hint_send(&[Hint::Everything]).await.ok();
        self.inner.set_state(State::Gone);
        Ok(())
    }

    async fn node_lost(&self) {
        let mut state = self.inner.state.subscribe();
        // The sender is in `self`: this waits for as long as the store is there.
        state.wait_for(|state| *state == State::Fenced).await.ok();
    }

    async fn node_list(&self) -> StoreResult<Vec<NodeView>> {
        let nodes: Vec<NodeRow> =
            self.read(Caller::People, "node_list", body!([] conn => sql(NODES).load(conn))).await?;
        let mut watch = self.inner.watch();
        watch.look(nodes.iter().map(NodeRow::beat), Instant::now());
        let is_alive = |row: &NodeRow| watch.silence(&row.beat().0) < self.dead_after;
        Ok(nodes.into_iter().map(|row| (is_alive(&row), row)).map(|(alive, row)| row.view(alive)).collect())
    }
}

#[derive(QueryableByName)]
struct NodeBeat {
    #[diesel(sql_type = Text)]
    incarnation: String,
    #[diesel(sql_type = BigInt)]
    heartbeat: i64,
}

/// A dead node, as its row was.
#[derive(QueryableByName)]
struct LostRow {
    #[diesel(sql_type = Text)]
    incarnation: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = BigInt)]
    heartbeat: i64,
    /// The database's time.
    #[diesel(sql_type = BigInt)]
    at: i64,
}

impl From<LostRow> for NodeLost {
    fn from(row: LostRow) -> Self {
        let LostRow { incarnation, name, started_at, heartbeat, at: _ } = row;
        Self { name, incarnation, started_at: Timestamp(started_at), heartbeat: Timestamp(heartbeat) }
    }
}

/// Inserts the row of this process. Returns the database's time.
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

/// Stores this node's name and transports, and takes over from dead nodes of the same name and from
/// nodes that are gone. `every` is the heartbeats' period.
async fn start(
    conn: &mut AsyncPgConnection,
    (name, incarnation): (&str, &str),
    transports: &[String],
    every: Duration,
    hooks: &[Listener],
) -> QueryResult<()> {
    let transports = serde_json::to_string(transports).map_err(|error| Error::SerializationError(error.into()))?;
    sql("UPDATE nodes SET name = ?, transports = CAST(? AS JSONB) WHERE incarnation = ?")
        .bind(name)
        .bind(transports.as_str())
        .bind(incarnation)
        .execute(conn)
        .await?;
    take_over_from_namesakes(conn, (name, incarnation), every + CONNECTS_TIMEOUT, hooks).await?;
    adopt(conn, incarnation).await?;
    Ok(())
}

/// Takes over from dead processes of the same name: they hold no lock, and no heartbeat came for
/// `quiet`.
async fn take_over_from_namesakes(
    conn: &mut AsyncPgConnection,
    (name, incarnation): (&str, &str),
    quiet: Duration,
    hooks: &[Listener],
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
        take_over(conn, incarnation, dead, hooks).await?;
        if !watched {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All nodes with their last heartbeats.
pub(super) async fn beats(conn: &mut AsyncPgConnection) -> QueryResult<Vec<Beat>> {
    let nodes: Vec<NodeBeat> = sql("SELECT incarnation, heartbeat FROM nodes ORDER BY incarnation").load(conn).await?;
    Ok(nodes.into_iter().map(|node| (node.incarnation, node.heartbeat)).collect())
}

/// Unregisters this node. The node that was heard of last gets its actions; without other nodes,
/// the next one to start does.
async fn stop(conn: &mut AsyncPgConnection, inner: &Inner) -> QueryResult<()> {
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
pub(super) async fn adopt(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<usize> {
    sql("UPDATE actions SET owner = ? WHERE ended_at IS NULL AND NOT EXISTS (SELECT 1 FROM nodes n \
         WHERE n.incarnation = actions.owner) AND EXISTS (SELECT 1 FROM nodes n WHERE n.incarnation = ?)")
    .bind(incarnation)
    .bind(incarnation)
    .execute(conn)
    .await
}

/// Ends other nodes that have said nothing since this heartbeat of theirs, and takes what they had.
/// Waits for their transactions in flight; later ones fail. Writes an event for the hooks.
pub(super) async fn take_over(
    conn: &mut AsyncPgConnection,
    incarnation: &str,
    dead: Vec<Beat>,
    hooks: &[Listener],
) -> QueryResult<bool> {
    if dead.is_empty() {
        return Ok(false);
    }
    let (me, hooks) = (incarnation.to_owned(), hooks.to_vec());
    let taken = conn.transaction(async move |conn| {
        // One that is taken over itself takes nothing.
        let alive = sql("SELECT 1::bigint AS key FROM nodes WHERE incarnation = ? FOR KEY SHARE").bind(me.as_str());
        if alive.get_result::<Key>(conn).await.optional()?.is_none() {
            return Ok::<_, Error>((Vec::new(), Vec::new()));
        }
        let (incarnations, heartbeats): (Vec<String>, Vec<i64>) = dead.into_iter().unzip();
        // One that has spoken meanwhile is left alone.
        let lost: Vec<LostRow> = sql(format!(
            "DELETE FROM nodes n USING UNNEST(?, ?) AS d (incarnation, heartbeat) WHERE n.incarnation = d.incarnation \
             AND n.heartbeat = d.heartbeat RETURNING n.incarnation, n.name, n.started_at, n.heartbeat, {NOW} AS at"
        ))
        .bind(incarnations)
        .bind(heartbeats)
        .load(conn)
        .await?;
        let at = Timestamp(lost.iter().map(|row| row.at).next().unwrap_or_default());
        let gone: Vec<String> = lost.iter().map(|row| row.incarnation.clone()).collect();
        let names: Vec<String> = lost.iter().map(|row| row.name.clone()).collect();
        // A process without a name died before it was a node.
        let lost: Vec<NodeLost> = lost.into_iter().filter(|row| !row.name.is_empty()).map(NodeLost::from).collect();
        super::hooks::insert(conn, nodes_lost(&hooks, &lost, at)?).await?;
        sql("DELETE FROM agent_sessions WHERE incarnation = ANY(?)").bind(gone.clone()).execute(conn).await?;
        sql("UPDATE actions SET owner = ? WHERE ended_at IS NULL AND owner = ANY(?)")
            .bind(me)
            .bind(gone.clone())
            .execute(conn)
            .await?;
        Ok((gone, names))
    });
    let (taken, names) = taken.await?;
    if !taken.is_empty() {
        log::warn!(nodes = names.join(", "); "the work of nodes that are gone is taken over");
    }
    Ok(!taken.is_empty())
}

/// The advisory lock that a node holds while it lives.
fn lock_of(incarnation: &str) -> i64 {
    let (high, low) = Uuid::parse_str(incarnation).unwrap_or_default().as_u64_pair();
    i64::from_be_bytes((high ^ low).to_be_bytes())
}

pub(super) async fn try_lock(conn: &mut AsyncPgConnection, incarnation: &str) -> QueryResult<bool> {
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
