//! Opening the store that the settings name.

use super::contract::Store;
use super::error::StoreResult;
use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::tokens::Tokens;
use crate::config::Config;
use crate::domain::agent::Token;
use crate::domain::audit::Author;
use std::path::PathBuf;
use std::sync::Arc;

/// The file of a `sqlite://` URL. `None` for the URL of another database.
pub fn sqlite_path(url: &str) -> Option<PathBuf> {
    url.strip_prefix("sqlite://").map(PathBuf::from)
}

/// Checks the settings of the store, and the files that they name, without connecting.
///
/// # Errors
/// Says which key is wrong, and how.
pub fn check(settings: &Config) -> StoreResult<()> {
    match sqlite_path(settings.store_url().expose()) {
        Some(_) => Ok(()),
        None => PostgresStore::check(settings),
    }
}

/// Opens the store that the settings name. [Prepare](Store::prepare) it before anything else.
///
/// # Errors
/// When the store can't be used as it is configured. A database that does not answer is not an
/// error here.
pub async fn open(settings: &Config) -> StoreResult<Arc<dyn Store>> {
    let store: Arc<dyn Store> = match sqlite_path(settings.store_url().expose()) {
        Some(path) => Arc::new(SqliteStore::open(&path, settings.store.pool_size).await?),
        None => Arc::new(PostgresStore::new(settings)?),
    };
    store.hook_register(settings.hook_listeners());
    Ok(store)
}

/// Inserts a token into the store that the settings name without becoming a node, while another
/// process may serve the store. On SQLite: no other process may have the file open.
///
/// # Errors
/// When the store can't be used, or its tables are of an older version.
pub async fn token_insert_alone(settings: &Config, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
    match sqlite_path(settings.store_url().expose()) {
        Some(path) => SqliteStore::open(&path, 1).await?.token_insert(token, hash, by).await,
        None => PostgresStore::new(settings)?.token_insert_alone(token, hash, by).await,
    }
}
