//! The half of the store for many nodes: a PostgreSQL database.
//!
//! Batches go in by `INSERT … SELECT FROM UNNEST` of one array per column: one statement whatever their size. Commands and
//! outcomes are inserted plainly, in the order of their primary key, which is their only index; a batch that meets a
//! duplicate is done again the careful way. [`calls`] is the list of what it does; see [`transaction`] for what every call goes through, [`outcomes`] for how
//! nodes stay out of each other's way, [`node`] for who is alive, and [`connect`] for how a session is set up.
//!
//! Connections are driven, and calls run, on a runtime of the store's own: an arbiter that is busy, or goes away, holds
//! up no connection.

mod actions;
mod agents;
mod audit;
mod calls;
mod clock;
mod commands;
mod connect;
mod counts;
mod elders;
mod error;
mod hints;
mod link;
mod live;
mod node;
mod outcomes;
mod scratch;
mod sessions;
mod silence;
mod sql;
mod tls;
mod tokens;
mod transaction;

pub use scratch::Scratch;

use super::{StoreError, StoreResult};
use crate::config::Config;
use crate::domain::agent::Token;
use crate::domain::audit::Author;
use crate::domain::hint::Hint;
use clock::Clock;
use connect::Connector;
use deadpool::managed::Pool;
use diesel::ConnectionError;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use link::Connected;
use silence::Watch;
use sql::sql;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc, watch};
use transaction::{Access, Body};
use uuid::Uuid;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// How long a call waits for a connection before the store counts as busy.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(5);
/// How long the store may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// For so long the tables may fail to be brought up to date before that counts as final: the database may have gone meanwhile,
/// or somebody (a dump) may be reading what is to be changed.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a migration waits for a table that somebody uses, which keeps all others waiting behind it, older nodes with their
/// heartbeats among them. It is tried again.
const MIGRATION_WAITS: Duration = Duration::from_secs(1);
/// The advisory lock of whoever brings the tables up to date.
const MIGRATING: i64 = 0x006f_646f_7368_6900;

/// What this process is to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing yet: [`Store::prepare`] has not been.
    Unprepared,
    /// A node.
    Ready,
    /// A node that the database doesn't answer.
    Away,
    /// A node that is about to say goodbye.
    Leaving,
    /// A node no more: another one took over.
    Fenced,
    /// A node no more: it said goodbye.
    Gone,
}

/// See the module.
pub struct PostgresStore {
    inner: Arc<Inner>,
    preparing: Mutex<()>,
    /// How often the tables could not be brought up to date.
    failing_since: OnceLock<Instant>,
    heartbeat: Duration,
    dead_after: Duration,
    warn_transaction: Duration,
    /// What other nodes say.
    heard: Mutex<mpsc::Receiver<Hint>>,
    /// `None` when it is being dropped.
    runtime: Option<Runtime>,
}

/// What the store's tasks share.
struct Inner {
    pool: Pool<Connector>,
    connector: Connector,
    incarnation: String,
    clock: Clock,
    state: watch::Sender<State>,
    /// Whether nodes tell each other what there is to be looked at.
    notify: bool,
    /// Whether there are other nodes.
    others: AtomicBool,
    /// Where what other nodes say is put.
    told: mpsc::Sender<Hint>,
    /// How long other nodes have been silent.
    watch: std::sync::Mutex<Watch>,
}

impl Inner {
    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Goes on only when the database is likely to answer.
    fn gate(&self, during: &str) -> StoreResult<()> {
        let why = match *self.state.borrow() {
            State::Ready | State::Leaving => return Ok(()),
            State::Unprepared => "the database has not answered yet",
            State::Away => "the database does not answer",
            State::Fenced => "another node has taken over from this one",
            State::Gone => "this node has said goodbye",
        };
        Err(StoreError::Unavailable(format!("{during}: {why}")))
    }

    fn set_state(&self, new: State) {
        self.state.send_if_modified(|state| {
            let changed = match *state {
                State::Fenced | State::Gone => false,
                State::Leaving => new == State::Gone,
                _ => *state != new,
            };

            if changed {
                if *state == State::Away && new == State::Ready {
                    log::info!("the database answers again");
                }
                *state = new;
            }
            changed
        });
    }

    /// Whether there may be other nodes.
    fn has_others(&self) -> bool {
        AtomicBool::load(&self.others, Ordering::Relaxed)
    }

    /// Another node has said something.
    fn met_others(&self) {
        self.others.store(true, Ordering::Relaxed);
    }

    fn set_away(&self, error: &str) {
        if *self.state.borrow() == State::Ready {
            log::warn!(error; "the database does not answer; calls are refused until it does");
        }
        self.set_state(State::Away);
    }

    /// Counters of commands have a lane of their own: they never wait for those of outcomes.
    fn lane(&self, of: &str) -> String {
        format!("{}/{of}", self.incarnation)
    }
}

impl PostgresStore {
    /// Checks the settings, and the files they name, without connecting.
    ///
    /// # Errors
    /// When the settings can't be used.
    pub fn check(settings: &Config) -> StoreResult<()> {
        Connector::new(settings).map(|_| ()).map_err(StoreError::Unusable)
    }

    /// For the database that the settings name. Nothing is connected before [`Store::prepare`].
    ///
    /// # Errors
    /// When the settings can't be used.
    pub fn new(settings: &Config) -> StoreResult<Self> {
        let connector = Connector::new(settings).map_err(StoreError::Unusable)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("odoshi-postgres")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unusable(error.to_string()))?;
        let (told, heard) = mpsc::channel(hints::WAITING);
        let inner = Inner {
            pool: pool(connector.clone(), settings.store.pool_size).map_err(StoreError::Unusable)?,
            connector,
            incarnation: Uuid::now_v7().to_string(),
            clock: Clock::new(),
            state: watch::Sender::new(State::Unprepared),
            notify: settings.node.notify,
            others: AtomicBool::new(true),
            told,
            watch: std::sync::Mutex::new(Watch::new(settings.node.heartbeat.0)),
        };
        Ok(Self {
            heard: Mutex::new(heard),
            inner: Arc::new(inner),
            preparing: Mutex::new(()),
            failing_since: OnceLock::new(),
            heartbeat: settings.node.heartbeat.0,
            dead_after: settings.node.dead_after.0,
            warn_transaction: settings.store.warn_transaction.0,
            runtime: Some(runtime),
        })
    }

    /// Moves the store's time away from the database's clock, for tests.
    pub fn set_offset(&self, millis: i64) {
        self.inner.clock.set_offset(millis);
    }

    /// See [`token_insert_alone`](crate::store::token_insert_alone).
    ///
    /// # Errors
    /// As there.
    pub(super) async fn token_insert_alone(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (inner, token, by) = (self.inner.clone(), token.clone(), by.clone());
        self.run(async move {
            let mut conn = inner.connector.connect().await.map_err(not_connected)?;
            let insert = conn.transaction(async move |conn| tokens::insert(conn, &token, hash.clone(), &by).await);
            let inserted = insert.await;
            inserted.map_err(|error| error::sort("token_insert", error, conn.code()))
        })
        .await
    }

    /// Runs on the store's runtime, to its end even if the caller goes away.
    async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = StoreResult<T>> + Send + 'static,
    ) -> StoreResult<T> {
        let Some(runtime) = &self.runtime else { return Err(StoreError::Unavailable("it is closed".into())) };
        let done = runtime.spawn(task).await;
        done.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("a call of the store crashed: {error}"))))
    }

    async fn read<T: Send + 'static>(&self, during: &'static str, body: Body<T>) -> StoreResult<T> {
        let inner = self.inner.clone();
        self.run(async move { inner.call(during, Access::Read, &body).await }).await
    }

    async fn write<T: Send + 'static>(&self, during: &'static str, body: Body<T>) -> StoreResult<T> {
        let inner = self.inner.clone();
        self.run(async move { inner.call(during, Access::Write, &body).await }).await
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn pool(connector: Connector, size: usize) -> Result<Pool<Connector>, String> {
    Pool::builder(connector)
        .max_size(size.max(1))
        .runtime(deadpool::Runtime::Tokio1)
        .wait_timeout(Some(WAIT_FOR_CONNECTION))
        .build()
        .map_err(|error| error.to_string())
}

/// Sorts what went wrong with a connect.
fn not_connected(error: ConnectionError) -> StoreError {
    match error {
        ConnectionError::InvalidConnectionUrl(told) => StoreError::Unusable(told),
        ConnectionError::BadConnection(told) => StoreError::Unavailable(told),
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// Refuses a database that can't keep every text. Its encoding is chosen when it is made and can't be changed.
async fn check_encoding(conn: &mut Connected) -> StoreResult<()> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        encoding: String,
        #[diesel(sql_type = Text)]
        database: String,
    }
    let asked = sql("SELECT current_setting('server_encoding') AS encoding, current_database()::text AS database");
    let Row { encoding, database } =
        asked.get_result(&mut **conn).await.map_err(|error| error::sort("server_encoding", error, conn.code()))?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "the database {database:?} has the encoding {encoding}, which cannot keep every text; only UTF8 is supported. \
         Make another one, copy into it what is to be kept, and name it in store.url: \
         CREATE DATABASE odoshi ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0"
    )))
}

/// Brings the tables up to date. Others that start at the same moment wait, and find nothing left to be done.
async fn migrate(mut conn: Connected) -> StoreResult<()> {
    async fn begin(conn: &mut AsyncPgConnection) -> QueryResult<()> {
        conn.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
        sql("SELECT pg_advisory_lock(?)").bind(MIGRATING).execute(conn).await?;
        conn.batch_execute(&format!("SET lock_timeout = {}", MIGRATION_WAITS.as_millis())).await
    }
    begin(&mut conn).await.map_err(|error| error::sort("migrate", error, conn.code()))?;
    // The harness is a blocking one. The lock goes with the connection.
    let migrated = tokio::task::spawn_blocking(move || {
        let mut harness: AsyncConnectionWrapper<AsyncPgConnection> = conn.into_inner().into();
        harness.run_pending_migrations(MIGRATIONS).map(|_| ()).map_err(|error| error.to_string())
    });
    match migrated.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(StoreError::Unusable(format!("its tables cannot be brought up to date: {error}"))),
        Err(error) => Err(StoreError::Unusable(error.to_string())),
    }
}
