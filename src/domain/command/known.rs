//! What the store holds of one command.

use super::state::{CommandState, OpenState};
use crate::domain::time::Timestamp;
use std::sync::Arc;

/// A row of `open_commands`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Why it is there.
    pub state: OpenState,
    /// The current run.
    pub run: i32,
    /// Failed delivery attempts of this run so far.
    pub attempts: i32,
    /// When it is due; in `Sent`, when the server stops waiting for the result.
    pub due_at: Timestamp,
    /// When the agent acknowledged it.
    pub sent_at: Option<Timestamp>,
    /// Why the last attempt failed, if it is to be delivered again for that.
    pub error: Option<Arc<str>>,
}

/// What the store holds of one command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether there is such a command at all.
    pub exists: bool,
    /// A user cancelled its action.
    pub cancelled: bool,
    /// Its open row.
    pub open: Option<Open>,
    /// The last run that ended, and whether that was final.
    pub last: Option<(i32, Option<CommandState>)>,
}

impl Known {
    /// The state that users see.
    pub fn state(&self) -> CommandState {
        match (self.last, &self.open) {
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
