//! The messages to a sender, and what it reports.

use super::due_command::{DueCommand, report_of};
use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::agent::AgentContact;
use crate::domain::command::{Answer, CommandState, Event, RunEnd};
use crate::domain::protocol::{Command, OperationResult};
use crate::domain::time::Timestamp;
use crate::metrics::SenderStatus;
use crate::runtime::{Answers, Writer};
use crate::store::{Due, Report, Store};
use actix::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// The handle to the outcomes: takes reports about commands and answers after the commit.
pub type Recorder = Writer<Report, Answer>;

/// How often [`SenderContext::record_patiently`] tries.
const RECORD_TRIES: u32 = 6;

/// The wait of a command whose host is away, if the sender keeps no queue of its own.
const AWAY_RETRY: Duration = Duration::from_secs(5);

/// One command on its way to an agent that doesn't connect to the server.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The command, run and attempt.
    pub due: Due,
    /// Its action.
    pub action: Arc<Action>,
    /// Its agent: name, address, and the secret that signs webhooks to it.
    pub agent: Arc<AgentContact>,
}

impl Delivery {
    pub(crate) fn new(command: DueCommand, agent: Arc<AgentContact>) -> Self {
        let DueCommand { due, action } = command;
        Self { due, action, agent }
    }

    pub(crate) fn into_command(self) -> DueCommand {
        DueCommand { due: self.due, action: self.action }
    }

    /// The key of the command: action and agent.
    pub fn key(&self) -> (i64, i64) {
        (self.due.action_no, self.due.agent_no)
    }

    /// The command as its agent gets it.
    pub fn command(&self) -> Command {
        DueCommand { due: self.due.clone(), action: self.action.clone() }.command()
    }

    /// The report that this delivery ended so, at the store's time `now`.
    pub fn report(&self, outcome: Outcome, now: Timestamp) -> Report {
        let Due { run, attempts, due_at, .. } = self.due;
        let ended = |status, results: Vec<OperationResult>, error| {
            let results = (!results.is_empty()).then(|| serde_json::to_string(&results).unwrap_or_default());
            let (started_at, finished_at, sent_at) = (None, now, Some(now));
            Event::Result(Box::new(RunEnd { run, status, attempts, sent_at, started_at, finished_at, results, error }))
        };
        let event = match outcome {
            Outcome::Succeeded(results) => ended(CommandState::Succeeded, results, None),
            Outcome::Failed { error, results } => ended(CommandState::Failed, results, Some(error)),
            Outcome::Received => Event::Sent { run, attempts, at: now },
            Outcome::Queued => Event::Queued { run, due_at },
            Outcome::AttemptFailed { error, retry_after } => {
                Event::AttemptFailed { run, attempts: attempts.saturating_add(1), error, retry_after }
            }
            Outcome::Unreachable { error } => {
                Event::AttemptFailed { run, attempts: attempts.saturating_add(1), error, retry_after: None }
            }
            Outcome::Away { .. } => Event::Postponed { run, until: now.plus(AWAY_RETRY) },
            Outcome::Postponed { after } => Event::Postponed { run, until: now.plus(after) },
        };
        // Only a result or a failed attempt of the first run is certainly the first report.
        let is_first = matches!(event, Event::Result(_) | Event::AttemptFailed { .. }) && run == 1 && !self.due.open;
        Report { skip_lookup: is_first, ..report_of(&self.action, self.due.agent_no, event) }
    }
}

/// How a delivery ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is delivered and done.
    Succeeded(Vec<OperationResult>),
    /// The agent ran it without success, or refuses it for good.
    Failed {
        /// Why, in a sentence.
        error: String,
        /// What the operations returned, if anything is known.
        results: Vec<OperationResult>,
    },
    /// The agent has it. Its result comes later, by `POST /v1/agent/results` or through a broker.
    Received,
    /// A broker has it for the agent. That is neither `sent` nor an attempt, and it isn't delivered
    /// again unless the agent asks.
    Queued,
    /// A delivery attempt failed. It is counted, and the next one follows with backoff.
    AttemptFailed {
        /// Why, in a sentence.
        error: String,
        /// Minimum wait before the next attempt, if the receiver asked for one.
        retry_after: Option<Duration>,
    },
    /// The host can't be reached. That is a failed attempt, and several in a row open the circuit
    /// breaker of the host.
    Unreachable {
        /// Why, in a sentence.
        error: String,
    },
    /// The broker or the server for this transport can't be reached, so that no attempt was made.
    /// The command stays with the sender, and several in a row open the circuit breaker.
    Away {
        /// Why, in a sentence.
        error: String,
    },
    /// Nothing can be done for this command now, and no attempt was made. It comes again after this
    /// time.
    Postponed {
        /// The wait.
        after: Duration,
    },
}

/// Sender router → a sender: deliver these, and [record](SenderContext::record) the result of each.
///
/// The answer lists those that the sender doesn't take now. It has taken over all others.
#[derive(Clone, Message)]
#[rtype(result = "Vec<Deferred>")]
pub struct Deliver(pub Vec<Delivery>);

/// A command that a sender doesn't take now. It is offered again after a while.
#[derive(Clone, Debug)]
pub struct Deferred {
    /// The command.
    pub delivery: Delivery,
    /// The wait.
    pub after: Duration,
}

/// The services that a sender uses.
#[derive(Clone)]
pub struct SenderContext {
    /// For agents, and for the time.
    pub store: Arc<dyn Store>,
    recorder: Recorder,
    transport: &'static str,
    node: Arc<Node>,
    status: SenderStatus,
}

impl SenderContext {
    pub(crate) fn new(node: Arc<Node>, recorder: Recorder, transport: &'static str) -> Self {
        let status = node.metrics.senders().of(transport);
        Self { store: node.store.clone(), recorder, transport, node, status }
    }

    /// The transport that the sender was registered for.
    pub fn transport(&self) -> &'static str {
        self.transport
    }

    /// What `/readyz` and `/metrics` show of this sender.
    pub fn status(&self) -> &SenderStatus {
        &self.status
    }

    /// The store's time.
    pub fn now(&self) -> Timestamp {
        self.node().store.now()
    }

    /// The node's parts.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Records reports about commands, and answers after the commit.
    ///
    /// # Errors
    /// [`Interrupted`](crate::runtime::Interrupted): the reports may or may not be recorded. Record
    /// them again.
    pub async fn record(&self, reports: Vec<Report>) -> Answers<Answer> {
        self.status.records(reports.len());
        self.recorder.put(reports).await
    }

    /// Records reports, and tries again for some seconds while the outcomes actor restarts. False
    /// if that was in vain: the commands are found again and delivered again.
    pub async fn record_patiently(&self, reports: Vec<Report>) -> bool {
        let mut wait = Duration::from_millis(50);
        for _ in 0..RECORD_TRIES {
            if self.record(reports.clone()).await.is_ok() {
                return true;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        log::warn!(transport = self.transport, commands = reports.len(); "commands are delivered again, since nothing can be recorded");
        false
    }
}
