//! The states of an action, and which agents belong to it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which agents belong to an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// The agents that match when it is resolved.
    #[default]
    Frozen,
    /// Also agents that match later, until it expires.
    Live,
}

/// The states of an action, derived from its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionState {
    /// It is not due soon.
    Scheduled,
    /// Its agents are being found.
    Resolving,
    /// All its commands are stored; some are not final.
    Running,
    /// No command is delivered.
    Paused,
    /// Every command is final.
    Completed,
    /// Cancelled by a user.
    Cancelled,
    /// It expired before its agents were found.
    Expired,
}

impl ActionState {
    /// Whether it can no longer change.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Expired)
    }

    /// The word in the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Resolving => "resolving",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}
