//! A due command on its way from the scheduler to a sender.

use crate::domain::action::Action;
use crate::domain::command::Event;
use crate::domain::protocol::Command;
use crate::domain::time::Timestamp;
use crate::store::{Due, Report};
use std::sync::Arc;

/// A command that is due, and its action.
#[derive(Clone, Debug)]
pub struct DueCommand {
    /// The command, run and attempt.
    pub due: Due,
    /// Its action.
    pub action: Arc<Action>,
}

impl DueCommand {
    /// The earliest time of delivery: the due time, but never before the action is valid.
    pub fn not_before(&self) -> Timestamp {
        self.due.due_at.max(self.action.valid_from)
    }

    /// The command as its agent gets it.
    pub fn command(&self) -> Command {
        let Self { due, action } = self;
        Command {
            action: action.id,
            run: due.run,
            attempt: due.attempts + 1,
            name: action.name.clone(),
            operations: action.operations.clone(),
            priority: action.priority,
            timeout_ms: i64::try_from(action.policy.timeout.as_millis()).unwrap_or(i64::MAX),
            expires_at: action.expires_at,
            scheduled_for: action.scheduled_for,
        }
    }
}

/// The report that `event` happened to the command of `action` for an agent. The store may know
/// more about that command than the reporter.
pub fn report_of(action: &Action, agent_no: i64, event: Event) -> Report {
    Report { action_no: action.no, agent_no, policy: action.policy, event, skip_lookup: false }
}

/// The report that a command can't be delivered now.
pub fn hold_report(command: &DueCommand) -> Report {
    report_of(&command.action, command.due.agent_no, Event::Hold { due_at: command.due.due_at })
}
