//! The messages to a sender, and what it reports.

use crate::domain::action::Action;
use crate::domain::command::{Answer, CommandState, Event, RunEnd};
use crate::domain::protocol::Command;
use crate::domain::time::Timestamp;
use crate::runtime::{Answers, Writer};
use crate::store::{Due, Report, Store};
use actix::prelude::*;
use std::sync::Arc;

/// The handle to the outcomes: takes reports about commands and answers after the commit.
pub type Recorder = Writer<Report, Answer>;

/// One command on its way to its agent.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The command, run and attempt.
    pub due: Due,
    /// Its action.
    pub action: Arc<Action>,
}

impl Delivery {
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
        }
    }
}

/// Sender router → a sender: deliver these, and [record](SenderContext::record) the result of each.
///
/// The answer means that the sender has taken them over. A sender that can't reach an agent records
/// [`Event::Hold`]. If a delivery attempt failed, it records [`Event::AttemptFailed`].
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Deliver(pub Vec<Delivery>);

/// The services that a sender uses.
#[derive(Clone)]
pub struct SenderContext {
    /// For agents' names and addresses, and for the time.
    pub store: Arc<dyn Store>,
    recorder: Recorder,
}

impl SenderContext {
    pub(crate) fn new(store: Arc<dyn Store>, recorder: Recorder) -> Self {
        Self { store, recorder }
    }

    /// Records reports about commands, and answers after the commit.
    ///
    /// # Errors
    /// [`Interrupted`](crate::runtime::Interrupted): the reports may or may not be recorded. Record
    /// them again.
    pub async fn record(&self, reports: Vec<Report>) -> Answers<Answer> {
        self.recorder.put(reports).await
    }
}

/// The end of a delivered command's run, without results or an error.
pub fn run_end(delivery: &Delivery, status: CommandState, at: Timestamp) -> RunEnd {
    RunEnd {
        run: delivery.due.run,
        status,
        attempts: delivery.due.attempts,
        sent_at: Some(at),
        started_at: None,
        finished_at: at,
        results: None,
        error: None,
    }
}

/// The report that `event` happened to a delivered command.
pub fn report(delivery: &Delivery, event: Event) -> Report {
    let skip_lookup = delivery.due.run == 1 && !delivery.due.open;
    Report { skip_lookup, ..report_of(&delivery.action, delivery.due.agent_no, event) }
}

/// The report that `event` happened to the command of `action` for an agent. The store may know
/// more about that command than the reporter.
pub fn report_of(action: &Action, agent_no: i64, event: Event) -> Report {
    Report { action_no: action.no, agent_no, policy: action.policy, event, skip_lookup: false }
}

/// The report that a command can't be delivered now.
pub fn hold_report(delivery: &Delivery) -> Report {
    report_of(&delivery.action, delivery.due.agent_no, Event::Hold { due_at: delivery.due.due_at })
}
