//! Gives up overdue results: the timeout of the run and the grace have passed.

use super::support::{PAGE, readable, record};
use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::command::Event;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::senders::{Recorder, report_of};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
pub struct Overdue {
    node: Arc<Node>,
    recorder: Recorder,
}

impl Overdue {
    /// A reconciler for this node, which reports to `recorder`.
    pub fn new(node: Arc<Node>, recorder: Recorder) -> Self {
        Self { node, recorder }
    }
}

impl Reconcile for Overdue {
    const NAME: &'static str = "overdue";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let store = &self.node.store;
        let keys = store.command_overdue(store.now(), PAGE).await?;
        let is_full = keys.len() >= PAGE;
        let mut actions: HashMap<i64, Option<Arc<Action>>> = HashMap::new();
        let mut reports = Vec::with_capacity(keys.len());
        for (action_no, agent_no) in keys {
            let action = match actions.get(&action_no) {
                Some(action) => action.clone(),
                None => {
                    let action = readable(&self.node, action_no).await?;
                    actions.insert(action_no, action.clone());
                    action
                }
            };
            reports.extend(action.map(|action| report_of(&action, agent_no, Event::Overdue)));
        }
        // Runs that the store refuses to close would be found again at once.
        let has_more = !reports.is_empty() && record(&self.recorder, reports).await? > 0 && is_full;
        Ok(if has_more { Pace::Again } else { Pace::Wait })
    }
}
