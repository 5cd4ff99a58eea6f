//! Closes the commands of cancelled actions, and, after the grace, those of expired actions.
//!
//! Decisions about commands go through the outcomes, like all other reports.

use super::support::{PAGE, record};
use crate::context::Node;
use crate::domain::action::GRACE;
use crate::domain::command::Event;
use crate::runtime::isolation::for_each_action;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::senders::{Recorder, report_of};
use crate::store::{OpenAction, StoreResult, Unfinished};
use std::sync::Arc;
use std::time::Duration;

/// The longest time between two rounds. The list of open actions causes a round each second.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// See the module.
pub struct Expire {
    node: Arc<Node>,
    recorder: Recorder,
}

impl Expire {
    /// A reconciler for this node, which reports to `recorder`.
    pub fn new(node: Arc<Node>, recorder: Recorder) -> Self {
        Self { node, recorder }
    }

    async fn close_if_over(&self, action: &OpenAction) -> StoreResult<()> {
        let now = self.node.store.now();
        if action.cancelled {
            self.close(action.no, Unfinished::All, &Event::Cancelled).await
        } else if now >= action.expires_at && !action.resolved {
            self.node.store.action_expire(action.no).await.map(|_| ())
        } else if now >= action.expires_at.plus(GRACE) && action.unfinished > action.sent {
            self.close(action.no, Unfinished::Pending, &Event::Expired).await
        } else {
            Ok(())
        }
    }

    /// Records `event` for all unfinished commands of an action, a page at a time.
    async fn close(&self, no: i64, which: Unfinished, event: &Event) -> StoreResult<()> {
        let Some(action) = self.node.actions.get(no).await? else { return Ok(()) };
        let mut after = 0;
        loop {
            let agents = self.node.store.command_unfinished(no, which, after, PAGE).await?;
            let Some(last) = agents.last().copied() else { return Ok(()) };
            let reports = agents.into_iter().map(|agent_no| report_of(&action, agent_no, event.clone())).collect();
            record(&self.recorder, reports).await?;
            after = last;
        }
    }
}

impl Reconcile for Expire {
    const NAME: &'static str = "expire";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let open = self.node.signals.open_actions().last();
        let owned: Vec<&OpenAction> = open.actions.iter().filter(|action| action.owned).collect();
        for_each_action(
            &owned,
            |action| self.node.actions.shown(action.no),
            async |action| self.close_if_over(action).await,
        )
        .await?;
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::CommandState::{Cancelled, Expired, Pending, Sent, Succeeded};
    use crate::testing::{REFUSED, TestNode, me};
    use serde_json::json;

    async fn run(node: &TestNode) {
        node.read_open_actions().await;
        let mut expire = Expire::new(node.node.clone(), node.recorder.clone());
        assert_eq!(expire.run_once().await.unwrap(), Pace::Wait);
    }

    #[actix_rt::test]
    async fn a_cancelled_action_has_every_unfinished_command_closed_once() {
        let node = TestNode::new().await;
        let agents = node.agents(3).await;
        let action = node.resolved(json!({}), &agents).await;
        node.succeed(&action, agents[0]).await;
        node.sent(&action, agents[1]).await;
        node.store.action_cancel(action.id, &me()).await.unwrap();
        run(&node).await;
        assert_eq!(node.states(&action).await, [Succeeded, Cancelled, Cancelled]);
        run(&node).await;
        let counts = node.store.action_view(action.id).await.unwrap().unwrap().counts;
        assert_eq!((counts.total, counts.succeeded, counts.cancelled), (3, 1, 2), "they are counted once");
    }

    #[actix_rt::test]
    async fn a_cancelled_action_of_more_than_a_page_is_closed_to_the_end() {
        let node = TestNode::new().await;
        let agents = node.agents(PAGE + 1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.store.action_cancel(action.id, &me()).await.unwrap();
        run(&node).await;
        let counts = node.store.action_view(action.id).await.unwrap().unwrap().counts;
        assert_eq!(counts.cancelled, agents.len() as i64);
    }

    #[actix_rt::test]
    async fn pending_commands_expire_after_the_grace_and_what_is_with_its_agent_does_not() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let action = node.resolved(json!({"expires_after": "1h"}), &agents).await;
        node.sent(&action, agents[0]).await;
        run(&node).await;
        assert_eq!(node.states(&action).await, [Sent, Pending]);
        node.pass(Duration::from_secs(3_600));
        run(&node).await;
        assert_eq!(node.states(&action).await, [Sent, Pending], "what was sent in time is on its way");
        node.pass(GRACE);
        run(&node).await;
        assert_eq!(node.states(&action).await, [Sent, Expired]);
    }

    #[actix_rt::test]
    async fn an_action_that_expires_before_it_is_resolved_is_not_resolved_any_more() {
        let node = TestNode::new().await;
        let action = node.submit(json!({"expires_after": "1h"})).await;
        run(&node).await;
        assert!(node.open(&action).await.is_some_and(|open| !open.resolved && !open.expired));
        node.pass(Duration::from_secs(3_601));
        run(&node).await;
        assert!(node.open(&action).await.is_some_and(|open| open.resolved && open.expired));
    }

    #[actix_rt::test]
    async fn another_nodes_action_is_left_alone() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.store.action_cancel(action.id, &me()).await.unwrap();
        node.read_open_actions().await;
        node.pretend(action.no, |open| open.owned = false);
        let mut expire = Expire::new(node.node.clone(), node.recorder.clone());
        expire.run_once().await.unwrap();
        assert_eq!(node.states(&action).await, [Pending]);
    }

    #[actix_rt::test]
    async fn an_action_whose_outcomes_are_refused_stops_no_other() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let (bad, good) = (node.resolved(json!({}), &agents).await, node.resolved(json!({}), &agents).await);
        for action in [&bad, &good] {
            node.store.action_cancel(action.id, &me()).await.unwrap();
        }
        node.break_inserts("outcomes", &format!("NEW.action_no = {}", bad.no), REFUSED);
        run(&node).await;
        assert_eq!(node.states(&bad).await, [Pending, Pending]);
        assert_eq!(node.states(&good).await, [Cancelled, Cancelled]);
    }
}
