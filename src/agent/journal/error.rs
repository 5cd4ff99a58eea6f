//! Why the journal cannot be used.

use std::io;
use std::path::PathBuf;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system reports an error.
    #[error("can't {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another agent works in the same folder.
    #[error("another agent uses {0}")]
    Locked(PathBuf),
    /// The runtime is shutting down and runs no blocking work.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}
