//! The events of a command.

use super::state::CommandState;
use crate::domain::time::Timestamp;
use std::time::Duration;

/// An event of a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its agent reports how a run ended.
    Result(Box<RunEnd>),
    /// Its agent has it, and has not reported a result.
    Sent {
        /// The run.
        run: i32,
        /// Failed delivery attempts before this one.
        attempts: i32,
        /// When it acknowledged it.
        at: Timestamp,
    },
    /// It is due (or will be) and cannot be delivered now.
    Hold {
        /// When it is, or was, due.
        due_at: Timestamp,
    },
    /// A broker has it for its agent. That is no delivery attempt: the agent's `received` is.
    Queued {
        /// The run.
        run: i32,
        /// When it was due.
        due_at: Timestamp,
    },
    /// It can't be delivered now, because its broker or host is away. That is no delivery attempt.
    Postponed {
        /// The run.
        run: i32,
        /// When to try next.
        until: Timestamp,
    },
    /// A delivery attempt failed.
    AttemptFailed {
        /// The run.
        run: i32,
        /// Failed delivery attempts, including this one.
        attempts: i32,
        /// Why.
        error: String,
        /// Minimum wait before the next attempt, if the receiver asked for one.
        retry_after: Option<Duration>,
    },
    /// No result arrived within the timeout and the grace period.
    Overdue,
    /// Its action has expired, so an undelivered command is no longer delivered.
    Expired,
    /// Its agent found it expired and did not start it.
    FoundExpired {
        /// The run.
        run: i32,
        /// When its action expires.
        expires_at: Timestamp,
    },
    /// A user cancelled its action.
    Cancelled,
    /// Its agent was removed.
    Undeliverable {
        /// Why.
        error: String,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// The run.
    pub run: i32,
    /// Its final state.
    pub status: CommandState,
    /// Failed delivery attempts before the successful one.
    pub attempts: i32,
    /// When the agent acknowledged it.
    pub sent_at: Option<Timestamp>,
    /// Start of the run, by the agent's clock.
    pub started_at: Option<Timestamp>,
    /// Arrival of the result, by the store's clock.
    pub finished_at: Timestamp,
    /// The results as JSON, a list.
    pub results: Option<String>,
    /// Why it failed, in a sentence.
    pub error: Option<String>,
}
