//! What a server needs before its actors can work: its folder, its store, and the first admin
//! token.

use super::error::{AppError, io_error};
use crate::config::Config;
use crate::domain::agent::{Role, Secret, Token};
use crate::domain::audit::Author;
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::store::{self, Store};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a start waits for another process to release the lock of the SQLite file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait for a store that is away.
const WAIT_MIN: Duration = Duration::from_millis(250);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(2);

pub(super) fn make_private_folder(folder: &Path) -> Result<(), AppError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(io_error(format!("data_dir {}", folder.display())))
}

/// Locks a SQLite store's file, which only one process may use.
pub(super) async fn lock_store(config: &Config) -> Result<Option<File>, AppError> {
    match store::sqlite_path(config.store_url().expose()) {
        Some(path) => Ok(Some(lock_beside(&path).await?)),
        None => Ok(None),
    }
}

/// Prepares the store and registers this process. A start that fails for good leaves no node
/// behind.
pub(super) async fn prepare(store: &dyn Store, config: &Config, transports: &[String]) -> Result<(), AppError> {
    let prepared = async {
        store.prepare().await?;
        store.node_start(&config.node_name(), transports).await?;
        make_admin_token(store, &config.data_dir).await
    };
    let prepared = prepared.await;
    if prepared.as_ref().is_err_and(|error| !error.may_pass())
        && let Err(error) = store.node_stop().await
    {
        log::debug!(error:% = error.chain(); "a start that failed leaves no node to sign off");
    }
    prepared
}

/// The same, with retries while the store is away.
pub(super) async fn prepare_patiently(
    store: Arc<dyn Store>,
    config: Config,
    transports: Vec<String>,
) -> Result<(), AppError> {
    let mut wait = WAIT_MIN;
    loop {
        match prepare(&*store, &config, &transports).await {
            Err(error) if error.may_pass() => {
                log::warn!(error:% = error.chain(), again_in_ms = wait.as_millis() as u64;
                    "the server waits for its store");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(WAIT_MAX);
            }
            done => {
                if done.is_ok() {
                    log::info!(store:% = config.store_url(); "the store is there; actions are accepted");
                }
                return done;
            }
        }
    }
}

async fn lock_beside(database: &Path) -> Result<File, AppError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        make_private_folder(folder)?;
    }
    let what = format!("the lock {}", path.display());
    let file =
        File::options().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(io_error(&what))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A process that was just killed may not have exited yet.
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(AppError::InUse(database.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io_error(what)(error)),
        }
    }
}

/// Writes a new admin token into the configured store and returns it, for users who have lost
/// theirs.
///
/// # Errors
/// If there is no such store, a server uses its SQLite file, or it can't be written.
pub async fn reset_admin_token(config: &Config) -> Result<Secret, AppError> {
    let _lock = match store::sqlite_path(config.store_url().expose()) {
        // A missing store would be created, and its token would be useless.
        Some(path) if !path.exists() => return Err(io_error(path.display())(io::ErrorKind::NotFound.into())),
        Some(path) => Some(lock_beside(&path).await?),
        None => None,
    };
    let secret = Secret::random();
    let token = admin_token("reset", Timestamp::of_this_machine());
    store::token_insert_alone(config, &token, secret.hash(), &Author::server("token reset")).await?;
    Ok(secret)
}

fn admin_token(name: &str, created_at: Timestamp) -> Token {
    Token {
        id: Uuid::now_v7(),
        role: Role::Admin,
        name: name.into(),
        agent_no: None,
        created_at,
        expires_at: None,
        revoked_at: None,
        is_unused: false,
    }
}

/// Gives a store without an admin token one, and writes it to `admin.token`, readable only by its
/// owner.
async fn make_admin_token(store: &dyn Store, data_dir: &Path) -> Result<(), AppError> {
    if store.token_any_admin().await? {
        return Ok(());
    }
    let secret = Secret::random();
    let path = data_dir.join("admin.token");
    let write = || -> io::Result<()> {
        // The file comes first. If only the store had the token, no user could log in.
        let mut file = tempfile::Builder::new().prefix(".admin").tempfile_in(data_dir)?;
        writeln!(file, "{}", secret.reveal())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(data_dir)?.sync_all()
    };
    write().map_err(io_error(path.display()))?;
    let token = admin_token("the first admin", store.now());
    store.token_insert(&token, secret.hash(), &Author::server("server")).await?;
    log::info!(file:% = path.display(); "an admin token was made");
    Ok(())
}
