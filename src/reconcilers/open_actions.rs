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
use std::time::Duration;

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
pub struct ReadOpenActions {
    node: Arc<Node>,
}

impl ReadOpenActions {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Marks the action in memory as cancelled, paused or resumed, as the store says.
    async fn mark(&self, action: &OpenAction) -> StoreResult<()> {
        let actions = &self.node.actions;
        if action.cancelled && actions.is_cancelled(action.no) == Some(false) {
            self.node.signals.cancel_found(action.no);
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
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let reading = self.node.signals.open_actions().begin();
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
        let marked = for_each_action(&actions, |action| action.no, async |action| self.mark(action).await).await;
        self.node.signals.open_actions_read(Snapshot { reading, actions });
        marked?;
        Ok(Pace::Wait)
    }
}
