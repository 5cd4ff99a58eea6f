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
        for_each_action(&owned, |action| action.no, async |action| self.close_if_over(action).await).await?;
        Ok(Pace::Wait)
    }
}
