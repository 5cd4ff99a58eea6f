//! The result of a subcommand.

use std::error::Error;
use std::process::ExitCode;

/// The end of a subcommand: an exit code, or an error to print.
pub(super) type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The arguments are malformed or contradict each other. The exit code is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);
