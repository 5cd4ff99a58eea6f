//! Why a server could not be started, or had to stop.

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
    /// The process may open too few files.
    #[error(
        "this process may open {limit} files, and a server needs at least {needed}: \
         raise the limit (ulimit -n, or LimitNOFILE= in the unit)"
    )]
    OpenFiles {
        /// How many it may open.
        limit: u64,
        /// How many it needs.
        needed: usize,
    },
    /// A file, a folder or an address can't be used.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Another process uses the store.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// Another node has taken over from this one.
    #[error("another node has taken over from this one, which was silent for too long; it is to be started anew")]
    TakenOver,
    /// An actor crashed so often that restarting doesn't help.
    #[error("the actor {0} crashed too often; the server has stopped so that it can be started anew")]
    Exhausted(&'static str),
    /// The deadline came before everything was finished; what wasn't is in the store.
    #[error("shutdown_timeout passed before everything was finished; what was not is taken up at the next start")]
    Deadline,
    /// A second signal came before everything was finished; what wasn't is in the store.
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
