//! The store on SQLite: its connections, and how a call reaches the file.
//!
//! One connection writes, a few read (WAL: they don't wait for each other). Each call is one closure with the whole
//! transaction inside, on a [thread of its connection](super::threads): a caller that goes away can't leave one open,
//! and a batch pays for one hop between threads, not for one per statement.
//!
//! `synchronous` is FULL: a commit survives the machine's crash, and batches make that affordable.

use super::error::sort;
use super::functions;
use super::threads::Threads;
use crate::store::sql::hooks::Registered;
use crate::store::{StoreError, StoreResult};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use uuid::Uuid;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// For every connection. The writer's checkpoint runs each 16 MiB of WAL; a reader's cache stays at
/// 4 MiB.
const SETUP: &str = "PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; \
     PRAGMA wal_autocheckpoint = 4096; PRAGMA foreign_keys = ON; \
     PRAGMA cache_size = -4096;";

/// A store in one SQLite file, for one node.
pub struct SqliteStore {
    writer: Threads,
    readers: Threads,
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
        Ok(Self {
            writer: threads(&file, "PRAGMA cache_size = -32768;", 1),
            readers: threads(&file, "PRAGMA query_only = ON;", readers.max(1)),
            incarnation: Uuid::now_v7().to_string(),
            hooks: Registered::default(),
            offset: AtomicI64::new(0),
        })
    }

    /// Moves the store's time away from this machine's clock, for tests.
    pub fn set_offset(&self, millis: i64) {
        self.offset.store(millis, Ordering::Relaxed);
    }

    /// Runs statements that only read, in one snapshot.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        during: &'static str,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let read = move |conn: &mut SqliteConnection| conn.transaction(|conn| then_fault(during, conn, task));
        self.readers.run(during, read, sort).await
    }

    /// Runs statements in one transaction.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        during: &'static str,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let write =
            move |conn: &mut SqliteConnection| conn.immediate_transaction(|conn| then_fault(during, conn, task));
        self.writer.run(during, write, sort).await
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

/// Connections to the file.
fn threads(file: &str, setup: &'static str, size: usize) -> Threads {
    let file = file.to_owned();
    Threads::new(size, move || {
        let mut conn = SqliteConnection::establish(&file)?;
        conn.batch_execute(SETUP).map_err(ConnectionError::CouldntSetupConfiguration)?;
        conn.batch_execute(setup).map_err(ConnectionError::CouldntSetupConfiguration)?;
        functions::register(&mut conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(conn)
    })
}

/// A batch as one JSON array, to be bound and taken apart by `json_each`.
pub(super) fn json<T: serde::Serialize + ?Sized>(rows: &T) -> QueryResult<String> {
    serde_json::to_string(rows).map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use std::time::Duration;

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
