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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::CommandState::{Pending, Sent, TimedOut};
    use crate::testing::{REFUSED, TestNode};
    use serde_json::json;

    fn overdue(node: &TestNode) -> Overdue {
        Overdue::new(node.node.clone(), node.recorder.clone())
    }

    #[actix_rt::test]
    async fn a_result_is_given_up_after_the_timeout_and_a_grace() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let action = node.resolved(json!({"timeout": "60s"}), &agents).await;
        node.sent(&action, agents[0]).await;
        node.pass(Duration::from_secs(61));
        assert_eq!(overdue(&node).run_once().await.unwrap(), Pace::Wait);
        assert_eq!(node.states(&action).await, [Sent, Pending], "its agent may be saying so");
        node.pass(crate::domain::action::GRACE);
        assert_eq!(overdue(&node).run_once().await.unwrap(), Pace::Wait);
        assert_eq!(node.states(&action).await, [TimedOut, Pending]);
    }

    #[actix_rt::test]
    async fn a_command_with_another_run_is_due_again() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({"timeout": "60s", "max_runs": 2}), &agents).await;
        node.sent(&action, agents[0]).await;
        node.pass(Duration::from_secs(71));
        overdue(&node).run_once().await.unwrap();
        assert_eq!(node.states(&action).await, [Pending]);
        let retry = format!("scheduler: rescheduled [({}, {}, 2)]", action.no, agents[0]);
        assert!(node.has_heard(&retry).await);
    }

    #[actix_rt::test]
    async fn a_full_page_is_followed_by_another_round_at_once() {
        let node = TestNode::new().await;
        let agents = node.agents(PAGE + 1).await;
        let action = node.resolved(json!({"timeout": "60s"}), &agents).await;
        let sent =
            |agent_no: &i64| report_of(&action, *agent_no, Event::Sent { run: 1, attempts: 0, at: node.store.now() });
        node.store.outcome_record(&agents.iter().map(sent).collect::<Vec<_>>()).await.unwrap();
        node.pass(Duration::from_secs(71));
        assert_eq!(overdue(&node).run_once().await.unwrap(), Pace::Again);
        assert_eq!(overdue(&node).run_once().await.unwrap(), Pace::Wait);
        let counts = node.store.action_view(action.id).await.unwrap().unwrap().counts;
        assert_eq!(counts.timed_out, agents.len() as i64);
    }

    #[actix_rt::test]
    async fn a_page_of_which_the_store_takes_nothing_waits_for_the_poll() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({"timeout": "60s"}), &agents).await;
        node.sent(&action, agents[0]).await;
        node.pass(Duration::from_secs(71));
        node.break_inserts("outcomes", "TRUE", REFUSED);
        assert_eq!(overdue(&node).run_once().await.unwrap(), Pace::Wait);
        assert_eq!(node.states(&action).await, [Sent]);
    }
}
