//! Lets agents join live actions that were resolved before the agents matched.
//!
//! When an agent enrolls or its labels or facts change, this reconciler asks the store which live
//! actions match it. A slow sweep over the whole fleet finds missed agents, for the live actions
//! that this node owns. Each matching agent without a command gets one, due at once or when the
//! action becomes valid. The command gets an open row, because the action's own cursors have passed
//! its place.
//!
//! Metadata changes all day, so an action is matched with the agents that report only if its target mentions
//! a key that they report. Until it expires, a live action stays open and its `counts.resolved` is false.

use crate::context::Node;
use crate::domain::target::Target;
use crate::runtime::isolation::for_each_action;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::signals::Dirty;
use crate::store::StoreResult;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks for live actions in any case.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// How often the whole fleet is swept.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of agents per read and transaction.
const PAGE: usize = 1_000;

/// See the module.
pub struct LiveJoin {
    node: Arc<Node>,
    swept: Option<Instant>,
    /// Actions whose targets mention metadata, and whose keys are followed.
    followed: HashSet<i64>,
}

impl LiveJoin {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, swept: None, followed: HashSet::new() }
    }

    /// The actions whose targets mention metadata; their keys are what reports are compared with from now on.
    async fn follow_keys(&self, live: &[i64]) -> StoreResult<Vec<i64>> {
        let (mut keys, mut actions) = (HashSet::new(), Vec::new());
        for no in live {
            let Some(action) = self.node.actions.get(*no).await? else { continue };
            let Ok(target) = Target::parse(&action.target) else { continue };
            let mentioned = target.metadata_keys();
            if !mentioned.is_empty() {
                actions.push(*no);
            }
            keys.extend(mentioned.into_iter().map(str::to_owned));
        }
        self.node.signals.metadata_watch().set_live_keys(keys);
        Ok(actions)
    }

    /// Lets agents join that have reported keys which targets mention.
    async fn join_reported(&mut self, live: &[i64]) -> StoreResult<()> {
        let actions = self.follow_keys(live).await?;
        // What was reported before the keys were followed is in the store.
        let new: Vec<i64> = actions.iter().copied().filter(|no| !self.followed.contains(no)).collect();
        self.join_all(&new, None).await?;
        self.followed = actions.iter().copied().collect();
        let reported = self.node.signals.reported_agents();
        match reported.take() {
            Dirty::Everything => self.join_all(&actions, None).await,
            Dirty::Keys(agents) if agents.is_empty() => Ok(()),
            Dirty::Keys(agents) => {
                let agents: Vec<i64> = agents.into_iter().collect();
                self.join_all(&actions, Some(&agents)).await.inspect_err(|_| reported.add(agents))
            }
        }
    }

    async fn join_all(&self, nos: &[i64], among: Option<&[i64]>) -> StoreResult<()> {
        for_each_action(nos, |no| self.node.actions.shown(*no), async |no| self.join(*no, among).await).await
    }

    /// Lets changed agents join. On failure, they are put back for the next round.
    async fn join_changed(&self, live: &[i64]) -> StoreResult<()> {
        let changed = self.node.signals.changed_agents();
        match changed.take() {
            Dirty::Everything => self.join_all(live, None).await,
            Dirty::Keys(agents) if agents.is_empty() => Ok(()),
            Dirty::Keys(agents) => {
                let agents: Vec<i64> = agents.into_iter().collect();
                self.join_all(live, Some(&agents)).await.inspect_err(|_| changed.add(agents))
            }
        }
    }

    /// Now and then, lets all agents join the actions that this node owns.
    async fn sweep(&mut self, live: Vec<i64>) -> StoreResult<()> {
        if self.swept.is_some_and(|last| last.elapsed() < SWEEP_INTERVAL) {
            return Ok(());
        }
        let open = self.node.signals.open_actions().last();
        let others = open.actions.iter().filter(|action| !action.owned).map(|action| action.no);
        let others: HashSet<i64> = others.collect();
        let own: Vec<i64> = live.into_iter().filter(|no| !others.contains(no)).collect();
        self.join_all(&own, None).await?;
        self.swept = Some(Instant::now());
        Ok(())
    }

    async fn join(&self, no: i64, among: Option<&[i64]>) -> StoreResult<()> {
        let store = &self.node.store;
        let Some(action) = self.node.actions.get(no).await? else { return Ok(()) };
        // The target was parsed when the action was accepted.
        let Ok(target) = Target::parse(&action.target) else { return Ok(()) };
        let mut after = 0;
        loop {
            let agents = store.agent_match_joining(no, &target, among, after, PAGE).await?;
            let Some((last, _)) = agents.last() else { return Ok(()) };
            after = *last;
            let is_full = agents.len() >= PAGE;
            let agents: Vec<i64> = agents.into_iter().map(|(agent, _)| agent).collect();
            let due = store.command_insert_joining(no, &agents).await?;
            if !due.is_empty() {
                log::info!(action:% = action.id, agents = due.len(); "agents join a live action");
                self.node.metrics.commands_written(due.len() as u64);
                self.node.signals.commands_joined(due);
            }
            if !is_full {
                return Ok(());
            }
        }
    }
}

impl Reconcile for LiveJoin {
    const NAME: &'static str = "live_join";
    const DEBOUNCE: Duration = Duration::from_millis(20);

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let live = self.node.store.action_list_live().await?;
        self.join_changed(&live).await?;
        self.join_reported(&live).await?;
        self.sweep(live).await?;
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::Action;
    use crate::testing::{AWAY, TestNode};
    use serde_json::json;

    /// A live action that was resolved when there was one agent.
    async fn live(node: &TestNode) -> Arc<Action> {
        let agents = node.agents(1).await;
        let document = json!({"membership": "live", "target": "name <> 'agent-00002'", "expires_after": "1h"});
        node.resolved(document, &agents).await
    }

    /// One that has just swept.
    fn swept(node: &TestNode) -> LiveJoin {
        LiveJoin { node: node.node.clone(), swept: Some(Instant::now()), followed: HashSet::new() }
    }

    async fn joined(node: &TestNode, action: &Action) -> usize {
        node.states(action).await.len()
    }

    #[actix_rt::test]
    async fn an_agent_that_has_changed_joins_if_it_matches() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        let agents = node.agents(2).await;
        let mut join = swept(&node);
        agents.iter().for_each(|agent_no| node.node.signals.agent_changed(*agent_no));
        node.heard().await;
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2, "agent-00002 does not match");
        let due = format!("scheduler: rescheduled [({}, {}, 1)]", action.no, agents[0]);
        assert_eq!(node.heard().await, [due, "peers: [Open]".to_owned()]);
        assert_eq!(node.node.signals.changed_agents().take(), Dirty::Keys([].into()), "they are taken");
        node.node.signals.agent_changed(agents[0]);
        node.heard().await;
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2, "it has joined before");
        assert!(node.heard().await.is_empty());
    }

    #[actix_rt::test]
    async fn an_agent_that_nobody_told_of_joins_by_the_sweep_which_is_due_once_a_minute() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        let mut join = LiveJoin::new(node.node.clone());
        node.agents(1).await;
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2);
        // The third one does not match.
        node.agents(2).await;
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2, "it has swept just now");
        join.swept = Instant::now().checked_sub(SWEEP_INTERVAL);
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 3);
    }

    #[actix_rt::test]
    async fn a_sweep_goes_beyond_the_first_page() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        node.agents(PAGE + 2).await;
        LiveJoin::new(node.node.clone()).run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, PAGE + 2);
    }

    #[actix_rt::test]
    async fn a_sweep_leaves_another_nodes_action_alone() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        let agents = node.agents(1).await;
        node.read_open_actions().await;
        node.pretend(action.no, |open| open.owned = false);
        let mut join = LiveJoin::new(node.node.clone());
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 1);
        node.node.signals.agent_changed(agents[0]);
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2, "the node that heard of the change lets it join");
    }

    #[actix_rt::test]
    async fn more_changes_than_are_remembered_cause_a_look_at_the_whole_fleet() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        node.agents(1).await;
        node.node.signals.changed_agents().add_everything();
        swept(&node).run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2);
    }

    #[actix_rt::test]
    async fn changed_agents_are_remembered_while_the_store_is_away() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        let agents = node.agents(1).await;
        let mut join = swept(&node);
        node.node.signals.agent_changed(agents[0]);
        node.break_inserts("commands", "TRUE", AWAY);
        assert!(join.run_once().await.is_err());
        node.mend_inserts("commands");
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2);
    }

    #[actix_rt::test]
    async fn an_agent_joins_when_it_reports_what_a_target_mentions() {
        let node = TestNode::new().await;
        let document = json!({"membership": "live", "target": "metadata.battery < 20", "expires_after": "1h"});
        let action = node.resolved(document, &[]).await;
        let other = live(&node).await;
        let agents = node.agents(2).await;
        let mut join = swept(&node);
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
        assert_eq!(joined(&node, &action).await, 0);
        report(agents[1], "battery", "19").await;
        assert!(node.has_heard("live_join: wake").await);
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 1);
        assert_eq!(joined(&node, &other).await, 1, "metadata is no reason to look at other live actions");
        report(agents[0], "load", "2").await;
        assert!(!node.has_heard("live_join: wake").await, "no target mentions it");
    }

    #[actix_rt::test]
    async fn a_sweep_that_failed_is_due_again() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        node.agents(1).await;
        let mut join = LiveJoin::new(node.node.clone());
        node.break_inserts("commands", "TRUE", AWAY);
        assert!(join.run_once().await.is_err());
        node.mend_inserts("commands");
        join.run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 2);
    }

    #[actix_rt::test]
    async fn nobody_joins_an_action_that_has_expired() {
        let node = TestNode::new().await;
        let action = live(&node).await;
        node.agents(1).await;
        node.pass(Duration::from_secs(3_601));
        LiveJoin::new(node.node.clone()).run_once().await.unwrap();
        assert_eq!(joined(&node, &action).await, 1);
    }
}
