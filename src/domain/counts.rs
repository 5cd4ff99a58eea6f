//! Exact counts of an action's commands by state.

use super::command::CommandState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many commands of an action are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    /// All commands that are written.
    pub total: i64,
    /// Whether `total` is final.
    pub resolved: bool,
    /// Not delivered, or between two runs.
    pub pending: i64,
    /// Delivered, without a result.
    pub sent: i64,
    /// Ran well.
    pub succeeded: i64,
    /// Ran and failed.
    pub failed: i64,
    /// Had no result in time.
    pub timed_out: i64,
    /// Could not be delivered.
    pub undeliverable: i64,
    /// Was not delivered in time.
    pub expired: i64,
    /// Cancelled by a user.
    pub cancelled: i64,
}

impl Counts {
    /// The number of commands in this state.
    pub fn of(&self, state: CommandState) -> i64 {
        match state {
            CommandState::Pending => self.pending,
            CommandState::Sent => self.sent,
            CommandState::Succeeded => self.succeeded,
            CommandState::Failed => self.failed,
            CommandState::TimedOut => self.timed_out,
            CommandState::Undeliverable => self.undeliverable,
            CommandState::Expired => self.expired,
            CommandState::Cancelled => self.cancelled,
        }
    }

    fn of_mut(&mut self, state: CommandState) -> &mut i64 {
        match state {
            CommandState::Pending => &mut self.pending,
            CommandState::Sent => &mut self.sent,
            CommandState::Succeeded => &mut self.succeeded,
            CommandState::Failed => &mut self.failed,
            CommandState::TimedOut => &mut self.timed_out,
            CommandState::Undeliverable => &mut self.undeliverable,
            CommandState::Expired => &mut self.expired,
            CommandState::Cancelled => &mut self.cancelled,
        }
    }

    /// A pending command was created.
    pub fn add_new(&mut self, number: i64) {
        self.total += number;
        self.pending += number;
    }

    /// A command went from one state to another.
    pub fn move_one(&mut self, from: CommandState, to: CommandState) {
        *self.of_mut(from) -= 1;
        *self.of_mut(to) += 1;
    }

    /// The number of commands in a final state.
    pub fn finished(&self) -> i64 {
        CommandState::ALL.into_iter().filter(|state| state.is_final()).map(|state| self.of(state)).sum()
    }
}
