//! Why a server can't start, or had to stop.

use crate::config::ConfigError;
use crate::store::StoreError;
use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address can't be listened on, or its certificate can't be used.
    #[error("{0}")]
    Listen(String),
    /// A sender's settings, or the files that they name, can't be used.
    #[error("{0}")]
    Sender(String),
    /// The limit of open files is too low.
    #[error(
        "this process may open {limit} files, and a server needs at least {needed}: \
         raise the limit (ulimit -n, or LimitNOFILE= in the unit)"
    )]
    OpenFiles {
        /// The limit.
        limit: u64,
        /// The number that is needed.
        needed: usize,
    },
    /// A file, a folder or an address can't be used.
    #[error("{what}")]
    Io {
        /// The file, folder or address.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// There are hooks in the settings, and nothing that sends to them.
    #[error("[[hook]] is set, and this server was built without a client for hooks")]
    NoHookClient,
    /// Another process uses the store.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// Another node has taken over from this one.
    #[error("another node has taken over from this one, which was silent for too long; it is to be started anew")]
    TakenOver,
    /// An actor exceeded its restart budget.
    #[error("the actor {0} crashed too often; the server has stopped so that it can be started anew")]
    Exhausted(&'static str),
    /// The deadline passed before everything was finished. The rest is in the store.
    #[error("shutdown_timeout passed before everything was finished; what was not is taken up at the next start")]
    Deadline,
    /// A second signal came before everything was finished. The rest is in the store.
    #[error("a second signal came before everything was finished; what was not is taken up at the next start")]
    Interrupted,
}

impl AppError {
    /// Whether trying again later can help.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

pub(super) fn io_error(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> AppError {
    move |source| AppError::Io { what: what.to_string(), source }
}
