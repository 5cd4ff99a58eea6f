//! What an event changes about a command, and how it is answered.

use super::event::RunEnd;
use super::known::Open;
use crate::domain::time::Timestamp;

/// What to write about a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// A new row of `outcomes`.
    pub outcome: Option<Outcome>,
    /// What happens to the open row.
    pub open: OpenChange,
    /// A row of `late_results`.
    pub late: Option<RunEnd>,
    /// The answer to the part that reported the event.
    pub answer: Answer,
}

/// What happens to an open row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenChange {
    /// It stays as it is, or stays absent.
    Keep,
    /// It is written.
    Put(Open),
    /// It is deleted.
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

/// The answer to the part that reported an event, after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is durable.
    Stored,
    /// It is durable, and the command will be delivered again.
    Again {
        /// The run that is due.
        run: i32,
        /// Failed delivery attempts of it so far.
        attempts: i32,
        /// When it is due.
        due_at: Timestamp,
    },
    /// Nothing changes: the command, or this run of it, was decided before.
    Decided,
    /// The event is impossible; the text says why.
    Rejected(String),
}
