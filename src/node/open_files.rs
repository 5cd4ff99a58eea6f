//! The limit of open files, and its division.
//!
//! A connection is an open file. Without a limit of their own, connections take the last open file,
//! and then the spool cannot be read and the store cannot reconnect. So the files for store, spool
//! and the process itself are set aside, and connections get the rest.

use super::error::AppError;
use crate::config::Config;
use nix::sys::resource::{Resource, getrlimit};

/// Files of the process itself: standard streams, event loops, listener, file notification, locks,
/// and files open for a moment.
const PROCESS: usize = 64;
/// Files per pooled connection of the store. SQLite has the database, its log and its shared memory
/// open.
const PER_STORE_CONNECTION: usize = 3;
/// The store's connections outside the pool: heartbeat, notifications, and a replacement for a
/// broken one.
const STORE_EXTRA: usize = 8;
/// Maximum spool files per round. They are open until their actions are stored.
const SPOOL_MAX: usize = 200;
/// The fewest connections with which a server is useful.
const CONNECTIONS_MIN: usize = 32;

/// How the process's open files are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFiles {
    /// Spool files per round.
    pub(super) spool: usize,
    /// Connections that are served.
    pub(super) connections: usize,
    /// Further connections, accepted only to be refused.
    pub(super) refusals: usize,
}

impl OpenFiles {
    /// Divides the process's current limit of open files.
    ///
    /// # Errors
    /// If the limit is too low for a server.
    pub(super) fn plan(config: &Config) -> Result<Self, AppError> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)
            .map_err(|error| AppError::Io { what: "the limit of open files".into(), source: error.into() })?;
        Self::divide(limit, config.store.pool_size, config.http.max_connections)
    }

    fn divide(limit: u64, pool_size: usize, max_connections: usize) -> Result<Self, AppError> {
        let files = usize::try_from(limit).unwrap_or(usize::MAX);
        let spool = (files / 8).clamp(8, SPOOL_MAX);
        let refusals = (files / 16).clamp(8, 256);
        let kept = PROCESS + PER_STORE_CONNECTION * pool_size + STORE_EXTRA + spool + refusals;
        let room = files.saturating_sub(kept);
        if room < CONNECTIONS_MIN {
            return Err(AppError::OpenFiles { limit, needed: kept + CONNECTIONS_MIN });
        }
        Ok(Self { spool, connections: room.min(max_connections), refusals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_store_and_spool_leave() {
        let plan = OpenFiles::divide(1_024, 8, 200_000).expect("enough");
        assert_eq!(plan, OpenFiles { spool: 128, connections: 736, refusals: 64 });
        let plan = OpenFiles::divide(1_048_576, 8, 200_000).expect("enough");
        assert_eq!((plan.connections, plan.spool), (200_000, SPOOL_MAX));
        assert_eq!(OpenFiles::divide(u64::MAX, 8, 10).expect("enough").connections, 10);
    }

    #[test]
    fn a_limit_too_low_for_a_server_is_an_error_with_both_numbers() {
        let error = OpenFiles::divide(100, 8, 200_000).expect_err("too low");
        let text = error.to_string();
        assert!(text.contains("100") && text.contains("ulimit -n"), "{text}");
        let AppError::OpenFiles { needed, .. } = error else { panic!("{text}") };
        assert!(OpenFiles::divide(needed as u64 + 8, 8, 200_000).is_ok(), "what it asks for is about enough");
    }
}
