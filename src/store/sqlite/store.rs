//! The store on SQLite: its connections, and how a call reaches the file.
//!
//! One connection writes, a few read (WAL: they don't wait for each other). Each call runs as one
//! closure on a blocking thread through diesel_async's sync wrapper, with the whole transaction
//! inside: a caller that goes away can't leave one open, and a batch pays for one hop between
//! threads, not for one per statement.
//!
//! Calls run on a runtime of the store's own, to their end even if the caller goes away. The sync
//! wrapper blocks its thread when a call is dropped, which panics on an actor's runtime.
//!
//! `synchronous` is FULL: a commit survives the machine's crash, and batches make that affordable.

use super::error::sort;
use super::functions;
use crate::store::sql::hooks::Registered;
use crate::store::{StoreError, StoreResult};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use uuid::Uuid;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// How long a call waits for a connection before the store counts as busy.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(10);

/// For every connection. The writer's checkpoint runs each 16 MiB of WAL; a reader's cache stays at
/// 4 MiB.
const SETUP: &str = "PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; \
     PRAGMA wal_autocheckpoint = 4096; PRAGMA foreign_keys = ON; \
     PRAGMA cache_size = -4096;";

type Wrapped = SyncConnectionWrapper<SqliteConnection>;

/// A store in one SQLite file, for one node.
pub struct SqliteStore {
    writer: Pool<Wrapped>,
    readers: Pool<Wrapped>,
    /// `None` while it is being dropped.
    runtime: Option<Runtime>,
    /// This process, and the lane of its counters.
    pub(super) incarnation: String,
    /// The hooks, each with its events.
    pub(super) hooks: Registered,
    /// What tests add to this machine's clock, in milliseconds.
    pub(super) offset: AtomicI64,
}

impl SqliteStore {
    /// Opens the file at `path`, creates it if it does not exist, and brings its tables up to date.
    ///
    /// # Errors
    /// When the file can't be opened or isn't a database of this version.
    pub async fn open(path: &Path, readers: usize) -> StoreResult<Self> {
        let unusable = |error: String| StoreError::Unusable(format!("{}: {error}", path.display()));
        let Some(file) = path.to_str().map(str::to_owned) else {
            return Err(unusable("the path is not UTF-8".into()));
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|error| unusable(error.to_string()))?;
        }
        // SQLite gives its journal the mode of the file: results are for the server alone to read.
        let made = File::options().create(true).append(true).mode(0o600).open(path);
        drop(made.map_err(|error| unusable(error.to_string()))?);
        let migrated = {
            let file = file.clone();
            tokio::task::spawn_blocking(move || migrate(&file)).await
        };
        migrated.map_err(|error| unusable(error.to_string()))?.map_err(unusable)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("odoshi-sqlite")
            .enable_all()
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            runtime: Some(runtime),
            writer: pool(&file, "PRAGMA cache_size = -32768;", 1).map_err(unusable)?,
            readers: pool(&file, "PRAGMA query_only = ON;", readers.max(1)).map_err(unusable)?,
            incarnation: Uuid::now_v7().to_string(),
            hooks: Registered::default(),
            offset: AtomicI64::new(0),
        })
    }

    /// Moves the store's time away from this machine's clock, for tests.
    pub fn set_offset(&self, millis: i64) {
        self.offset.store(millis, Ordering::Relaxed);
    }

    async fn run<T: Send + 'static>(
        &self,
        pool: &Pool<Wrapped>,
        during: &'static str,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let Some(runtime) = &self.runtime else { return Err(StoreError::Unavailable("it is closed".into())) };
        let pool = pool.clone();
        let call = runtime.spawn(async move {
            let connection = pool.get().await;
            let mut connection = connection.map_err(|error| StoreError::Unavailable(format!("{during}: {error}")))?;
            connection.spawn_blocking(task).await.map_err(|error| sort(during, error))
        });
        call.await.unwrap_or_else(|error| match error.try_into_panic() {
            // A fault of the call's own code is its caller's.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::Unavailable(format!("{during}: {error}"))),
        })
    }

    /// Runs statements that only read, in one snapshot.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        during: &'static str,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.run(&self.readers, during, move |conn| conn.transaction(|conn| then_fault(during, conn, task))).await
    }

    /// Runs statements in one transaction.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        during: &'static str,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.run(&self.writer, during, move |conn| conn.immediate_transaction(|conn| then_fault(during, conn, task)))
            .await
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped on a thread that must not block.
            runtime.shutdown_background();
        }
    }
}

/// Runs the task, then the fault point of the call: everything is done but the commit.
fn then_fault<T>(
    _during: &'static str,
    conn: &mut SqliteConnection,
    task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    let done = task(conn)?;
    crate::fault_point!(_during);
    Ok(done)
}

fn migrate(file: &str) -> Result<(), String> {
    let mut conn = SqliteConnection::establish(file).map_err(|error| error.to_string())?;
    conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL;").map_err(|error| error.to_string())?;
    conn.run_pending_migrations(MIGRATIONS).map_err(|error| error.to_string())?;
    Ok(())
}

fn pool(file: &str, setup: &'static str, size: usize) -> Result<Pool<Wrapped>, String> {
    let mut config = ManagerConfig::<Wrapped>::default();
    config.custom_setup = Box::new(move |file| {
        let file = file.to_owned();
        Box::pin(async move {
            let opened = tokio::task::spawn_blocking(move || {
                let mut conn = SqliteConnection::establish(&file)?;
                conn.batch_execute(SETUP).map_err(ConnectionError::CouldntSetupConfiguration)?;
                conn.batch_execute(setup).map_err(ConnectionError::CouldntSetupConfiguration)?;
                functions::register(&mut conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
                Ok(SyncConnectionWrapper::new(conn))
            });
            opened.await.unwrap_or_else(|error| Err(ConnectionError::BadConnection(error.to_string())))
        })
    });
    Pool::builder(AsyncDieselConnectionManager::new_with_config(file, config))
        .max_size(size)
        .runtime(deadpool::Runtime::Tokio1)
        .wait_timeout(Some(WAIT_FOR_CONNECTION))
        .build()
        .map_err(|error| error.to_string())
}

/// A batch as one JSON array, to be bound and taken apart by `json_each`.
pub(super) fn json<T: serde::Serialize + ?Sized>(rows: &T) -> QueryResult<String> {
    serde_json::to_string(rows).map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_call_that_is_dropped_in_the_middle_harms_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(&folder.path().join("test.db"), 2).await.expect("a store");
        for micros in (0..2_000).step_by(20) {
            let dropped = tokio::time::timeout(Duration::from_micros(micros), store.ping()).await;
            assert!(dropped.is_err() || matches!(dropped, Ok(Ok(()))), "{dropped:?}");
        }
        store.ping().await.expect("it answers");
    }
}
