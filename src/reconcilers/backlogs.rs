//! Tells the sessions of agents that are connected here that the store has commands for them.
//!
//! A session reads its agent's backlog when it begins, and goes on while there is more. What comes to wait in the store
//! after that, it has to be told: commands of an action that is resumed, those that another node wrote down, those that
//! found no room in the delay scheduler. Rows that wait for their agents are found by agent alone, so that those of absent
//! ones cost nothing. This is also how a lost signal is made up for.

use crate::context::Node;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use std::sync::Arc;
use std::time::Duration;

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// Agents that are looked up at once.
const PAGE: usize = 1_000;

/// See the module.
pub struct Backlogs {
    node: Arc<Node>,
}

impl Backlogs {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl Reconcile for Backlogs {
    const NAME: &'static str = "backlogs";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let node = &self.node;
        let horizon = node.store.now().plus(node.config.delay.horizon.0);
        for page in node.presence.agents().chunks(PAGE) {
            let agents = node.store.agent_with_due(page, horizon).await?;
            node.signals.backlogs_found(agents);
        }
        Ok(Pace::Rest(MIN_INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Event;
    use crate::testing::{TestNode, me};
    use serde_json::json;

    async fn found(node: &TestNode) -> Vec<String> {
        node.heard().await;
        Backlogs::new(node.node.clone()).run_once().await.expect("it works");
        node.heard().await
    }

    #[actix_rt::test]
    async fn sessions_of_connected_agents_are_told_of_what_waits() {
        let node = TestNode::new().await;
        let agents = node.agents(4).await;
        node.connect(&agents[..3]).await;
        let action = node.resolved(json!({}), &agents).await;
        for agent in [agents[0], agents[1], agents[3]] {
            let due_at = node.store.now();
            node.tell(&action, agent, Event::Hold { due_at }).await;
        }
        assert_eq!(
            found(&node).await,
            [format!("stream: backlog {:?}", &agents[..2])],
            "the last one is not connected"
        );
        node.store.action_pause(action.id, true, &me()).await.expect("paused");
        assert!(found(&node).await.is_empty(), "what is paused waits");
    }

    #[actix_rt::test]
    async fn what_is_due_within_the_horizon_is_told_of_and_nothing_later() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        node.connect(&agents).await;
        let action = node.resolved(json!({}), &agents).await;
        let horizon = node.node.config.delay.horizon.0;
        for (agent, wait) in [(agents[0], horizon / 2), (agents[1], horizon * 2)] {
            node.tell(&action, agent, Event::Hold { due_at: node.store.now().plus(wait) }).await;
        }
        assert_eq!(found(&node).await, [format!("stream: backlog {:?}", &agents[..1])]);
        node.pass(horizon * 2);
        assert_eq!(found(&node).await, [format!("stream: backlog {agents:?}")]);
    }
}
