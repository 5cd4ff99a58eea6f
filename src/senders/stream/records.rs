//! What a session asks of the store: backlogs, and records that are tried again while the outcomes are being restarted.

use super::deps::SessionDeps;
use super::in_flight::result_report;
use crate::domain::action::Action;
use crate::domain::command::{Answer, Event};
use crate::domain::protocol::{Rejected, RunRef, RunResult, Stored};
use crate::domain::time::Timestamp;
use crate::runtime::batcher::Verdict;
use crate::senders::contract::{Delivery, SenderContext};
use crate::signals::ActionCache;
use crate::store::{Report, StoreError};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often a record is tried before the connection is given up.
const RECORD_TRIES: u32 = 6;

/// Something that was under way is done.
pub(super) enum Done {
    /// Results: what the agent is told, or nothing could be recorded.
    Results(Option<Stored>),
    /// Other reports, and the answers to those that concern a run at the agent.
    Reports(Option<Vec<(RunRef, Answer)>>),
    /// A part of the backlog, and whether the store has more.
    Backlog(Result<(Vec<Delivery>, bool), StoreError>),
    /// Runs that the agent has from before.
    Adopted(Vec<(Arc<Action>, i32)>, Vec<Uuid>),
}

/// Reads a part of the backlog: what is due now; what is due soon goes to the scheduler.
pub(super) async fn backlog(
    deps: &SessionDeps,
    agent_no: i64,
    limit: usize,
) -> Result<(Vec<Delivery>, bool), StoreError> {
    let now = deps.node.store.now();
    let rows = deps.node.store.command_backlog(agent_no, now.plus(deps.node.config.delay.horizon.0), limit).await?;
    let full = rows.len() >= limit;
    let (due, soon): (Vec<_>, Vec<_>) = rows.into_iter().partition(|due| due.due_at <= now);
    // What is due now comes first: with something of later in the page, there is no more that is due now.
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

/// Records results, also those of runs that this session didn't deliver, and says what the agent is to be told.
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
            // It comes again. Told why, the agent may learn the time anew.
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

/// An action by its public id; the outer `None`: the store is away.
async fn look_up(actions: &ActionCache, run: RunRef) -> Option<Option<Arc<Action>>> {
    for attempt in 0..RECORD_TRIES {
        match actions.get_by_id(run.action).await {
            Ok(found) => return Some(found),
            Err(error) => log::warn!(error = error.to_string().as_str(); "a result waits for the store"),
        }
        tokio::time::sleep(wait(attempt)).await;
    }
    None
}

/// Records, patiently while the outcomes are being restarted.
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
