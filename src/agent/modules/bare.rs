//! Runs a program that no action asked for: what it prints is reported as metadata.

use super::{Stop, environment, process};
use crate::agent::config::Bounds;
use crate::agent::processes::Trace;
use crate::domain::protocol::RunRef;
use std::io;
use tokio::process::Command;
use uuid::Uuid;

/// How a program ended.
pub(in crate::agent) struct Bare {
    pub(in crate::agent) stdout: String,
    /// Whether it wrote more than that.
    pub(in crate::agent) truncated: bool,
    /// The beginning of what it wrote to standard error, trimmed.
    pub(in crate::agent) stderr: String,
    /// Why it failed.
    pub(in crate::agent) error: Option<String>,
}

/// Runs a program to its end. Its processes are killed when `stop` says so, and when the future is dropped. From the
/// agent's environment it gets the basic variables and those named in `env`.
pub(in crate::agent) async fn run_bare(
    argv: &[String],
    env: &[String],
    bounds: Bounds,
    mut stop: Stop,
) -> io::Result<Bare> {
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments);
    environment::minimal(&mut command, env, None);
    // It is in no journal: what is left of it after a crash of the agent is found by nobody but the kernel.
    let trace = Trace::new(RunRef { action: Uuid::nil(), run: 0 }, Uuid::new_v4(), None);
    let ended = process::run(command, None, bounds, &trace, &mut stop).await;
    trace.ended();
    let ended = ended?;
    let ((stdout, _), (stderr, _)) = (ended.stdout.text(), ended.stderr.text());
    Ok(Bare { stdout, truncated: ended.stdout.truncated, stderr: stderr.trim().to_owned(), error: ended.error() })
}
