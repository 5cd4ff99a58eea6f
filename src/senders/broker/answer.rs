//! The answer to an agent's `hello`: `welcome`, and then all that is open for it.
//!
//! `welcome` goes first, and the broker has it before the backlog is read. So every command that
//! lies before it in the agent's queue was due before that, and is in the backlog: an agent that
//! drops what comes before `welcome` misses nothing.

use super::Carrier;
use crate::domain::agent::fits;
use crate::domain::broker::to_agent;
use crate::domain::command::Event;
use crate::domain::protocol::{Command, Hello, MAX_FRAME, RunRef, ServerFrame, Welcome};
use crate::domain::time::Span;
use crate::error_chain::ErrorChain;
use crate::senders::stream::MAX_CAPACITY;
use crate::senders::stream::records::store_received;
use crate::senders::{DueCommand, SenderContext, report_of};
use crate::store::{Said, StoreError};
use std::collections::HashSet;
use uuid::Uuid;

/// Commands in one answer. An agent with more gets the rest with its next `hello`.
const MOST: usize = 10_000;
/// What a command needs in a message beside its operations and its name.
const COMMAND_SIZE: usize = 512;

/// The store or the broker is away.
#[derive(Debug)]
pub(crate) struct Away(pub(super) String);

impl Away {
    pub(super) fn store() -> Self {
        Self("the store is not available".into())
    }
}

impl From<StoreError> for Away {
    fn from(error: StoreError) -> Self {
        Self(error.chain().to_string())
    }
}

/// An agent that has said `hello`.
pub(super) struct Greeting<'a, C> {
    pub(super) context: &'a SenderContext,
    pub(super) carrier: &'a C,
    pub(super) name: &'a str,
    pub(super) agent_no: i64,
}

impl<C: Carrier> Greeting<'_, C> {
    pub(super) async fn answer(&self, hello: Hello) -> Result<(), Away> {
        let (node, agent_no) = (self.context.node(), self.agent_no);
        node.seen(agent_no, true);
        let said = Said { labels: None, facts: hello.facts, version: hello.version };
        if !fits(said.facts.as_ref()) || said.version.len() > 128 {
            log::warn!(agent = self.name; "an agent's facts or version are too large, and are left out");
        } else if node.store.agent_refresh(agent_no, said).await? {
            node.signals.agent_changed(agent_no);
        }
        let (agent, server_time, clock) = (self.name.to_owned(), self.context.now(), hello.clock);
        let metadata_interval = Some(Span(node.pace.interval()));
        let welcome = Welcome { agent, server_time, clock, metadata_interval };
        self.send(&ServerFrame::Welcome(welcome)).await?;
        // An agent can't run more than its capacity.
        let running: HashSet<RunRef> = hello.running.into_iter().take(2 * MAX_CAPACITY).collect();
        self.adopt(&running).await?;
        let capacity = (hello.capacity.max(1) as usize).min(MAX_CAPACITY);
        self.deliver(&running, capacity).await
    }

    async fn send(&self, frame: &ServerFrame) -> Result<(), Away> {
        Ok(self.carrier.send(self.name, to_agent(frame, self.name, self.context.now()), None).await?)
    }

    /// The agent has these, or their results. Those that were cancelled meanwhile are to stop.
    async fn adopt(&self, running: &HashSet<RunRef>) -> Result<(), Away> {
        if running.is_empty() {
            return Ok(());
        }
        let (actions, runs) = (&self.context.node().actions, running.iter().copied().collect());
        let received = store_received(actions, self.context, self.agent_no, runs).await.ok_or_else(Away::store)?;
        let known = actions.get_by_ids(received.rejected.iter().map(|rejected| rejected.action)).await?;
        let is_over = |id: &Uuid| known.get(id).is_none_or(|action| action.is_cancelled());
        let over: Vec<Uuid> =
            received.rejected.into_iter().map(|rejected| rejected.action).filter(|id| is_over(id)).collect();
        if over.is_empty() { Ok(()) } else { self.send(&ServerFrame::Cancel { actions: over }).await }
    }

    async fn deliver(&self, running: &HashSet<RunRef>, capacity: usize) -> Result<(), Away> {
        let (node, now) = (self.context.node(), self.context.now());
        let largest = (MAX_FRAME / 2).min(self.carrier.max_message());
        let (mut page, mut size): (Vec<DueCommand>, usize) = (Vec::new(), 0);
        let backlog = node.store.command_backlog(self.agent_no, now, MOST).await?;
        if backlog.len() == MOST {
            log::warn!(agent = self.name, commands = MOST; "an agent has too many open commands for one answer");
        }
        for due in backlog {
            let Some(action) = node.actions.get(due.action_no).await? else { continue };
            let command = DueCommand { due, action };
            let run = RunRef { action: command.action.id, run: command.due.run };
            if command.not_before() > now || running.contains(&run) {
                continue;
            }
            let needs = command.action.operations.get().len() + command.action.name.len() + COMMAND_SIZE;
            if needs > self.carrier.max_message() {
                // The transport refuses it with a result.
                continue;
            }
            if page.len() >= capacity || (!page.is_empty() && size + needs > largest) {
                self.deliver_page(std::mem::take(&mut page)).await?;
                size = 0;
            }
            size += needs;
            page.push(command);
        }
        if page.is_empty() { Ok(()) } else { self.deliver_page(page).await }
    }

    async fn deliver_page(&self, page: Vec<DueCommand>) -> Result<(), Away> {
        let commands: Vec<Command> = page.iter().map(DueCommand::command).collect();
        self.send(&ServerFrame::Commands { commands }).await?;
        let queued = page.iter().map(|command| {
            let event = Event::Queued { run: command.due.run, due_at: command.due.due_at };
            report_of(&command.action, self.agent_no, event)
        });
        match self.context.record_patiently(queued.collect()).await {
            true => Ok(()),
            false => Err(Away::store()),
        }
    }
}
