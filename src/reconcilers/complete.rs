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
        for_all_actions(nos, async |nos| {
            for no in self.node.store.action_complete(nos).await? {
                log::info!(action = no; "an action has ended");
                self.node.signals.action_ended();
            }
            Ok(())
        })
        .await
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
            // The list of open actions contains them all, within a second.
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
