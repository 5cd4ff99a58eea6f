//! The journal's folder: its lock, and how files in it are opened and made safe.

use super::error::JournalError;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait for the folder's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Locks the folder. Waits for a moment if the lock is held: an agent that was just killed may not
/// have exited, or a child of it may not have executed its program yet.
#[allow(clippy::disallowed_methods, reason = "the journal is used where blocking is allowed")]
pub(super) fn lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("lock");
    let lock = options().write(true).open(&path).map_err(io_error("open", &path))?;
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::WouldBlock) if started.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(JournalError::Locked(dir.to_path_buf())),
            Err(fs::TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
    }
}

pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).mode(0o600);
    options
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError + use<> {
    let path = path.to_path_buf();
    move |source| JournalError::Io { what, path: path.clone(), source }
}

/// Makes a new name in the folder durable.
pub(in crate::agent) fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|file| file.sync_all()).map_err(io_error("sync", dir))
}
