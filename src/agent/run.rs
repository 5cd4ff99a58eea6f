//! One run of one command: its operations in order until one fails.

use super::modules::{Call, Modules, Outcome, Stop, StopReason};
use super::processes::Trace;
use crate::domain::fit::{self, cut_text};
use crate::domain::protocol::{Command, OperationResult, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// How long a module may take to stop (a process is killed and its output read).
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The server's limit; a run with more operations isn't started.
const MAX_OPERATIONS: usize = 64;
/// A module's name in a result is cut to this many bytes.
const MAX_MODULE: usize = 128;
/// An error in a result is cut to this many bytes.
const MAX_ERROR: usize = 4 * 1024;
/// Maximum size of all outputs of a result in a frame. The rest of the 4 MiB is for errors and
/// names.
const MAX_OUTPUTS: usize = 3 * 1024 * 1024;
/// The part of it that is reserved for every later operation, however much the earlier ones wrote.
const RESERVED: usize = 16 * 1024;

/// Runs a command to its end. Never fails: all errors are in the result. A stopped run leaves no
/// process.
pub(super) async fn run(command: Command, modules: Modules, trace: Trace, mut stop: Stop) -> RunResult {
    let started_at = Timestamp::of_this_machine();
    let mut result = RunResult {
        action: command.action,
        run: command.run,
        status: RunStatus::Succeeded,
        results: Vec::new(),
        started_at: Some(started_at),
        finished_at: None,
    };
    match command.operations.parse() {
        Ok(operations) if operations.len() <= MAX_OPERATIONS => {
            let mut room = MAX_OUTPUTS;
            let count = operations.len();
            for (at, operation) in operations.into_iter().enumerate() {
                let call = Call {
                    parameters: operation.parameters,
                    scheduled_for: command.scheduled_for,
                    stop: stop.clone(),
                    trace: trace.clone(),
                };
                let outcome = one(&operation.module, &modules, call, &mut stop).await;
                if outcome.stopped.is_some() {
                    // Includes processes that earlier operations left running.
                    trace.kill().await;
                }
                let limit = room.saturating_sub((count - at - 1) * RESERVED);
                let (done, used) = operation_result(operation.module, outcome, limit, &mut result.status);
                room = room.saturating_sub(used);
                result.results.push(done);
                if result.status != RunStatus::Succeeded {
                    break;
                }
            }
        }
        Ok(operations) => {
            let error = format!("{} operations are more than {MAX_OPERATIONS}", operations.len());
            refuse(&mut result, error);
        }
        Err(error) => refuse(&mut result, format!("operations: {error}")),
    }
    trace.ended();
    result.finished_at = Some(Timestamp::of_this_machine());
    result
}

async fn one(module: &str, modules: &Modules, call: Call, stop: &mut Stop) -> Outcome {
    if let Some(reason) = stop.now() {
        return Outcome::stopped(reason);
    }
    let module = match modules.find(module) {
        Ok(module) => module,
        Err(error) => return Outcome::failed(error),
    };
    let calling = AssertUnwindSafe(module.call(call)).catch_unwind();
    tokio::select! {
        biased;
        outcome = calling => outcome.unwrap_or_else(|_| Outcome::failed("the module panicked")),
        reason = async {
            let reason = stop.wait().await;
            tokio::time::sleep(STOP_GRACE).await;
            reason
        } => Outcome::stopped(reason),
    }
}

fn operation_result(
    module: String,
    outcome: Outcome,
    limit: usize,
    status: &mut RunStatus,
) -> (OperationResult, usize) {
    *status = match outcome.stopped {
        Some(StopReason::TimedOut) => RunStatus::TimedOut,
        Some(StopReason::Cancelled) => RunStatus::Cancelled,
        Some(_) => RunStatus::Failed,
        None if outcome.ok => RunStatus::Succeeded,
        None => RunStatus::Failed,
    };
    let (output, cut) = match outcome.output {
        Some(output) => fit::cut(output, limit),
        None => (None, false),
    };
    let used = output.as_ref().map_or(0, |output| output.get().len());
    let result = OperationResult {
        module: cut_text(module, MAX_MODULE),
        ok: *status == RunStatus::Succeeded,
        output,
        error: outcome.error.map(|error| cut_text(error, MAX_ERROR)),
        truncated: outcome.truncated || cut,
        lossy: outcome.lossy,
    };
    (result, used)
}

fn refuse(result: &mut RunResult, error: String) {
    result.status = RunStatus::Failed;
    result.results.push(without_output(String::new(), error));
}

/// The agent's own error for a run, when no operation reports one.
pub(super) fn without_output(module: String, error: String) -> OperationResult {
    OperationResult { module, ok: false, output: None, error: Some(error), truncated: false, lossy: false }
}

/// The module of a command with just one operation, otherwise nothing.
pub(super) fn only_module(command: &Command) -> String {
    match command.operations.parse() {
        Ok(mut operations) if operations.len() == 1 => cut_text(std::mem::take(&mut operations[0].module), MAX_MODULE),
        _ => String::new(),
    }
}
