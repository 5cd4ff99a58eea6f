//! The rows of the assets, and the notes of originals that are to be removed.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Rows to read at a time.
const PAGE: i64 = 1_000;

diesel::table! {
    assets (id) {
        id -> BigInt,
        client -> BigInt,
        name -> Text,
        path -> Text,
        size -> BigInt,
        checksum -> Text,
    }
}

diesel::table! {
    removals (asset) {
        asset -> BigInt,
        original -> Text,
        recorded_at -> BigInt,
    }
}

diesel::joinable!(removals -> assets (asset));
diesel::allow_tables_to_appear_in_same_query!(assets, removals);

// Names are unique per client: of two assets with the same new place one would be lost.
const SCHEMA: &str = "
    PRAGMA busy_timeout = 60000;
    PRAGMA journal_mode = WAL;
    -- A removal can't be undone, so what it relies on must be on the disk.
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS assets (
        id INTEGER PRIMARY KEY,
        client INTEGER NOT NULL,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        size INTEGER NOT NULL,
        checksum TEXT NOT NULL,
        UNIQUE (client, name)
    ) STRICT;
    CREATE INDEX IF NOT EXISTS assets_by_path ON assets (path);
    CREATE TABLE IF NOT EXISTS removals (
        asset INTEGER PRIMARY KEY REFERENCES assets,
        original TEXT NOT NULL,
        recorded_at INTEGER NOT NULL
    ) STRICT;
";

/// A row: whose object it is, where it is, and what it holds.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = assets)]
pub struct Asset {
    pub id: i64,
    pub client: i64,
    pub name: String,
    pub path: String,
    pub size: i64,
    /// SHA-256, in hex.
    pub checksum: String,
}

/// An original that no reader needs once the grace period is over.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = removals)]
pub struct Removal {
    pub asset: i64,
    pub original: String,
    /// Milliseconds since 1970.
    pub recorded_at: i64,
}

/// A row that gets a new path.
#[derive(Clone, Debug)]
pub struct Change {
    pub asset: i64,
    pub from: String,
    pub to: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("can't open the database {file}")]
    Open { file: String, source: ConnectionError },
    #[error("the database failed")]
    Query(#[from] diesel::result::Error),
    #[error("a query panicked")]
    Panicked,
}

/// One connection: SQLite has one writer at a time anyway. It blocks, so queries run on threads for that.
#[derive(Clone)]
pub struct Database(Arc<Mutex<SqliteConnection>>);

impl Database {
    pub fn open(file: &Path) -> Result<Self, DatabaseError> {
        let url = file.display().to_string();
        let mut connection =
            SqliteConnection::establish(&url).map_err(|source| DatabaseError::Open { file: url, source })?;
        connection.batch_execute(SCHEMA)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    async fn query<T, F>(&self, query: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        F: FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    {
        let connection = self.0.clone();
        let run = move || {
            let mut connection = connection.lock().map_err(|_| DatabaseError::Panicked)?;
            Ok(query(&mut connection)?)
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| DatabaseError::Panicked)?
    }

    pub async fn rows(&self) -> Result<u64, DatabaseError> {
        self.query(|c| assets::table.count().get_result::<i64>(c)).await.map(i64::unsigned_abs)
    }

    /// All rows or none.
    pub async fn insert(&self, rows: Vec<Asset>) -> Result<(), DatabaseError> {
        self.query(move |c| {
            c.immediate_transaction(|c| {
                rows.chunks(1_000)
                    .try_for_each(|rows| diesel::insert_into(assets::table).values(rows).execute(c).map(drop))
            })
        })
        .await
    }

    /// The next rows after the key `after`, with their removals. None after the last one.
    pub async fn page(&self, after: i64) -> Result<Vec<(Asset, Option<Removal>)>, DatabaseError> {
        self.query(move |c| {
            assets::table
                .left_join(removals::table)
                .filter(assets::id.gt(after))
                .order(assets::id)
                .limit(PAGE)
                .select((Asset::as_select(), Option::<Removal>::as_select()))
                .load(c)
        })
        .await
    }

    /// Changes the paths of rows, and notes their originals for removal, in one transaction. A row that doesn't have its
    /// former path any more is left as it is: `None`.
    pub async fn record(&self, changes: Vec<Change>, now: i64) -> Result<Vec<Option<Removal>>, DatabaseError> {
        let record = move |c: &mut SqliteConnection, Change { asset, from, to }| {
            let row = assets::table.filter(assets::id.eq(asset).and(assets::path.eq(&from)));
            if diesel::update(row).set(assets::path.eq(to)).execute(c)? == 0 {
                return Ok(None);
            }
            let removal = Removal { asset, original: from, recorded_at: now };
            diesel::replace_into(removals::table).values(&removal).execute(c)?;
            Ok(Some(removal))
        };
        self.query(move |c| c.immediate_transaction(|c| changes.into_iter().map(|change| record(c, change)).collect()))
            .await
    }

    /// Whether a row points to this path.
    pub async fn is_in_use(&self, path: String) -> Result<bool, DatabaseError> {
        self.query(move |c| {
            diesel::select(diesel::dsl::exists(assets::table.filter(assets::path.eq(path)))).get_result(c)
        })
        .await
    }

    /// Deletes the notes of originals that were removed.
    pub async fn forget(&self, removed: Vec<i64>) -> Result<(), DatabaseError> {
        self.query(move |c| {
            c.immediate_transaction(|c| {
                diesel::delete(removals::table.filter(removals::asset.eq_any(removed))).execute(c).map(drop)
            })
        })
        .await
    }
}
