//! Tells the other nodes what there is to be looked at, and hears what they tell.
//!
//! Receives [`Tell`] from whoever has committed something that another node may wait for. Hints are gathered: the first after
//! a quiet time goes out at once, then at most one message in [`REST`]. What can't be sent is kept and tried again. What it
//! hears goes to the delay scheduler, the stream sender and watchers, as if it had happened here.
//!
//! Dies: hints are lost, which costs others their own periods and nothing else.

use super::action_book::ActionBook;
use super::delay_scheduler::DelayScheduler;
use super::messages::{Backlog, Banned, Cancelled, Drain, Hinted, Moved, Resumed, Tell};
use super::notifier::Notifier;
use super::waiters::Waiters;
use crate::domain::hint::Hint;
use crate::metrics::Metrics;
use crate::senders::stream::StreamSender;
use crate::store::{Store, StoreError};
use actix::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The least time between two messages: 20 a second.
const REST: Duration = Duration::from_millis(50);
/// How long it waits after one could not be sent.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Hints that wait to be sent; beyond these they are one that says "everything".
const WAITING: usize = 10_000;

/// What the actor needs.
#[derive(Clone)]
pub struct HintParts {
    /// Where hints are sent and heard.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub book: ActionBook,
    /// Who looks for commands.
    pub scheduler: Addr<DelayScheduler>,
    /// Who closes connections.
    pub stream: Addr<StreamSender>,
    /// For watchers.
    pub notifier: Notifier,
    /// Agents that wait over plain HTTP.
    pub waiters: Waiters,
    /// Where it counts.
    pub metrics: Metrics,
}

/// See the module.
pub struct Hints {
    parts: HintParts,
    /// Actions with new commands, from which agent key on.
    commands: BTreeMap<i64, i64>,
    others: BTreeSet<Hint>,
    /// A message is on its way, or the rest after it isn't over.
    busy: bool,
    stopped: bool,
}

impl Hints {
    /// With nothing to tell.
    pub fn new(parts: HintParts) -> Self {
        Self { parts, commands: BTreeMap::new(), others: BTreeSet::new(), busy: false, stopped: false }
    }

    fn add(&mut self, hint: Hint) {
        match hint {
            Hint::Commands { action_no, after } => {
                let known = self.commands.entry(action_no).or_insert(after);
                *known = after.min(*known);
            }
            other => drop(self.others.insert(other)),
        }
        if self.commands.len() + self.others.len() > WAITING {
            self.commands.clear();
            self.others = BTreeSet::from([Hint::Everything]);
        }
    }

    fn send(&mut self, ctx: &mut Context<Self>) {
        if self.busy || self.stopped || (self.commands.is_empty() && self.others.is_empty()) {
            return;
        }
        crate::fault_point!("hints");
        self.busy = true;
        let commands = std::mem::take(&mut self.commands).into_iter();
        let commands = commands.map(|(action_no, after)| Hint::Commands { action_no, after });
        let hints: Vec<Hint> = commands.chain(std::mem::take(&mut self.others)).collect();
        let store = self.parts.store.clone();
        let sent = async move {
            let sent = store.hint_send(&hints).await;
            (sent, hints)
        };
        ctx.spawn(sent.into_actor(self).map(|(sent, hints), actor, ctx| {
            let rest = match sent {
                Ok(true) => {
                    actor.parts.metrics.hints_sent();
                    REST
                }
                Ok(false) => REST,
                Err(error) => {
                    log::debug!(error = error.to_string().as_str(); "hints to other nodes wait");
                    actor.parts.metrics.hints_failed();
                    hints.into_iter().for_each(|hint| actor.add(hint));
                    TRY_AGAIN
                }
            };
            ctx.run_later(rest, |actor, ctx| {
                actor.busy = false;
                actor.send(ctx);
            });
        }));
    }

    /// Hears, for ever.
    fn listen(&self, ctx: &mut Context<Self>) {
        let parts = self.parts.clone();
        let heard = async move {
            loop {
                let hints = parts.store.hint_next().await;
                take(&parts, hints).await;
            }
        };
        ctx.spawn(heard.into_actor(self));
    }
}

/// Passes on what was heard. What can't be looked up now is found by those who look without being told.
async fn take(parts: &HintParts, hints: Vec<Hint>) {
    let failed = |error: StoreError| {
        log::warn!(error = error.to_string().as_str(); "what another node told is looked at later");
    };
    parts.metrics.hints_heard(hints.len());
    let mut hinted = Hinted::default();
    let mut moved = Vec::new();
    let mut waiting = false;
    for hint in hints {
        match hint {
            Hint::Moved { agent_no, epoch } => moved.push((agent_no, epoch)),
            Hint::Backlog(agent_no) => drop(parts.stream.try_send(Backlog(agent_no))),
            Hint::Waiting => waiting = true,
            Hint::Commands { action_no, after } => hinted.commands.push((action_no, after)),
            Hint::Open => (hinted.open, waiting) = (true, true),
            Hint::Everything => (hinted.everything, waiting) = (true, true),
            Hint::Action(no) => {
                let action = parts.store.action_get(no).await.unwrap_or_else(|error| {
                    failed(error);
                    None
                });
                let Some(action) = action else { continue };
                if action.is_cancelled() {
                    parts.book.cancel(no);
                    parts.scheduler.try_send(Cancelled(vec![(no, action.id)])).ok();
                } else {
                    parts.book.pause(no, action.is_paused());
                    if !action.is_paused() {
                        parts.scheduler.try_send(Resumed(vec![no])).ok();
                    }
                }
            }
            Hint::Agent(no) => match parts.store.agent_get(no).await {
                Ok(agent) if agent.as_ref().is_none_or(|agent| agent.disabled) => {
                    drop(parts.stream.try_send(Banned(no)))
                }
                Ok(_) => {}
                Err(error) => failed(error),
            },
        }
    }
    if !moved.is_empty() {
        parts.stream.try_send(Moved(moved)).ok();
    }
    if hinted != Hinted::default() {
        parts.scheduler.try_send(hinted).ok();
    }
    let waiters = if waiting { parts.waiters.agents() } else { Vec::new() };
    if !waiters.is_empty() {
        match parts.store.agent_with_due(&waiters).await {
            Ok(agents) => parts.waiters.wake(agents.into_iter()),
            Err(error) => failed(error),
        }
    }
    parts.notifier.notify();
}

impl Actor for Hints {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.listen(ctx);
    }
}

impl Supervised for Hints {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self { stopped: self.stopped, ..Self::new(self.parts.clone()) };
    }
}

impl Handler<Tell> for Hints {
    type Result = ();

    fn handle(&mut self, Tell(hints): Tell, ctx: &mut Self::Context) {
        hints.into_iter().for_each(|hint| self.add(hint));
        self.send(ctx);
    }
}

impl Handler<Drain> for Hints {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        // Others look by themselves.
        self.stopped = true;
    }
}
