//! The state machine of a command.

use super::change::{Answer, Change, OpenChange, Outcome};
use super::event::{Event, RunEnd};
use super::known::{Known, Open};
use super::state::{CommandState, OpenState};
use crate::domain::action::{GRACE, Policy};
use crate::domain::fit::cut_text;
use crate::domain::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// The first wait after a failed attempt or run; it doubles from there.
pub(super) const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait after a failed attempt or run.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How much of the reason of a failed attempt is kept until the next one, in bytes.
const KEPT_REASON: usize = 1024;
/// The wait before a command is delivered again whose agent wrongly considered it expired. By then
/// the agent has read the server's clock again.
const DISBELIEVED: Duration = Duration::from_secs(10);

fn unchanged(answer: Answer) -> Change {
    Change { outcome: None, open: OpenChange::Keep, late: None, answer }
}

/// The wait before attempt `failed + 1`: doubles from a second up to a cap. `jitter` (0 to 1) takes
/// up to half of it away.
pub fn backoff(failed: i32, jitter: f64) -> Duration {
    let doublings = u32::try_from(failed.saturating_sub(1)).unwrap_or(0).min(16);
    let full = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

/// What `event` changes about a command of which the store holds `known`.
pub fn decide(known: &Known, event: Event, policy: &Policy, now: Timestamp, jitter: f64) -> Change {
    if !known.exists {
        return unchanged(Answer::Rejected("there is no such command for this agent".into()));
    }
    let Some(current) = known.current_run() else {
        return match event {
            Event::Result(end) => after_the_end(known, *end),
            // The open row was written while the outcome was on its way.
            _ if known.open.is_some() => Change { open: OpenChange::Delete, ..unchanged(Answer::Decided) },
            _ => unchanged(Answer::Decided),
        };
    };
    // A reconciler closes cancelled commands in any case.
    let event = match event {
        Event::AttemptFailed { run, .. } | Event::Postponed { run, .. } | Event::FoundExpired { run, .. }
            if known.cancelled && run == current =>
        {
            Event::Cancelled
        }
        event => event,
    };
    let open = known.open.as_ref().filter(|open| open.run == current);
    let attempts = open.map_or(0, |open| open.attempts);
    let sent_at = open.and_then(|open| open.sent_at);
    let last_error = || open.and_then(|open| open.error.clone());
    let close = |status, error: Option<String>| {
        let end = RunEnd {
            run: current,
            status,
            attempts,
            sent_at,
            started_at: None,
            finished_at: now,
            results: None,
            error,
        };
        Change {
            outcome: Some(Outcome { end, is_final: true }),
            open: OpenChange::Delete,
            late: None,
            answer: Answer::Stored,
        }
    };
    match event {
        Event::Result(end) if end.run == current => {
            let mut end = as_counted(known, *end);
            end.attempts = end.attempts.max(attempts);
            end.sent_at = end.sent_at.or(sent_at);
            ended(known, end, policy, now, jitter)
        }
        Event::Result(end) if end.run < current && end.run >= 1 => after_the_end(known, *end),
        Event::Result(end) => unchanged(Answer::Rejected(format!("run {} is not due; run {current} is", end.run))),
        // A report may be older than the store's state: the number of failed attempts never
        // decreases.
        Event::Sent { run, attempts: failed, at } if run == current => match known.open {
            Some(Open { state: OpenState::Sent, .. }) => unchanged(Answer::Stored),
            _ => {
                let attempts = attempts.max(failed);
                let due_at = at.plus(policy.timeout).plus(GRACE);
                let open = Open { state: OpenState::Sent, run, attempts, due_at, sent_at: Some(at), error: None };
                Change { open: OpenChange::Put(open), ..unchanged(Answer::Stored) }
            }
        },
        Event::Hold { due_at } => match known.open {
            Some(_) => unchanged(Answer::Stored),
            None => {
                let (state, run) = (OpenState::Waiting, current);
                let open = Open { state, run, attempts: 0, due_at, sent_at: None, error: None };
                Change { open: OpenChange::Put(open), ..unchanged(Answer::Stored) }
            }
        },
        Event::Queued { run, due_at } if run == current => match known.open {
            // Its agent was faster than the broker's confirmation.
            Some(Open { state: OpenState::Sent | OpenState::Queued, .. }) => unchanged(Answer::Stored),
            _ => {
                let open = Open { state: OpenState::Queued, run, attempts, due_at, sent_at: None, error: None };
                Change { open: OpenChange::Put(open), ..unchanged(Answer::Stored) }
            }
        },
        Event::Postponed { run, until } if run == current => match known.open {
            Some(Open { state: OpenState::Sent | OpenState::Queued, .. }) => unchanged(Answer::Decided),
            _ => again(None, run, attempts, until.max(now), last_error()),
        },
        Event::AttemptFailed { run, attempts: failed, error, retry_after } if run == current => {
            let attempts = attempts.max(failed);
            match known.open {
                Some(Open { state: OpenState::Sent | OpenState::Queued, .. }) => unchanged(Answer::Decided),
                _ if policy.max_deliveries.is_some_and(|most| attempts >= most) => {
                    let mut change = close(CommandState::Undeliverable, Some(error));
                    if let Some(outcome) = &mut change.outcome {
                        outcome.end.attempts = attempts;
                    }
                    change
                }
                _ => {
                    let wait = backoff(attempts, jitter).max(retry_after.unwrap_or_default());
                    again(None, run, attempts, now.plus(wait), Some(cut_text(error, KEPT_REASON).into()))
                }
            }
        }
        Event::Sent { .. } | Event::Queued { .. } | Event::Postponed { .. } | Event::AttemptFailed { .. } => {
            unchanged(Answer::Decided)
        }
        Event::Overdue => match known.open {
            Some(Open { state: OpenState::Sent, due_at, .. }) if due_at <= now => {
                let mut change = close(CommandState::TimedOut, Some("no result came within the timeout".into()));
                match change.outcome.take() {
                    Some(outcome) => ended(known, outcome.end, policy, now, jitter),
                    None => change,
                }
            }
            _ => unchanged(Answer::Decided),
        },
        Event::FoundExpired { run, expires_at } if run == current => match expires_at <= now {
            true => close(CommandState::Expired, Some("it had expired when its agent was to start it".into())),
            // The agent's clock is wrong. It has not run the command, and no attempt to reach it has failed.
            false => {
                let error = "its agent took it for expired, by a clock that is wrong";
                again(None, run, attempts, now.plus(DISBELIEVED), Some(error.into()))
            }
        },
        Event::FoundExpired { run, .. } if run > current || run < 1 => {
            unchanged(Answer::Rejected(format!("run {run} is not due; run {current} is")))
        }
        Event::FoundExpired { .. } => unchanged(Answer::Decided),
        Event::Expired if known.state() == CommandState::Pending => {
            close(CommandState::Expired, last_error().map(|error| format!("the last attempt failed: {error}")))
        }
        Event::Expired => unchanged(Answer::Decided),
        Event::Cancelled => close(CommandState::Cancelled, None),
        Event::Undeliverable { error } => close(CommandState::Undeliverable, Some(error)),
    }
}

/// Corrects a result: an agent cannot report `cancelled` for an action that no user cancelled.
fn as_counted(known: &Known, end: RunEnd) -> RunEnd {
    match end.status {
        CommandState::Cancelled if !known.cancelled => RunEnd { status: CommandState::Failed, ..end },
        CommandState::Cancelled => RunEnd { sent_at: end.sent_at.or(Some(end.finished_at)), ..end },
        _ => end,
    }
}

/// The current run has ended. Another one follows if the policy allows it and the action is not cancelled. A command that
/// would have run again ends as cancelled, as it does when the cancel comes between two runs.
fn ended(known: &Known, mut end: RunEnd, policy: &Policy, now: Timestamp, jitter: f64) -> Change {
    let is_last = matches!(end.status, CommandState::Succeeded | CommandState::Cancelled) || end.run >= policy.max_runs;
    if is_last || known.cancelled {
        if !is_last {
            end.status = CommandState::Cancelled;
        }
        let outcome = Some(Outcome { end, is_final: true });
        return Change { outcome, open: OpenChange::Delete, late: None, answer: Answer::Stored };
    }
    let (run, wait) = (end.run + 1, backoff(end.run, jitter));
    again(Some(Outcome { end, is_final: false }), run, 0, now.plus(wait), None)
}

fn again(outcome: Option<Outcome>, run: i32, attempts: i32, due_at: Timestamp, error: Option<Arc<str>>) -> Change {
    let open = Open { state: OpenState::Retry, run, attempts, due_at, sent_at: None, error };
    Change { outcome, open: OpenChange::Put(open), late: None, answer: Answer::Again { run, attempts, due_at } }
}

/// A result for a run that was already decided is stored beside the outcome and changes nothing.
fn after_the_end(known: &Known, end: RunEnd) -> Change {
    let end = as_counted(known, end);
    let ran = known.last.map_or(0, |(run, _)| run);
    if end.run < 1 || end.run > ran {
        return unchanged(Answer::Rejected(format!("run {} never was: the command ended with run {ran}", end.run)));
    }
    let open =
        if known.current_run().is_none() && known.open.is_some() { OpenChange::Delete } else { OpenChange::Keep };
    Change { outcome: None, open, late: Some(end), answer: Answer::Stored }
}
