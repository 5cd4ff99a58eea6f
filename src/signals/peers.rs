//! Sends hints about commits to the other nodes, and passes on theirs.
//!
//! Receives [`Publish`] from the signals. Hints are batched: the first after a quiet time is sent
//! at once, then at most one message every [`MIN_INTERVAL`]. Hints that can't be sent are kept and
//! tried again. Hints from other nodes go through the same signals as local events.
//!
//! Crash: hints are lost, which costs other nodes a polling interval and nothing else.

use super::board::Signals;
use super::messages::{PeerNews, Publish};
use crate::domain::hint::Hint;
use crate::error_chain::ErrorChain;
use crate::metrics::Metrics;
use crate::runtime::Drain;
use crate::store::{Store, StoreError};
use actix::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The shortest time between two messages: 20 a second.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
/// The wait after a message that could not be sent.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of pending hints. Beyond it, they are replaced by one that says "everything".
const MAX_PENDING: usize = 10_000;

/// See the module.
pub struct PeerNotifier {
    store: Arc<dyn Store>,
    signals: Signals,
    metrics: Metrics,
    /// Actions with new commands, and the agent key after which these begin.
    commands: BTreeMap<i64, i64>,
    others: BTreeSet<Hint>,
    /// A message is being sent, or the interval after it isn't over.
    busy: bool,
    stopped: bool,
}

impl PeerNotifier {
    /// A notifier without pending hints.
    pub fn new(store: Arc<dyn Store>, signals: Signals, metrics: Metrics) -> Self {
        let (commands, others) = (BTreeMap::new(), BTreeSet::new());
        Self { store, signals, metrics, commands, others, busy: false, stopped: false }
    }

    fn add(&mut self, hint: Hint) {
        match hint {
            Hint::Commands { action_no, after } => {
                let known = self.commands.entry(action_no).or_insert(after);
                *known = after.min(*known);
            }
            other => drop(self.others.insert(other)),
        }
        if self.commands.len() + self.others.len() > MAX_PENDING {
            self.commands.clear();
            self.others = BTreeSet::from([Hint::Everything]);
        }
    }

    fn send(&mut self, ctx: &mut Context<Self>) {
        if self.busy || self.stopped || (self.commands.is_empty() && self.others.is_empty()) {
            return;
        }
        crate::fault_point!("peers");
        self.busy = true;
        let commands = std::mem::take(&mut self.commands).into_iter();
        let commands = commands.map(|(action_no, after)| Hint::Commands { action_no, after });
        let hints: Vec<Hint> = commands.chain(std::mem::take(&mut self.others)).collect();
        let store = self.store.clone();
        let sent = async move {
            let sent = store.hint_send(&hints).await;
            (sent, hints)
        };
        ctx.spawn(sent.into_actor(self).map(|(sent, hints), peers, ctx| {
            let wait = match sent {
                Ok(true) => {
                    peers.metrics.hints_sent();
                    MIN_INTERVAL
                }
                Ok(false) => MIN_INTERVAL,
                Err(error) => {
                    log::debug!(error:% = error.chain(); "hints to other nodes wait");
                    peers.metrics.hints_failed();
                    hints.into_iter().for_each(|hint| peers.add(hint));
                    RETRY_INTERVAL
                }
            };
            ctx.run_later(wait, |peers, ctx| {
                peers.busy = false;
                peers.send(ctx);
            });
        }));
    }

    /// Passes on hints from other nodes, for ever.
    fn listen(&self, ctx: &mut Context<Self>) {
        let (store, signals, metrics) = (self.store.clone(), self.signals.clone(), self.metrics.clone());
        let heard = async move {
            loop {
                let hints = store.hint_next().await;
                metrics.hints_heard(hints.len());
                pass_on(&*store, &signals, hints).await;
            }
        };
        ctx.spawn(heard.into_actor(self));
    }
}

/// Passes on received hints. If a look-up fails, polling finds the change.
async fn pass_on(store: &dyn Store, signals: &Signals, hints: Vec<Hint>) {
    let mut news = PeerNews::default();
    let mut moved = Vec::new();
    let mut waiting = false;
    for hint in hints {
        match hint {
            Hint::Moved { agent_no, epoch } => moved.push((agent_no, epoch)),
            Hint::Backlog(agent_no) => signals.heard_backlog(agent_no),
            Hint::Waiting => waiting = true,
            Hint::Commands { action_no, after } => news.commands.push((action_no, after)),
            Hint::Open => (news.open, waiting) = (true, true),
            Hint::Everything => (news.everything, waiting) = (true, true),
            Hint::Action(no) => match store.action_get(no).await {
                Ok(Some(action)) if action.is_cancelled() => signals.heard_cancelled(no, action.id),
                // Resuming an action that isn't paused costs one extra read.
                Ok(Some(action)) => signals.pause_found(no, action.is_paused()),
                Ok(None) => {}
                Err(error) => not_looked_up(&error),
            },
            Hint::Agent(no) => match store.agent_get(no).await {
                Ok(agent) if agent.as_ref().is_none_or(|agent| agent.disabled) => signals.heard_disabled(no),
                Ok(_) => {}
                Err(error) => not_looked_up(&error),
            },
        }
    }
    signals.heard_moved(moved);
    signals.heard_news(news);
    let waiting = if waiting { signals.long_pollers().agents() } else { Vec::new() };
    if !waiting.is_empty() {
        match store.agent_with_due(&waiting).await {
            Ok(agents) => signals.heard_waiting(agents),
            Err(error) => not_looked_up(&error),
        }
    }
}

fn not_looked_up(error: &StoreError) {
    log::warn!(error:% = error.chain(); "what another node told could not be looked up; polling finds it");
}

impl Actor for PeerNotifier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.listen(ctx);
    }
}

impl Supervised for PeerNotifier {
    fn restarting(&mut self, _: &mut Self::Context) {
        let fresh = Self::new(self.store.clone(), self.signals.clone(), self.metrics.clone());
        *self = Self { stopped: self.stopped, ..fresh };
    }
}

impl Handler<Publish> for PeerNotifier {
    type Result = ();

    fn handle(&mut self, Publish(hints): Publish, ctx: &mut Self::Context) {
        hints.into_iter().for_each(|hint| self.add(hint));
        self.send(ctx);
    }
}

impl Handler<Drain> for PeerNotifier {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        // Unsent hints are dropped: other nodes poll.
        self.stopped = true;
    }
}
