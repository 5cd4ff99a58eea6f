//! A session's requests to the store: backlogs, and records that are tried again while the outcomes
//! actor restarts.

use super::deps::SessionDeps;
use super::in_flight::result_report;
use crate::domain::action::Action;
use crate::domain::command::{Answer, Event};
use crate::domain::protocol::{Rejected, RunRef, RunResult, Stored};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::runtime::batcher::Verdict;
use crate::senders::contract::{Delivery, SenderContext};
use crate::signals::ActionCache;
use crate::store::{Report, StoreError};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often a record is tried before the session ends.
const RECORD_TRIES: u32 = 6;

/// The result of a finished request.
pub(super) enum Done {
    /// Results: the answer to the agent. `None` if nothing could be recorded.
    Results(Option<Stored>),
    /// Other reports: the answers to those about a run at the agent. `None` if nothing could be
    /// recorded.
    Reports(Option<Vec<(RunRef, Answer)>>),
    /// A part of the backlog, and whether the store has more.
    Backlog(Result<(Vec<Delivery>, bool), StoreError>),
    /// Runs that the agent has from earlier connections, and actions that don't exist.
    Adopted(Vec<(Arc<Action>, i32)>, Vec<Uuid>),
}

/// Reads a part of the backlog: commands that are due now. Those due soon go to the scheduler.
pub(super) async fn backlog(
    deps: &SessionDeps,
    agent_no: i64,
    limit: usize,
) -> Result<(Vec<Delivery>, bool), StoreError> {
    let now = deps.node.store.now();
    let rows = deps.node.store.command_backlog(agent_no, now.plus(deps.node.config.delay.horizon.0), limit).await?;
    let full = rows.len() >= limit;
    let (due, soon): (Vec<_>, Vec<_>) = rows.into_iter().partition(|due| due.due_at <= now);
    // Rows come in due order. If the page contains a later command, no more are due now.
    let more = full && soon.is_empty();
    deps.node.signals.due_soon(soon);
    let mut deliveries = Vec::with_capacity(due.len());
    for due in due {
        if let Some(action) = deps.node.actions.get(due.action_no).await? {
            deliveries.push(Delivery { due, action });
        }
    }
    Ok((deliveries, more))
}

/// Records results, including those of runs that this session didn't deliver, and returns the
/// answer to the agent.
pub(crate) async fn store_results(
    actions: &ActionCache,
    context: &SenderContext,
    agent_no: i64,
    results: Vec<(RunRef, Result<Report, RunResult>)>,
    now: Timestamp,
) -> Option<Stored> {
    let mut stored = Stored::default();
    let (mut runs, mut reports) = (Vec::new(), Vec::new());
    for (run, result) in results {
        let report = match result {
            Ok(report) => report,
            Err(result) => match look_up(actions, run).await? {
                Some(action) => result_report(&action, agent_no, &result, 0, None, false, now),
                None => {
                    let reason = "there is no such action".into();
                    stored.rejected.push(Rejected { action: run.action, run: run.run, reason });
                    continue;
                }
            },
        };
        runs.push((run, matches!(report.event, Event::FoundExpired { .. })));
        reports.push(report);
    }
    log::trace!(agent = agent_no, results = reports.len(); "recording results");
    for ((run, is_expired), answer) in runs.into_iter().zip(record(context, reports).await?) {
        match answer {
            // The run comes again. The reason gives the agent the server's time.
            Ok(Answer::Again { .. }) if is_expired => {
                let reason = format!("it has not expired: the server's time is {}", context.store.now());
                stored.rejected.push(Rejected { action: run.action, run: run.run, reason });
            }
            Ok(Answer::Rejected(reason)) => {
                stored.rejected.push(Rejected { action: run.action, run: run.run, reason });
            }
            Err(error) => {
                stored.rejected.push(Rejected { action: run.action, run: run.run, reason: error.to_string() });
            }
            Ok(_) => stored.commands.push(run),
        }
    }
    log::trace!(agent = agent_no, results = stored.commands.len(); "results recorded");
    Some(stored)
}

/// Finds an action by its public id. The outer `None` means that the store is away.
async fn look_up(actions: &ActionCache, run: RunRef) -> Option<Option<Arc<Action>>> {
    for attempt in 0..RECORD_TRIES {
        match actions.get_by_id(run.action).await {
            Ok(found) => return Some(found),
            Err(error) => log::warn!(error:% = error.chain(); "a result waits for the store"),
        }
        tokio::time::sleep(wait(attempt)).await;
    }
    None
}

/// Records reports, with retries while the outcomes actor restarts.
pub(crate) async fn record(context: &SenderContext, reports: Vec<Report>) -> Option<Vec<Verdict<Answer>>> {
    for attempt in 0..RECORD_TRIES {
        if let Ok(answers) = context.record(reports.clone()).await {
            return Some(answers);
        }
        tokio::time::sleep(wait(attempt)).await;
    }
    None
}

fn wait(attempt: u32) -> Duration {
    Duration::from_millis(50) * (1 << attempt.min(6))
}
