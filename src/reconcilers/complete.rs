//! Ends actions whose commands are all final.
//!
//! The transaction that records an action's last outcome can't decide whether the action is
//! complete: if two nodes commit the last two outcomes, neither sees the other's. So this
//! reconciler decides after commits. Actions with outcomes that this node has just recorded are
//! checked at once; the list of open actions gives the others that this node owns.

use crate::context::Node;
use crate::runtime::isolation::for_all_actions;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::signals::Dirty;
use crate::store::{OpenAction, StoreResult};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The longest time between two rounds. The list of open actions causes a round each second.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Actions that end together and are logged one by one.
const LOGGED_ALONE: usize = 5;

/// See the module.
pub struct Complete {
    node: Arc<Node>,
    /// The last reading of the open actions that was checked.
    reading: u64,
}

impl Complete {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, reading: 0 }
    }

    /// Whether the action looks complete. A live action that hasn't expired doesn't, since agents
    /// may still join it.
    fn is_finished(&self, action: &OpenAction) -> bool {
        let may_grow = action.live && !action.cancelled && self.node.store.now() < action.expires_at;
        action.resolved && action.unfinished == 0 && !may_grow
    }

    async fn complete(&self, nos: &[i64]) -> StoreResult<()> {
        let actions = &self.node.actions;
        for_all_actions(
            nos,
            |no| actions.shown(*no),
            async |nos| {
                let ended = self.node.store.action_complete(nos).await?;
                self.node.signals.actions_ended(&ended);
                self.log(&ended).await;
                Ok(())
            },
        )
        .await
    }

    /// Logs how actions have ended; of many at once only their number.
    async fn log(&self, ended: &[i64]) {
        if ended.len() > LOGGED_ALONE {
            log::info!(actions = ended.len(); "actions have ended");
            return;
        }
        for no in ended {
            let Ok(Some(action)) = self.node.actions.get(*no).await else { continue };
            let Ok(Some(view)) = self.node.store.action_view(action.id).await else { continue };
            let counts = view.counts;
            log::info!(action:% = action.id, name = action.name.as_str(), status = view.status.as_str(),
                total = counts.total, succeeded = counts.succeeded, failed = counts.failed, timed_out = counts.timed_out,
                undeliverable = counts.undeliverable, expired = counts.expired, cancelled = counts.cancelled;
                "an action has ended");
        }
    }
}

impl Reconcile for Complete {
    const NAME: &'static str = "complete";
    const DEBOUNCE: Duration = Duration::from_millis(20);

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let mut nos = match self.node.signals.changed_actions().take() {
            Dirty::Keys(keys) => keys,
            // The list of open actions contains them all, within a few seconds.
            Dirty::Everything => BTreeSet::new(),
        };
        let open = self.node.signals.open_actions().last();
        if open.reading != self.reading {
            let owned = open.actions.iter().filter(|action| action.owned && self.is_finished(action));
            nos.extend(owned.map(|action| action.no));
        }
        let nos: Vec<i64> = nos.into_iter().collect();
        if !nos.is_empty() {
            self.complete(&nos).await?;
        }
        self.reading = open.reading;
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;
    use serde_json::json;

    async fn run(complete: &mut Complete) {
        assert_eq!(complete.run_once().await.unwrap(), Pace::Wait);
    }

    #[actix_rt::test]
    async fn an_action_ends_when_all_its_commands_are_final() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let (done, running) = (node.resolved(json!({}), &agents).await, node.resolved(json!({}), &agents).await);
        for agent_no in &agents {
            node.succeed(&done, *agent_no).await;
        }
        node.succeed(&running, agents[0]).await;
        let mut complete = Complete::new(node.node.clone());
        node.read_open_actions().await;
        let progress = node.node.signals.progress().watch(done.no);
        let changes = progress.subscribe();
        run(&mut complete).await;
        assert!(node.open(&done).await.is_none());
        assert!(node.open(&running).await.is_some());
        assert!(changes.has_changed().unwrap(), "watchers are told");
    }

    #[actix_rt::test]
    async fn a_live_action_ends_only_when_it_expires() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let live = json!({"membership": "live", "expires_after": "1h"});
        let action = node.resolved(live, &agents).await;
        node.succeed(&action, agents[0]).await;
        let mut complete = Complete::new(node.node.clone());
        node.read_open_actions().await;
        node.node.signals.changed_actions().add([action.no]);
        run(&mut complete).await;
        assert!(node.open(&action).await.is_some(), "agents may still join");
        node.pass(Duration::from_secs(3_601));
        node.read_open_actions().await;
        run(&mut complete).await;
        assert!(node.open(&action).await.is_none());
    }

    #[actix_rt::test]
    async fn another_nodes_action_ends_here_only_after_an_outcome_that_was_recorded_here() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.succeed(&action, agents[0]).await;
        node.read_open_actions().await;
        node.pretend(action.no, |open| open.owned = false);
        let mut complete = Complete::new(node.node.clone());
        run(&mut complete).await;
        assert!(node.open(&action).await.is_some(), "its owner's list has it");
        node.node.signals.changed_actions().add([action.no]);
        run(&mut complete).await;
        assert!(node.open(&action).await.is_none());
    }

    #[actix_rt::test]
    async fn a_list_is_looked_at_once_unless_the_store_was_away() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.read_open_actions().await;
        let mut complete = Complete::new(node.node.clone());
        run(&mut complete).await;
        node.succeed(&action, agents[0]).await;
        node.pretend(action.no, |open| open.unfinished = 0);
        run(&mut complete).await;
        assert!(node.open(&action).await.is_some(), "the same reading was looked at before");
        node.read_open_actions().await;
        node.sql(
            "CREATE TRIGGER broken BEFORE UPDATE OF ended_at ON actions BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END",
        );
        assert!(complete.run_once().await.is_err());
        node.sql("DROP TRIGGER broken");
        run(&mut complete).await;
        assert!(node.open(&action).await.is_none(), "after a failure it is looked at again");
    }
}
