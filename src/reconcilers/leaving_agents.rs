//! Closes the commands of removed agents as `undeliverable`.

use super::support::{PAGE, readable, record};
use crate::context::Node;
use crate::domain::command::Event;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::senders::{Recorder, report_of};
use crate::store::StoreResult;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long after its removal an agent's commands are looked for: the store may still have been
/// writing one.
const LEAVING: Duration = Duration::from_secs(60);

/// How often the commands of one agent are looked for in this time.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// See the module.
pub struct LeavingAgents {
    node: Arc<Node>,
    recorder: Recorder,
    /// When the commands of each leaving agent were looked for last.
    looked: BTreeMap<i64, Instant>,
}

impl LeavingAgents {
    /// A reconciler for this node, which reports to `recorder`.
    pub fn new(node: Arc<Node>, recorder: Recorder) -> Self {
        Self { node, recorder, looked: BTreeMap::new() }
    }

    /// Closes all commands of one agent. False if the store accepts none of the reports.
    async fn close(&self, agent_no: i64) -> StoreResult<bool> {
        loop {
            let mut reports = Vec::new();
            for no in self.node.store.command_unfinished_of(agent_no, PAGE).await? {
                if let Some(action) = readable(&self.node, no).await? {
                    let error = "the agent was removed".into();
                    reports.push(report_of(&action, agent_no, Event::Undeliverable { error }));
                }
            }
            if reports.is_empty() {
                return Ok(true);
            }
            if record(&self.recorder, reports).await? == 0 {
                return Ok(false);
            }
        }
    }
}

impl Reconcile for LeavingAgents {
    const NAME: &'static str = "leaving_agents";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let (mut leaving, mut after) = (BTreeSet::new(), 0);
        loop {
            let page = self.node.store.agent_list_leaving(after, PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().copied().unwrap_or(after);
            leaving.extend(page);
            if is_last {
                break;
            }
        }
        self.looked.retain(|agent_no, _| leaving.contains(agent_no));
        for agent_no in leaving {
            if self.looked.get(&agent_no).is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
                continue;
            }
            if self.close(agent_no).await? {
                let store = &self.node.store;
                store.agent_left(agent_no, store.now().minus(LEAVING)).await?;
                self.looked.insert(agent_no, Instant::now());
            }
        }
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::CommandState::{Pending, Succeeded, Undeliverable};
    use crate::testing::{REFUSED, TestNode, me};
    use serde_json::json;

    async fn run(node: &TestNode) {
        let mut leaving = LeavingAgents::new(node.node.clone(), node.recorder.clone());
        assert_eq!(leaving.run_once().await.unwrap(), Pace::Wait);
    }

    #[actix_rt::test]
    async fn the_unfinished_commands_of_a_removed_agent_become_undeliverable() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let (one, two) = (node.resolved(json!({}), &agents).await, node.resolved(json!({}), &agents).await);
        node.succeed(&one, agents[0]).await;
        run(&node).await;
        assert_eq!(node.states(&two).await, [Pending, Pending]);
        node.store.agent_remove("agent-00000", &me()).await.unwrap();
        run(&node).await;
        assert_eq!(node.states(&one).await, [Succeeded, Pending]);
        assert_eq!(node.states(&two).await, [Undeliverable, Pending]);
    }

    #[actix_rt::test]
    async fn commands_that_come_within_a_minute_of_the_removal_are_closed_as_well() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.submit(json!({})).await;
        node.store.agent_remove("agent-00000", &me()).await.unwrap();
        run(&node).await;
        node.commands(&action, 0, &agents, true).await;
        run(&node).await;
        assert_eq!(node.states(&action).await, [Undeliverable]);
        assert_eq!(node.store.agent_list_leaving(0, 10).await.unwrap(), agents, "more may be on its way");
        node.pass(LEAVING + Duration::from_secs(1));
        run(&node).await;
        assert!(node.store.agent_list_leaving(0, 10).await.unwrap().is_empty());
    }

    #[actix_rt::test]
    async fn an_agent_whose_outcomes_are_refused_keeps_leaving() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.store.agent_remove("agent-00000", &me()).await.unwrap();
        node.pass(LEAVING + Duration::from_secs(1));
        node.break_inserts("outcomes", "TRUE", REFUSED);
        run(&node).await;
        assert_eq!(node.store.agent_list_leaving(0, 10).await.unwrap(), agents);
        node.mend_inserts("outcomes");
        run(&node).await;
        assert_eq!(node.states(&action).await, [Undeliverable]);
        assert!(node.store.agent_list_leaving(0, 10).await.unwrap().is_empty());
    }
}
