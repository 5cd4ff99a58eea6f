//! The states of a command, and of its open row.

use crate::domain::protocol::RunStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The states of a command. The numbers are what the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(i16)]
pub enum CommandState {
    /// Not delivered yet, or between two runs.
    Pending = 0,
    /// The agent has acknowledged it.
    Sent = 1,
    /// The run succeeded.
    Succeeded = 2,
    /// The run failed.
    Failed = 3,
    /// There was no result in time.
    TimedOut = 4,
    /// `max_deliveries` delivery attempts failed, or the agent was removed.
    Undeliverable = 5,
    /// It was not delivered in time.
    Expired = 6,
    /// A user cancelled its action.
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

    /// Whether it can no longer change.
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
    /// Its agent was not connected, or at capacity, when it was due. It is found by its agent, and never by its time.
    Waiting = 0,
    /// To be delivered again or run again at its time.
    Retry = 1,
    /// Its agent has it, and has not reported a result.
    Sent = 2,
    /// It lies at a broker, from which its agent takes it.
    Queued = 3,
}

impl OpenState {
    /// The state with this number.
    pub fn from_code(code: i16) -> Option<Self> {
        [Self::Waiting, Self::Retry, Self::Sent, Self::Queued].into_iter().find(|state| *state as i16 == code)
    }
}
