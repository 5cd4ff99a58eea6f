//! Sends hints about commits to the other nodes, and passes on theirs.
//!
//! Receives [`Publish`] from the signals. Hints are batched: the first after a quiet time is sent
//! at once, then at most one message every [`MIN_INTERVAL`]. Hints that can't be sent are kept and
//! tried again. Hints from other nodes go through the same signals as local events.
//!
//! Crash: hints are lost, which costs other nodes a polling interval and nothing else.

use super::board::Signals;
use super::messages::{PeerNews, Publish};
use super::metadata_watch::{MANY, Reported};
use crate::domain::hint::Hint;
use crate::error_chain::ErrorChain;
use crate::metrics::Metrics;
use crate::runtime::Drain;
use crate::store::{Store, StoreError, StoreResult};
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
    /// Agents that reported metadata.
    reported: Reported,
    /// A message is being sent, or the interval after it isn't over.
    busy: bool,
    stopped: bool,
}

impl PeerNotifier {
    /// A notifier without pending hints.
    pub fn new(store: Arc<dyn Store>, signals: Signals, metrics: Metrics) -> Self {
        let (commands, others, reported) = (BTreeMap::new(), BTreeSet::new(), Reported::default());
        Self { store, signals, metrics, commands, others, reported, busy: false, stopped: false }
    }

    fn add(&mut self, hint: Hint) {
        match hint {
            Hint::Commands { action_no, after } => {
                let known = self.commands.entry(action_no).or_insert(after);
                *known = after.min(*known);
            }
            Hint::Metadata(None) => self.reported = Reported::Many,
            Hint::Metadata(Some(agents)) => self.reported.add(&agents, MANY),
            other => drop(self.others.insert(other)),
        }
        if self.commands.len() + self.others.len() > MAX_PENDING {
            self.commands.clear();
            self.others = BTreeSet::from([Hint::Everything]);
        }
    }

    fn send(&mut self, ctx: &mut Context<Self>) {
        let is_empty = self.commands.is_empty() && self.others.is_empty() && self.reported.is_empty();
        if self.busy || self.stopped || is_empty {
            return;
        }
        crate::fault_point!("peers");
        self.busy = true;
        let hints = self.take();
        let store = self.store.clone();
        let sent = async move {
            let sent = store.hint_send(&hints).await;
            (sent, hints)
        };
        ctx.spawn(sent.into_actor(self).map(|(sent, hints), peers, ctx| {
            let wait = peers.after(sent, hints);
            ctx.run_later(wait, |peers, ctx| {
                peers.busy = false;
                peers.send(ctx);
            });
        }));
    }

    /// Everything that waits, as one message.
    fn take(&mut self) -> Vec<Hint> {
        let commands = std::mem::take(&mut self.commands).into_iter();
        let commands = commands.map(|(action_no, after)| Hint::Commands { action_no, after });
        let reported = match std::mem::take(&mut self.reported) {
            Reported::Many => Some(Hint::Metadata(None)),
            Reported::Agents(agents) if agents.is_empty() => None,
            Reported::Agents(agents) => Some(Hint::Metadata(Some(agents.into_iter().collect()))),
        };
        commands.chain(std::mem::take(&mut self.others)).chain(reported).collect()
    }

    /// These hints were sent, or not, and then they are kept. Answers how long nothing is sent.
    fn after(&mut self, sent: StoreResult<bool>, hints: Vec<Hint>) -> Duration {
        match sent {
            Ok(is_heard) => {
                if is_heard {
                    self.metrics.hints_sent();
                }
                MIN_INTERVAL
            }
            Err(error) => {
                log::debug!(error:% = error.chain(); "hints to other nodes wait");
                self.metrics.hints_failed();
                hints.into_iter().for_each(|hint| self.add(hint));
                RETRY_INTERVAL
            }
        }
    }

    /// Passes on what other nodes tell, for ever.
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
    let (mut moved, mut backlogs) = (Vec::new(), Vec::new());
    let mut waiting = false;
    for hint in hints {
        match hint {
            Hint::Moved { agent_no, epoch } => moved.push((agent_no, epoch)),
            Hint::Backlog(agent_no) => backlogs.push(agent_no),
            Hint::Waiting => waiting = true,
            Hint::Commands { action_no, after } => news.commands.push((action_no, after)),
            Hint::Open => (news.open, waiting) = (true, true),
            Hint::Everything => (news.everything, waiting) = (true, true),
            Hint::Metadata(agents) => signals.heard_metadata(agents),
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
    signals.heard_backlogs(backlogs);
    signals.heard_news(news);
    let waiting = if waiting { signals.long_pollers().agents() } else { Vec::new() };
    if !waiting.is_empty() {
        match store.agent_with_due(&waiting, store.now()).await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Event;
    use crate::store::AgentPatch;
    use crate::testing::{TestNode, me, supervision, until};
    use serde_json::json;

    fn notifier(node: &TestNode) -> PeerNotifier {
        PeerNotifier::new(node.store.clone(), node.node.signals.clone(), node.node.metrics.clone())
    }

    fn commands(action_no: i64, after: i64) -> Hint {
        Hint::Commands { action_no, after }
    }

    #[actix_rt::test]
    async fn hints_are_gathered_and_the_commands_of_an_action_begin_at_the_first() {
        let node = TestNode::new().await;
        let mut peers = notifier(&node);
        let hints = [commands(1, 50), Hint::Open, commands(1, 20), commands(1, 70), commands(2, 0), Hint::Open];
        hints.into_iter().for_each(|hint| peers.add(hint));
        assert_eq!(peers.take(), [commands(1, 20), commands(2, 0), Hint::Open]);
        assert!(peers.take().is_empty());
    }

    #[actix_rt::test]
    async fn more_hints_than_are_remembered_become_everything() {
        let node = TestNode::new().await;
        let mut peers = notifier(&node);
        let last = MAX_PENDING as i64;
        (1..=last).for_each(|no| peers.add(if no % 2 == 0 { commands(no, 0) } else { Hint::Action(no) }));
        assert_eq!(peers.take().len(), MAX_PENDING);
        (0..=last).for_each(|no| peers.add(if no % 2 == 0 { commands(no, 0) } else { Hint::Action(no) }));
        assert_eq!(peers.take(), [Hint::Everything]);
    }

    #[actix_rt::test]
    async fn agents_that_reported_are_told_together() {
        let node = TestNode::new().await;
        let mut peers = notifier(&node);
        let told = |agents: std::ops::Range<i64>| Hint::Metadata(Some(agents.collect()));
        [told(5..7), Hint::Open, told(1..3), told(6..8)].into_iter().for_each(|hint| peers.add(hint));
        assert_eq!(peers.take(), [Hint::Open, Hint::Metadata(Some([1, 2, 5, 6, 7].into()))]);
        peers.add(told(0..MANY as i64));
        peers.add(told(MANY as i64..2 * MANY as i64));
        peers.add(told(1..2));
        assert_eq!(peers.take(), [Hint::Metadata(None)]);
        assert!(peers.take().is_empty());
    }

    #[actix_rt::test]
    async fn hints_that_could_not_be_sent_are_kept_with_those_that_came_meanwhile() {
        let node = TestNode::new().await;
        let mut peers = notifier(&node);
        peers.add(commands(1, 20));
        let hints = peers.take();
        peers.add(commands(1, 50));
        peers.add(Hint::Open);
        let wait = peers.after(Err(StoreError::Unavailable("it is away".into())), hints);
        assert_eq!(wait, RETRY_INTERVAL);
        let hints = peers.take();
        assert_eq!(hints, [commands(1, 20), Hint::Open]);
        assert_eq!(peers.after(Ok(true), hints), MIN_INTERVAL);
        assert!(peers.take().is_empty());
    }

    #[actix_rt::test]
    async fn after_a_drain_and_a_crash_nothing_is_sent() {
        let node = TestNode::new().await;
        let mut peers = notifier(&node);
        peers.stopped = true;
        peers.restarting(&mut Context::new());
        assert!(peers.stopped);
        let peers = crate::runtime::Unstarted::default().start("peers", peers, &supervision());
        peers.send(Publish(vec![Hint::Open])).await.expect("it lives");
        peers.send(Drain).await.expect("it is answered");
    }

    async fn heard(node: &TestNode, hints: &[Hint]) -> Vec<String> {
        pass_on(&*node.store, &node.node.signals, hints.to_vec()).await;
        node.heard().await
    }

    #[actix_rt::test]
    async fn news_of_other_nodes_reach_the_scheduler_as_one_message() {
        let node = TestNode::new().await;
        let hints =
            [commands(1, 5), Hint::Open, commands(2, 0), Hint::Backlog(3), Hint::Moved { agent_no: 4, epoch: 6 }];
        let expected = [
            "scheduler: PeerNews { commands: [(1, 5), (2, 0)], open: true, everything: false }",
            "stream: superseded [(4, 6)]",
            "stream: backlog [3]",
        ];
        assert_eq!(heard(&node, &hints).await, expected);
        let expected = [
            "scheduler: PeerNews { commands: [], open: false, everything: true }",
            "open_actions: wake",
            "backlogs: wake",
        ];
        assert_eq!(heard(&node, &[Hint::Everything]).await, expected);
    }

    #[actix_rt::test]
    async fn an_action_that_another_node_was_told_of_is_looked_up() {
        let node = TestNode::new().await;
        let action = node.submit(json!({})).await;
        let hint = [Hint::Action(action.no)];
        node.store.action_pause(action.id, true, &me()).await.unwrap();
        assert!(heard(&node, &hint).await.is_empty());
        assert!(action.is_paused());
        node.store.action_pause(action.id, false, &me()).await.unwrap();
        assert_eq!(heard(&node, &hint).await, ["scheduler: resumed [1]", "backlogs: wake"]);
        assert!(!action.is_paused());
        node.store.action_cancel(action.id, &me()).await.unwrap();
        let cancelled = heard(&node, &hint).await;
        assert_eq!(cancelled[..2], ["scheduler: cancelled [1]", "sender 1: cancelled [1]"]);
        assert!(action.is_cancelled());
        assert!(heard(&node, &[Hint::Action(99)]).await.is_empty(), "there is none");
    }

    #[actix_rt::test]
    async fn an_agent_is_disconnected_if_it_is_disabled_or_removed() {
        let node = TestNode::new().await;
        let agent_no = node.agents(1).await[0];
        let hint = [Hint::Agent(agent_no)];
        let disabled = format!("stream: disabled {agent_no}");
        assert!(heard(&node, &hint).await.is_empty());
        let patch = |disabled| AgentPatch { disabled: Some(disabled), ..AgentPatch::default() };
        node.store.agent_update("agent-00000", &patch(true), &me()).await.unwrap();
        assert_eq!(heard(&node, &hint).await.concat(), disabled);
        node.store.agent_update("agent-00000", &patch(false), &me()).await.unwrap();
        node.store.agent_remove("agent-00000", &me()).await.unwrap();
        assert_eq!(heard(&node, &hint).await.concat(), disabled);
    }

    #[actix_rt::test]
    async fn a_long_poll_is_woken_if_its_agent_has_something_that_is_due() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let action = node.resolved(json!({}), &agents).await;
        node.tell(&action, agents[0], Event::Hold { due_at: node.store.now() }).await;
        let pollers = node.node.signals.long_pollers();
        let (with, without) = (pollers.wait(agents[0]), pollers.wait(agents[1]));
        heard(&node, &[Hint::Waiting]).await;
        tokio::time::timeout(Duration::from_secs(30), with.woken()).await.expect("it is woken");
        assert!(tokio::time::timeout(Duration::from_millis(10), without.woken()).await.is_err());
    }

    #[actix_rt::test]
    async fn what_cannot_be_looked_up_is_left_to_polling() {
        let node = TestNode::new().await;
        node.store.action_insert(vec![crate::testing::new_action(json!({}), node.store.now())]).await.unwrap();
        node.sql("UPDATE actions SET operations = '['");
        let heard = heard(&node, &[Hint::Action(1), Hint::Backlog(3)]).await;
        assert_eq!(heard, ["stream: backlog [3]"], "the rest is passed on");
        until("the board is quiet", async || node.heard().await.is_empty()).await;
    }
}
