//! The life of a command: its states, and the one function that decides what an event changes.
//!
//! Both stores ask [`decide`] while they hold the rows of a command, so they can't differ in what a late result, a
//! second run or a cancel does. It is pure: what the store [knows](Known) and what [happened](Event) go in, what is to
//! be [written](Change) comes out.

use super::action::{GRACE, Policy};
use super::protocol::RunStatus;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

#[cfg(test)]
mod tests;

/// The first wait after a failed attempt or run; it doubles from there.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How long a command waits that its agent wrongly took for expired: long enough for the agent to set its clock right.
const DISBELIEVED: Duration = Duration::from_secs(10);

/// The states of a command. The numbers are what the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(i16)]
pub enum CommandState {
    /// Not delivered yet, or between two runs.
    Pending = 0,
    /// The agent said that it has it.
    Sent = 1,
    /// Ran well.
    Succeeded = 2,
    /// Ran, and says that it failed.
    Failed = 3,
    /// No result in time.
    TimedOut = 4,
    /// `max_deliveries` delivery attempts failed, or the agent was removed.
    Undeliverable = 5,
    /// Not delivered in time.
    Expired = 6,
    /// Ended by a user.
    Cancelled = 7,
}

impl CommandState {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Sent,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Undeliverable,
        Self::Expired,
        Self::Cancelled,
    ];

    /// The state with this number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i16 == code)
    }

    /// The word in the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Undeliverable => "undeliverable",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state with this name in the interface.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether it can change no more.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Sent)
    }
}

impl From<RunStatus> for CommandState {
    fn from(status: RunStatus) -> Self {
        match status {
            RunStatus::Succeeded => Self::Succeeded,
            RunStatus::Failed => Self::Failed,
            RunStatus::TimedOut => Self::TimedOut,
            RunStatus::Cancelled => Self::Cancelled,
            RunStatus::Expired => Self::Expired,
        }
    }
}

/// Why a command has an open row. The numbers are what the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum OpenState {
    /// Its agent was not reachable, or had no room, when it was due.
    Waiting = 0,
    /// To be delivered again, or run again.
    Retry = 1,
    /// Its agent has it, and takes its time.
    Sent = 2,
}

impl OpenState {
    /// The state with this number.
    pub fn from_code(code: i16) -> Option<Self> {
        [Self::Waiting, Self::Retry, Self::Sent].into_iter().find(|state| *state as i16 == code)
    }
}

/// A row of `open_commands`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Why it is there.
    pub state: OpenState,
    /// The run that it is about.
    pub run: i32,
    /// Failed delivery attempts of this run so far.
    pub attempts: i32,
    /// When it is due; of `Sent`, when the server gives up waiting for the result.
    pub due_at: Timestamp,
    /// When the agent said that it has it.
    pub sent_at: Option<Timestamp>,
}

/// What the store holds of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether there is such a command at all.
    pub exists: bool,
    /// A user ended its action.
    pub cancelled: bool,
    /// Its open row.
    pub open: Option<Open>,
    /// The last run that ended, and whether that was final.
    pub last: Option<(i32, Option<CommandState>)>,
}

impl Known {
    /// The state that users see.
    pub fn state(&self) -> CommandState {
        match (self.last, self.open) {
            (Some((_, Some(state))), _) => state,
            (_, Some(Open { state: OpenState::Sent, .. })) => CommandState::Sent,
            _ => CommandState::Pending,
        }
    }

    /// The run that has not ended yet; `None` when the command is final.
    pub fn current_run(&self) -> Option<i32> {
        match self.last {
            Some((_, Some(_))) => None,
            Some((run, None)) => Some(run + 1),
            None => Some(1),
        }
    }
}

/// What happened to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its agent says how a run ended.
    Result(Box<RunEnd>),
    /// Its agent has it since `at`, and no result came yet.
    Sent {
        /// Which run.
        run: i32,
        /// Failed delivery attempts before this one.
        attempts: i32,
        /// When it said so.
        at: Timestamp,
    },
    /// It is due (or will be) and can't be delivered now.
    Hold {
        /// When it is, or was, due.
        due_at: Timestamp,
    },
    /// A delivery attempt came to nothing.
    AttemptFailed {
        /// Which run.
        run: i32,
        /// Failed delivery attempts with this one.
        attempts: i32,
        /// Why.
        error: String,
        /// Not tried again sooner than after this long, if the other side said so.
        retry_after: Option<Duration>,
    },
    /// No result came within the timeout and the grace.
    Overdue,
    /// Whatever isn't delivered by now never will be.
    Expired,
    /// Its agent found it expired and did not start it.
    FoundExpired {
        /// Which run.
        run: i32,
        /// When its action expires.
        expires_at: Timestamp,
    },
    /// A user ended its action.
    Cancelled,
    /// Its agent is gone for good.
    Undeliverable {
        /// Why.
        error: String,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// Which run.
    pub run: i32,
    /// How.
    pub status: CommandState,
    /// Failed delivery attempts before the one that worked.
    pub attempts: i32,
    /// When the agent said that it has it.
    pub sent_at: Option<Timestamp>,
    /// By the agent's clock.
    pub started_at: Option<Timestamp>,
    /// By the store's clock: when the result arrived.
    pub finished_at: Timestamp,
    /// The results as JSON, a list.
    pub results: Option<String>,
    /// Why it did not go well, in a sentence.
    pub error: Option<String>,
}

/// What is to be written about a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// A new row of `outcomes`.
    pub outcome: Option<Outcome>,
    /// What becomes of the open row.
    pub open: OpenChange,
    /// A row of `late_results`.
    pub late: Option<RunEnd>,
    /// What whoever reported it is told.
    pub answer: Answer,
}

/// What becomes of an open row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenChange {
    /// It stays as it is, or absent.
    Keep,
    /// It is written.
    Put(Open),
    /// It goes.
    Delete,
}

/// A row of `outcomes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How the run ended.
    pub end: RunEnd,
    /// Whether the command ends with it.
    pub is_final: bool,
}

/// What whoever reported an event is told, after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is durable.
    Stored,
    /// It is durable, and the command is to be delivered again.
    Again {
        /// The run that is due.
        run: i32,
        /// Failed delivery attempts of it so far.
        attempts: i32,
        /// When.
        due_at: Timestamp,
    },
    /// It changes nothing: the command, or this run of it, was decided before.
    Decided,
    /// It can't be so.
    Rejected(String),
}

fn unchanged(answer: Answer) -> Change {
    Change { outcome: None, open: OpenChange::Keep, late: None, answer }
}

/// The wait before attempt `failed + 1`: doubling from a second, capped, with `jitter` (0 to 1) taking up to half away.
pub fn backoff(failed: i32, jitter: f64) -> Duration {
    let doublings = u32::try_from(failed.saturating_sub(1)).unwrap_or(0).min(16);
    let full = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

/// What `event` changes about a command of which the store knows this.
pub fn decide(known: &Known, event: Event, policy: &Policy, now: Timestamp, jitter: f64) -> Change {
    if !known.exists {
        return unchanged(Answer::Rejected("there is no such command for this agent".into()));
    }
    let Some(current) = known.current_run() else {
        return match event {
            Event::Result(end) => after_the_end(known, *end),
            // A row that was written while the outcome was on its way.
            _ if known.open.is_some() => Change { open: OpenChange::Delete, ..unchanged(Answer::Decided) },
            _ => unchanged(Answer::Decided),
        };
    };
    // What the reconciler will say of a cancelled command, whatever else happens to it meanwhile.
    let event = match event {
        Event::AttemptFailed { run, .. } | Event::FoundExpired { run, .. } if known.cancelled && run == current => {
            Event::Cancelled
        }
        event => event,
    };
    let attempts = known.open.filter(|open| open.run == current).map_or(0, |open| open.attempts);
    let sent_at = known.open.filter(|open| open.run == current).and_then(|open| open.sent_at);
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
        // What is reported may be older than what is known: failed attempts are never taken back.
        Event::Sent { run, attempts: failed, at } if run == current => match known.open {
            Some(Open { state: OpenState::Sent, .. }) => unchanged(Answer::Stored),
            _ => {
                let attempts = attempts.max(failed);
                let due_at = at.plus(policy.timeout).plus(GRACE);
                let open = Open { state: OpenState::Sent, run, attempts, due_at, sent_at: Some(at) };
                Change { open: OpenChange::Put(open), ..unchanged(Answer::Stored) }
            }
        },
        Event::Hold { due_at } => match known.open {
            Some(_) => unchanged(Answer::Stored),
            None => {
                let open = Open { state: OpenState::Waiting, run: current, attempts: 0, due_at, sent_at: None };
                Change { open: OpenChange::Put(open), ..unchanged(Answer::Stored) }
            }
        },
        Event::AttemptFailed { run, attempts: failed, error, retry_after } if run == current => {
            let attempts = attempts.max(failed);
            match known.open {
                Some(Open { state: OpenState::Sent, .. }) => unchanged(Answer::Decided),
                _ if policy.max_deliveries.is_some_and(|most| attempts >= most) => {
                    let mut change = close(CommandState::Undeliverable, Some(error));
                    if let Some(outcome) = &mut change.outcome {
                        outcome.end.attempts = attempts;
                    }
                    change
                }
                _ => {
                    let wait = backoff(attempts, jitter).max(retry_after.unwrap_or_default());
                    again(None, run, attempts, now.plus(wait))
                }
            }
        }
        Event::Sent { .. } | Event::AttemptFailed { .. } => unchanged(Answer::Decided),
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
            false => again(None, run, attempts, now.plus(DISBELIEVED)),
        },
        Event::FoundExpired { run, .. } if run > current || run < 1 => {
            unchanged(Answer::Rejected(format!("run {run} is not due; run {current} is")))
        }
        Event::FoundExpired { .. } => unchanged(Answer::Decided),
        Event::Expired if known.state() == CommandState::Pending => close(CommandState::Expired, None),
        Event::Expired => unchanged(Answer::Decided),
        Event::Cancelled => close(CommandState::Cancelled, None),
        Event::Undeliverable { error } => close(CommandState::Undeliverable, Some(error)),
    }
}

/// A result as it counts: an agent can't say that a user cancelled what nobody did.
fn as_counted(known: &Known, end: RunEnd) -> RunEnd {
    match end.status {
        CommandState::Cancelled if !known.cancelled => RunEnd { status: CommandState::Failed, ..end },
        CommandState::Cancelled => RunEnd { sent_at: end.sent_at.or(Some(end.finished_at)), ..end },
        _ => end,
    }
}

/// The current run has ended; another one follows if the policy allows it and nobody cancelled the action. What would
/// have run again is ended by the cancel, as it is when the cancel comes between two runs.
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
    again(Some(Outcome { end, is_final: false }), run, 0, now.plus(wait))
}

fn again(outcome: Option<Outcome>, run: i32, attempts: i32, due_at: Timestamp) -> Change {
    let open = Open { state: OpenState::Retry, run, attempts, due_at, sent_at: None };
    Change { outcome, open: OpenChange::Put(open), late: None, answer: Answer::Again { run, attempts, due_at } }
}

/// A result for a run that was decided without it is kept beside the outcome and changes nothing.
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
