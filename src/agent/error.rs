//! Errors that an agent ends with.

use super::journal::JournalError;
use std::io;
use std::path::PathBuf;

/// Why an agent cannot work. Network errors are not among these: an agent retries forever.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is wrong; the text begins with its key.
    #[error("{0}")]
    Config(String),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A token cannot be read or written.
    #[error("the token in {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A check-in that is not repeated ([`Agent::run_once`](super::Agent::run_once)) failed.
    #[error("check-in: {0}")]
    CheckIn(String),
    /// The server refuses the agent: its name is taken, or its enroll token is not valid.
    #[error("agent \"{name}\" can't enroll: {reason}")]
    Enroll {
        /// The agent's name.
        name: String,
        /// The server's reason.
        reason: String,
    },
}
