//! Commands and cancels on their way to a broker.

use super::{Carrier, CarrierError};
use crate::domain::broker::{to_agent, token};
use crate::domain::protocol::{MAX_FRAME, ServerFrame};
use crate::domain::target::Target;
use crate::error_chain::ErrorChain;
use crate::senders::pooled::{Limits, Transport};
use crate::senders::{Delivery, Outcome, SenderContext};
use async_trait::async_trait;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Messages that wait for the broker's confirmation at the same time.
const CONCURRENCY: usize = 256;
/// Commands that wait in the sender.
const QUEUE: usize = 5_000;
/// Longer than a carrier takes: what a broker does not confirm is no attempt, and this timeout would
/// count one.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The wait of a command for whose message the broker has no room.
const FULL_RETRY: Duration = Duration::from_secs(30);
/// Agents per page when a cancel is published.
const CANCEL_PAGE: usize = 1_000;

/// The transport of a broker's agents.
pub(crate) struct BrokerTransport<C> {
    context: SenderContext,
    carrier: Arc<C>,
}

impl<C: Carrier> BrokerTransport<C> {
    pub(crate) fn new(context: SenderContext, carrier: Arc<C>) -> Self {
        Self { context, carrier }
    }

    /// The agents of this transport that have or may have a command of this action, page by page.
    async fn tell_of_cancel(&self, no: i64, id: Uuid) -> crate::store::StoreResult<()> {
        let store = &self.context.store;
        match self.context.node().actions.get(no).await? {
            // Nobody has any of its commands.
            Some(action) if action.valid_from > self.context.now() => return Ok(()),
            _ => {}
        }
        // What is cancelled already was open a moment ago.
        let state = |state: &str| format!("action('{id}') = '{state}'");
        let states = ["pending", "sent", "cancelled"].map(state).join(" OR ");
        let target = format!("transport = '{}' AND ({states})", self.context.transport());
        let Ok(target) = Target::parse(&target) else {
            log::error!(target; "a cancel's target can't be read");
            return Ok(());
        };
        let mut after = 0;
        loop {
            let page = store.agent_match(&target, after, CANCEL_PAGE).await?;
            let nos: Vec<i64> = page.iter().map(|(agent_no, _)| *agent_no).collect();
            let Some(last) = nos.last() else { return Ok(()) };
            after = *last;
            let agents = store.agent_contacts(&nos).await?;
            let told = futures_util::stream::iter(agents).map(|agent| async move {
                let frame = ServerFrame::Cancel { actions: vec![id] };
                // All nodes tell them. The broker takes one.
                let message_id = format!("cancel.{id}.{}", token(&agent.name));
                let message = to_agent(&frame, &agent.name, self.context.now());
                if let Err(error) = self.carrier.send(&agent.name, message, Some(&message_id)).await {
                    log::debug!(agent = agent.name.as_str(), error:%; "an agent is not told of a cancel");
                }
            });
            told.buffer_unordered(CONCURRENCY).collect::<()>().await;
        }
    }
}

#[async_trait]
impl<C: Carrier> Transport for BrokerTransport<C> {
    fn limits(&self) -> Limits {
        Limits { concurrency: CONCURRENCY, per_group: CONCURRENCY, queue: QUEUE, timeout: TIMEOUT }
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let (name, command) = (delivery.agent.name.as_str(), delivery.command());
        let id = format!("{}.{}.{}.{}", command.action, token(name), command.run, command.attempt);
        let message = to_agent(&ServerFrame::Commands { commands: vec![command] }, name, self.context.now());
        let most = self.carrier.max_message().min(MAX_FRAME);
        if message.len() > most {
            let error = format!("the command has {} bytes, and the broker takes {most}", message.len());
            return Outcome::Failed { error, results: Vec::new() };
        }
        match self.carrier.send(name, message, Some(&id)).await {
            Ok(()) => Outcome::Queued,
            Err(CarrierError::Away(error)) => Outcome::Away { error },
            Err(CarrierError::Refused(error)) => Outcome::Failed { error, results: Vec::new() },
            Err(CarrierError::Full(error)) => {
                log::warn!(agent = name, error; "the broker has no room for a command");
                Outcome::Postponed { after: FULL_RETRY }
            }
        }
    }

    async fn cancelled(&self, actions: &[(i64, Uuid)]) {
        for (no, id) in actions {
            if let Err(error) = self.tell_of_cancel(*no, *id).await {
                log::warn!(action:% = id, error:% = error.chain(); "agents are not told of a cancel");
            }
        }
    }

    async fn close(&self) {
        self.carrier.close().await;
    }
}
