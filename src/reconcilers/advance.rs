//! Advances `dispatched_through` over commands that have an outcome or an open row, so that a
//! restart reads few of them again.

use crate::context::Node;
use crate::runtime::isolation::for_all_actions;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use std::sync::Arc;
use std::time::Duration;

/// The longest time between two rounds. The list of open actions causes a round each second.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of commands that a round advances one action by.
const ADVANCE_LIMIT: usize = 50_000;
/// Maximum number of actions per transaction.
const ACTIONS_AT_A_TIME: usize = 100;

/// See the module.
pub struct Advance {
    node: Arc<Node>,
}

impl Advance {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl Reconcile for Advance {
    const NAME: &'static str = "advance";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let open = self.node.signals.open_actions().last();
        let behind = open.actions.iter();
        let behind = behind.filter(|action| action.owned && action.dispatched_through < action.resolved_through);
        let behind: Vec<i64> = behind.map(|action| action.no).collect();
        for nos in behind.chunks(ACTIONS_AT_A_TIME) {
            let advance = async |nos| self.node.store.action_advance(nos, ADVANCE_LIMIT).await.map(|_| ());
            for_all_actions(nos, |no| self.node.actions.shown(*no), advance).await?;
        }
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Event;
    use crate::testing::TestNode;
    use serde_json::json;

    async fn run(node: &TestNode) {
        assert_eq!(Advance::new(node.node.clone()).run_once().await.unwrap(), Pace::Wait);
    }

    #[actix_rt::test]
    async fn it_moves_over_outcomes_and_open_rows_up_to_the_first_untouched_command() {
        let node = TestNode::new().await;
        let agents = node.agents(4).await;
        let action = node.resolved(json!({}), &agents).await;
        let through = async || node.open(&action).await.expect("it is open").dispatched_through;
        node.succeed(&action, agents[0]).await;
        node.tell(&action, agents[1], Event::Hold { due_at: node.store.now() }).await;
        node.succeed(&action, agents[3]).await;
        node.read_open_actions().await;
        run(&node).await;
        assert_eq!(through().await, agents[1]);
        node.succeed(&action, agents[2]).await;
        run(&node).await;
        assert_eq!(through().await, agents[3]);
    }

    #[actix_rt::test]
    async fn another_nodes_action_is_left_alone() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.succeed(&action, agents[0]).await;
        node.read_open_actions().await;
        node.pretend(action.no, |open| open.owned = false);
        run(&node).await;
        assert_eq!(node.open(&action).await.expect("it is open").dispatched_through, 0);
    }
}
