//! Senders: each hands commands over by one transport.
//!
//! A sender is an actor that handles [`Deliver`]. It takes the commands over, hands each to its agent, and records what
//! becomes of them with the [`SenderContext`]: [`Event::Result`], [`Event::Sent`], [`Event::AttemptFailed`] or
//! [`Event::Hold`]. To add one, write the actor and register it by the transport that it serves,
//! `Odoshi::builder(config).sender("slack", |context| SlackSender::new(context))`; agents with that transport then get their
//! commands from it. `examples/custom_sender.rs` is a whole one.
//!
//! [`Event::Result`]: crate::domain::command::Event::Result
//! [`Event::Sent`]: crate::domain::command::Event::Sent
//! [`Event::AttemptFailed`]: crate::domain::command::Event::AttemptFailed
//! [`Event::Hold`]: crate::domain::command::Event::Hold
//! [`Deliver`]: crate::pipeline::messages::Deliver

pub mod stream;

use crate::domain::command::{Answer, CommandState, Event, RunEnd};
use crate::domain::time::Timestamp;
use crate::pipeline::batcher::{Put, Refused};
use crate::pipeline::messages::Delivery;
use crate::pipeline::outcomes::{OutcomeSink, Outcomes};
use crate::store::{Report, Store};
use actix::prelude::*;
use std::sync::Arc;

/// What a sender gets to do its work with.
#[derive(Clone)]
pub struct SenderContext {
    /// To look agents up: names and addresses.
    pub store: Arc<dyn Store>,
    outcomes: Addr<Outcomes>,
}

impl SenderContext {
    pub(crate) fn new(store: Arc<dyn Store>, outcomes: Addr<Outcomes>) -> Self {
        Self { store, outcomes }
    }

    /// Records what happened to commands; answers after the commit. `None`: it may or may not be recorded; do it again.
    pub async fn record(&self, reports: Vec<Report>) -> Option<Vec<Result<Answer, Refused>>> {
        self.outcomes.send(Put::<OutcomeSink>(reports)).await.ok().flatten()
    }
}

/// How the run of a command that was handed to a sender ended, with neither results nor an error.
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

/// The report that `event` happened to a command that was handed to a sender.
pub fn report(delivery: &Delivery, event: Event) -> Report {
    Report {
        action_no: delivery.due.action_no,
        agent_no: delivery.due.agent_no,
        policy: delivery.action.policy,
        event,
        fresh: delivery.due.run == 1 && !delivery.due.open,
    }
}
