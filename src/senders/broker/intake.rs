//! Messages from agents: each is checked, made durable, and answered.

use super::answer::{Away, Greeting};
use super::known::{KnownAgents, Standing};
use super::{Carrier, CarrierError};
use crate::domain::broker::{MAX_MESSAGE, to_agent};
use crate::domain::protocol::{AgentFrame, RunRef, ServerFrame};
use crate::error_chain::ErrorChain;
use crate::senders::SenderContext;
use crate::senders::stream::records::{store_received, store_results};
use crate::senders::stream::reports::store_metadata;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// What has become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// All that it says is durable, and it is answered; or it is put aside. Acknowledge it.
    Done,
    /// The store or the broker is away. It must come again.
    Later,
}

/// See the module.
pub(crate) struct Intake<C> {
    context: SenderContext,
    carrier: Arc<C>,
    known: KnownAgents,
}

impl<C: Carrier> Intake<C> {
    pub(crate) fn new(context: SenderContext, carrier: Arc<C>) -> Self {
        let known = KnownAgents::new(context.transport());
        Self { context, carrier, known }
    }

    /// Takes a message. `agent` is the sender that the broker vouches for: the name in its subject or routing
    /// key; `None` if there is none.
    pub(crate) async fn take(&self, agent: Option<&str>, message: &[u8]) -> Taken {
        let taken = match self.read(agent, message).await {
            Ok(Ok((name, agent_no, Some(frame)))) => self.act(&name, agent_no, frame).await,
            // Later versions know more types.
            Ok(Ok((_, _, None))) => Ok(()),
            Ok(Err(reason)) => self.bury(agent, message, &reason).await,
            Err(away) => Err(away),
        };
        match taken {
            Ok(()) => Taken::Done,
            Err(Away(error)) => {
                log::debug!(transport = self.context.transport(), agent, error; "a message of an agent comes again later");
                Taken::Later
            }
        }
    }

    /// The same. A message at which this process panics is put aside: it would panic again.
    pub(crate) async fn take_or_bury(&self, agent: Option<&str>, message: &[u8]) -> Taken {
        match AssertUnwindSafe(self.take(agent, message)).catch_unwind().await {
            Ok(taken) => taken,
            Err(_) => self.put_aside(agent, message, "the server panicked at it").await,
        }
    }

    /// Puts a message aside that can't be used.
    pub(crate) async fn put_aside(&self, agent: Option<&str>, message: &[u8], reason: &str) -> Taken {
        match self.bury(agent, message, reason).await {
            Ok(()) => Taken::Done,
            Err(_) => Taken::Later,
        }
    }

    /// Puts a message aside that can't be used.
    async fn bury(&self, agent: Option<&str>, message: &[u8], reason: &str) -> Result<(), Away> {
        log::warn!(transport = self.context.transport(), agent, bytes = message.len(), reason;
            "a message of an agent can't be used");
        self.carrier.bury(agent, message, reason).await.map_err(Away::from)
    }

    /// The inner `Err`: why the message can't be used.
    async fn read(
        &self,
        agent: Option<&str>,
        message: &[u8],
    ) -> Result<Result<(String, i64, Option<AgentFrame>), String>, Away> {
        let Some(agent) = agent else { return Ok(Err("it does not say which agent sent it".into())) };
        let agent_no = match self.known.look_up(&*self.context.store, agent).await {
            Ok(Standing::Allowed(agent_no)) => agent_no,
            Ok(Standing::Refused(reason)) => return Ok(Err(reason.into())),
            Err(error) => return Err(Away(error.chain().to_string())),
        };
        if message.len() > MAX_MESSAGE {
            return Ok(Err(format!("it has {} bytes, and {MAX_MESSAGE} are allowed", message.len())));
        }
        let Ok(text) = std::str::from_utf8(message) else { return Ok(Err("it is not UTF-8".into())) };
        match AgentFrame::parse(text) {
            Ok(frame) => Ok(Ok((agent.to_owned(), agent_no, frame))),
            Err(error) => Ok(Err(format!("it is not a frame: {error}"))),
        }
    }

    async fn act(&self, name: &str, agent_no: i64, frame: AgentFrame) -> Result<(), Away> {
        let (context, actions) = (&self.context, &self.context.node().actions);
        match frame {
            AgentFrame::Hello(hello) => {
                Greeting { context, carrier: &*self.carrier, name, agent_no }.answer(hello).await?;
            }
            AgentFrame::Heartbeat => context.node().seen(agent_no, true),
            AgentFrame::Received { commands } => {
                let received = store_received(actions, context, agent_no, commands).await;
                let over = received.ok_or_else(Away::store)?.rejected.into_iter();
                let over = over.map(|rejected| RunRef { action: rejected.action, run: rejected.run }).collect();
                self.cancel_over(name, over).await?;
            }
            AgentFrame::Results { results } => {
                let results = results.into_iter().map(|result| (result.run_ref(), Err(result))).collect();
                let stored = store_results(actions, context, agent_no, results, context.now()).await;
                let stored = ServerFrame::Stored(stored.ok_or_else(Away::store)?);
                self.carrier.send(name, to_agent(&stored, name, context.now()), None).await?;
            }
            AgentFrame::Error(error) => {
                let message: String = error.message.chars().take(500).collect();
                log::warn!(agent = name, code = error.code.as_str(), message; "an agent reports an error");
            }
            AgentFrame::Metadata { seq, items } => {
                let node = context.node();
                let stored = store_metadata(node, agent_no, seq, items).await.ok_or_else(Away::store)?;
                let stored = ServerFrame::MetadataStored(stored);
                self.carrier.send(name, to_agent(&stored, name, context.now()), None).await?;
            }
        }
        Ok(())
    }

    /// Tells the agent to stop what it has of actions that are cancelled or gone. What is over for
    /// another reason, such as a later run, is left alone: a cancel would hit that as well.
    async fn cancel_over(&self, name: &str, runs: Vec<RunRef>) -> Result<(), Away> {
        let mut actions = Vec::new();
        let known = self.context.node().actions.get_by_ids(runs.iter().map(|run| run.action)).await?;
        for run in runs {
            let is_over = known.get(&run.action).is_none_or(|action| action.is_cancelled());
            if is_over && !actions.contains(&run.action) {
                actions.push(run.action);
            }
        }
        if actions.is_empty() {
            return Ok(());
        }
        let cancel = to_agent(&ServerFrame::Cancel { actions }, name, self.context.now());
        Ok(self.carrier.send(name, cancel, None).await?)
    }
}

impl From<CarrierError> for Away {
    fn from(error: CarrierError) -> Self {
        Self(error.to_string())
    }
}
