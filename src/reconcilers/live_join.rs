//! Lets agents join live actions that were resolved before the agents matched.
//!
//! When an agent enrolls or its labels or facts change, this reconciler asks the store which live
//! actions match it. Each matching agent without a command gets one, due at once or when the
//! action becomes valid. The command gets an open row, because the action's own cursors have passed
//! its place. Agents of whose changes nobody heard are found by [`live_sweep`](super::live_sweep).
//!
//! Metadata changes all day, so an action is matched only with agents that report a key that its target mentions. Until
//! it expires, a live action stays open and its `counts.resolved` is false.
//!
//! An action that fails keeps its agents, and is tried again after a pause of its own.

use super::support::{join, target_of};
use crate::context::Node;
use crate::domain::target::Target;
use crate::error_chain::ErrorChain;
use crate::runtime::isolation::MISSES;
use crate::runtime::{Backoffs, Pace, Reconcile, RoundFailed};
use crate::signals::{Dirty, LiveKeys};
use crate::store::{Part, StoreError, StoreResult};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks for live actions in any case.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of agents per read and transaction.
const PAGE: usize = 1_000;
/// Agents that an action remembers while it fails. With more, the whole fleet is looked through.
const REMEMBERED: usize = 1_000;

/// See the module.
pub struct LiveJoin {
    node: Arc<Node>,
    /// The targets of the live actions.
    targets: HashMap<i64, Arc<Target>>,
    /// Whether the keys that they mention are what reports are compared with.
    are_keys_published: bool,
    /// Actions that follow keys and were not looked through since.
    unswept: BTreeSet<i64>,
    /// Agents that could not join, by action.
    owed: BTreeMap<i64, Dirty>,
    backoffs: Backoffs,
}

impl LiveJoin {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            targets: HashMap::new(),
            are_keys_published: false,
            unswept: BTreeSet::new(),
            owed: BTreeMap::new(),
            backoffs: Backoffs::default(),
        }
    }

    /// Brings the targets up to date. The keys that they mention are what reports are compared with from now on.
    async fn read_targets(&mut self, live: &[i64]) -> StoreResult<()> {
        let is_live: HashSet<i64> = live.iter().copied().collect();
        let before = self.targets.len();
        self.targets.retain(|no, _| is_live.contains(no));
        self.are_keys_published &= self.targets.len() == before;
        self.unswept.retain(|no| is_live.contains(no));
        self.owed.retain(|no, _| is_live.contains(no));
        self.backoffs.retain(|no| is_live.contains(&no));
        for no in live {
            if !self.targets.contains_key(no)
                && let Some(target) = target_of(&self.node, *no).await?
            {
                if !target.metadata_keys().is_empty() {
                    self.unswept.insert(*no);
                }
                self.are_keys_published = false;
                self.targets.insert(*no, target);
            }
        }
        if !self.are_keys_published {
            let mut keys = LiveKeys::new();
            for (no, target) in &self.targets {
                for key in target.metadata_keys() {
                    keys.entry(key.to_owned()).or_default().insert(*no);
                }
            }
            self.node.signals.metadata_watch().set_live_keys(keys);
            self.are_keys_published = true;
        }
        // What was reported before the keys were followed is in the store.
        if !self.unswept.is_empty() {
            self.node.signals.sweep_live(std::mem::take(&mut self.unswept));
        }
        Ok(())
    }

    /// Lets agents join one action. Those of many changes are left to the sweep.
    async fn join(&self, no: i64, agents: [&Dirty; 3]) -> StoreResult<()> {
        let Some(target) = self.targets.get(&no) else { return Ok(()) };
        let mut among = BTreeSet::new();
        for agents in agents {
            match agents {
                Dirty::Keys(agents) => among.extend(agents.iter().copied()),
                Dirty::Everything => {
                    self.node.signals.sweep_live([no]);
                    return Ok(());
                }
            }
        }
        let among: Vec<i64> = among.into_iter().collect();
        for agents in among.chunks(PAGE) {
            let part = Part { after: 0, limit: PAGE, searched: PAGE };
            join(&self.node, no, target, Some(agents), part).await?;
        }
        Ok(())
    }

    /// An action could not be joined by these agents.
    fn failed(&mut self, no: i64, agents: [&Dirty; 3], error: &StoreError) {
        let (action, text) = (self.node.actions.shown(no), error.chain().to_string());
        let pause = self.backoffs.failed(no, &text, Instant::now());
        log::warn!(action, error = text, pause_ms = pause.as_millis(); "agents wait to join a live action");
        self.owe(no, agents);
    }

    fn owe(&mut self, no: i64, agents: [&Dirty; 3]) {
        let mut owed = Dirty::Keys(BTreeSet::new());
        agents.into_iter().for_each(|agents| owed.add(agents.clone(), REMEMBERED));
        self.owed.insert(no, owed);
    }
}

impl Reconcile for LiveJoin {
    const NAME: &'static str = "live_join";
    const DEBOUNCE: Duration = Duration::from_millis(20);

    fn period(&self) -> Duration {
        if self.owed.is_empty() { POLL_INTERVAL } else { Duration::from_secs(1) }
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let live = self.node.store.action_list_live().await?;
        self.read_targets(&live).await?;
        let (changed, mut reports) = (self.node.signals.changed_agents().take(), self.node.signals.reports().take());
        let nothing = Dirty::Keys(BTreeSet::new());
        let mut away: Option<StoreError> = None;
        let mut misses = 0;
        for no in live.iter().filter(|no| self.targets.contains_key(no)).copied().collect::<Vec<_>>() {
            let (owed, reported) = (self.owed.remove(&no), reports.remove(&no));
            let agents = [&changed, owed.as_ref().unwrap_or(&nothing), reported.as_ref().unwrap_or(&nothing)];
            if agents.iter().all(|agents| **agents == nothing) {
                continue;
            }
            if away.is_some() || !self.backoffs.is_due(no, Instant::now()) {
                self.owe(no, agents);
                continue;
            }
            match self.join(no, agents).await {
                Ok(()) => {
                    self.backoffs.done(no);
                    misses = 0;
                }
                Err(error) => {
                    self.failed(no, agents, &error);
                    misses += usize::from(error.is_transient());
                    away = (misses >= MISSES).then_some(error);
                }
            }
        }
        match away {
            Some(error) => Err(error.into()),
            None => Ok(Pace::Wait),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.backoffs.trouble(|no| self.node.actions.shown(no))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AWAY, TestNode};
    use serde_json::json;

    #[actix_rt::test]
    async fn an_agent_that_has_changed_joins_if_it_matches() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        let agents = node.agents(2).await;
        let mut join = LiveJoin::new(node.node.clone());
        agents.iter().for_each(|agent_no| node.node.signals.agent_changed(*agent_no));
        node.heard().await;
        join.run_once().await.unwrap();
        assert_eq!(node.states(&action).await.len(), 2, "agent-00002 does not match");
        let due = format!("scheduler: rescheduled [({}, {}, 1)]", action.no, agents[0]);
        assert_eq!(node.heard().await, [due, format!("peers: [Backlog({}), Open]", agents[0])]);
        assert_eq!(node.node.signals.changed_agents().take(), Dirty::Keys([].into()), "they are taken");
        node.node.signals.agent_changed(agents[0]);
        node.heard().await;
        join.run_once().await.unwrap();
        assert_eq!(node.states(&action).await.len(), 2, "it has joined before");
        assert!(node.heard().await.is_empty());
    }

    #[actix_rt::test]
    async fn an_agent_joins_when_it_reports_what_a_target_mentions() {
        let node = TestNode::new().await;
        let document = json!({"membership": "live", "target": "metadata.battery < 20", "expires_after": "1h"});
        let action = node.resolved(document, &[]).await;
        let other = node.live_action().await;
        let agents = node.agents(2).await;
        let mut join = LiveJoin::new(node.node.clone());
        join.run_once().await.unwrap();
        let report = async |agent_no, key: &str, value: &str| {
            let value = crate::domain::metadata::Value {
                value: Some(value.to_owned()),
                error: None,
                collected_at: node.store.now(),
                clamped: false,
            };
            let (values, at) = (Arc::new([(key.to_owned(), value)].into()), node.store.now());
            let report = crate::domain::metadata::AgentReport { agent_no, values, at, checked_in: false };
            node.node.reporter.put(vec![report]).await.unwrap();
        };
        report(agents[0], "battery", "50").await;
        report(agents[0], "load", "1").await;
        join.run_once().await.unwrap();
        assert_eq!(node.states(&action).await.len(), 0);
        report(agents[1], "battery", "19").await;
        assert!(node.has_heard("live_join: wake").await);
        join.run_once().await.unwrap();
        assert_eq!(node.states(&action).await.len(), 1);
        assert_eq!(node.states(&other).await.len(), 1, "metadata is no reason to look at other live actions");
        report(agents[0], "load", "2").await;
        assert!(!node.has_heard("live_join: wake").await, "no target mentions it");
    }

    #[actix_rt::test]
    async fn more_changes_than_are_remembered_cause_a_sweep() {
        let node = TestNode::new().await;
        let action = node.live_action().await;
        node.node.signals.changed_agents().add_everything();
        LiveJoin::new(node.node.clone()).run_once().await.unwrap();
        assert_eq!(node.node.signals.live_sweeps().take(), Dirty::Keys([action.no].into()));
        assert!(node.has_heard("live_sweep: wake").await);
    }

    #[actix_rt::test]
    async fn an_action_that_fails_keeps_its_agents_and_is_in_no_others_way() {
        let node = TestNode::new().await;
        let (bad, good) = (node.live_action().await, node.live_action().await);
        let agents = node.agents(2).await;
        let mut join = LiveJoin::new(node.node.clone());
        node.node.signals.agent_changed(agents[1]);
        node.break_inserts("commands", &format!("NEW.action_no = {}", bad.no), AWAY);
        join.run_once().await.unwrap();
        assert_eq!((node.states(&bad).await.len(), node.states(&good).await.len()), (1, 2));
        assert!(join.trouble().is_some_and(|text| text.starts_with(&format!("action {}: ", bad.id))));
        node.mend_inserts("commands");
        join.run_once().await.unwrap();
        assert_eq!(node.states(&bad).await.len(), 1, "it pauses");
        join.backoffs = Backoffs::default();
        join.run_once().await.unwrap();
        assert_eq!(node.states(&bad).await.len(), 2);
        assert!(join.owed.is_empty() && join.trouble().is_none());
    }

    #[actix_rt::test]
    async fn changed_agents_are_remembered_while_the_store_is_away() {
        let node = TestNode::new().await;
        let actions = [node.live_action().await, node.live_action().await, node.live_action().await];
        let agents = node.agents(1).await;
        let mut join = LiveJoin::new(node.node.clone());
        node.node.signals.agent_changed(agents[0]);
        node.break_inserts("commands", "TRUE", AWAY);
        assert!(join.run_once().await.is_err());
        node.mend_inserts("commands");
        join.backoffs = Backoffs::default();
        join.run_once().await.unwrap();
        for action in &actions {
            assert_eq!(node.states(action).await.len(), 2);
        }
    }
}
