//! Reads the open actions, so that the delay scheduler and the other reconcilers share one list.
//!
//! It also compares them with the actions in memory: a user may have paused, resumed or cancelled
//! one at another node, and the hint may have been lost.

use super::support::PAGE;
use crate::context::Node;
use crate::runtime::isolation::for_each_action;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::signals::Snapshot;
use crate::store::{OpenAction, StoreResult};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it polls at least, and at most.
const POLL_INTERVALS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// The polls take no more than this part of the time, within these limits.
const SHARE: u32 = 30;

/// See the module.
pub struct ReadOpenActions {
    node: Arc<Node>,
    /// How long the last reading took.
    took: Duration,
}

impl ReadOpenActions {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, took: Duration::ZERO }
    }

    /// Marks the action in memory as cancelled, paused or resumed, as the store says.
    async fn mark(&self, action: &OpenAction) -> StoreResult<()> {
        let actions = &self.node.actions;
        if action.cancelled
            && let Some(id) = actions.not_cancelled(action.no)
        {
            self.node.signals.cancel_found(action.no, id);
        }
        // The list may be older than the action in memory. One that differs is read again.
        if actions.is_paused(action.no).is_some_and(|marked| marked != action.paused)
            && let Some(read) = self.node.store.action_get(action.no).await?
            && actions.is_paused(action.no) != Some(read.is_paused())
        {
            self.node.signals.pause_found(action.no, read.is_paused());
        }
        Ok(())
    }
}

impl Reconcile for ReadOpenActions {
    const NAME: &'static str = "open_actions";
    const DEBOUNCE: Duration = Duration::from_millis(20);

    fn period(&self) -> Duration {
        let [often, seldom] = POLL_INTERVALS;
        (self.took * SHARE).clamp(often, seldom)
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let (reading, began) = (self.node.signals.open_actions().begin(), Instant::now());
        let mut actions: Vec<OpenAction> = Vec::new();
        loop {
            let after = actions.last().map_or(0, |action| action.no);
            let page = self.node.store.action_list_open(after, PAGE).await?;
            let is_last = page.len() < PAGE;
            actions.extend(page);
            if is_last {
                break;
            }
        }
        self.took = began.elapsed();
        let sum = |of: fn(&OpenAction) -> i64| actions.iter().map(of).sum();
        self.node.metrics.open_actions(
            actions.len(),
            sum(|action| action.unfinished - action.sent),
            sum(|action| action.sent),
        );
        let marked = for_each_action(
            &actions,
            |action| self.node.actions.shown(action.no),
            async |action| self.mark(action).await,
        )
        .await;
        self.node.signals.open_actions_read(Snapshot { reading, actions });
        marked?;
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestNode, me};
    use serde_json::json;

    #[actix_rt::test]
    async fn the_open_actions_are_listed_and_whoever_begins_with_them_is_woken() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let (done, open) = (node.resolved(json!({}), &agents).await, node.submit(json!({})).await);
        node.succeed(&done, agents[0]).await;
        node.store.action_complete(vec![done.no]).await.unwrap();
        node.read_open_actions().await;
        let last = node.node.signals.open_actions().last();
        assert_eq!(last.actions.iter().map(|action| action.no).collect::<Vec<_>>(), [open.no]);
        assert_eq!(node.heard().await, ["scheduler: open actions 1", "after 1: wake", "after 2: wake"]);
        node.read_open_actions().await;
        assert_eq!(node.node.signals.open_actions().last().reading, 2);
    }

    #[actix_rt::test]
    async fn a_list_of_more_than_a_page_is_read_to_the_end() {
        let node = TestNode::new().await;
        let new = std::iter::repeat_with(|| crate::testing::new_action(json!({}), node.store.now()));
        node.store.action_insert(new.take(PAGE + 1).collect()).await.unwrap();
        node.read_open_actions().await;
        assert_eq!(node.node.signals.open_actions().last().actions.len(), PAGE + 1);
    }

    #[actix_rt::test]
    async fn a_cancel_that_nobody_told_of_is_found() {
        let node = TestNode::new().await;
        let action = node.submit(json!({})).await;
        node.store.action_cancel(action.id, &me()).await.unwrap();
        assert!(!action.is_cancelled());
        node.read_open_actions().await;
        assert!(action.is_cancelled());
    }

    #[actix_rt::test]
    async fn a_pause_and_a_resume_that_nobody_told_of_are_found() {
        let node = TestNode::new().await;
        let action = node.submit(json!({})).await;
        node.store.action_pause(action.id, true, &me()).await.unwrap();
        node.read_open_actions().await;
        assert!(action.is_paused());
        node.store.action_pause(action.id, false, &me()).await.unwrap();
        node.heard().await;
        node.read_open_actions().await;
        assert!(!action.is_paused());
        assert!(node.has_heard(&format!("scheduler: resumed [{}]", action.no)).await, "it is read again");
    }

    #[actix_rt::test]
    async fn a_list_that_is_older_than_what_is_in_memory_changes_nothing() {
        let node = TestNode::new().await;
        let action = node.submit(json!({})).await;
        let listed = node.open(&action).await.expect("it is open");
        node.store.action_pause(action.id, true, &me()).await.unwrap();
        node.node.signals.action_paused(action.no);
        ReadOpenActions::new(node.node.clone()).mark(&listed).await.unwrap();
        assert!(action.is_paused());
    }
}
