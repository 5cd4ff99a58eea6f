//! Functions that several reconcilers use.

use crate::context::Node;
use crate::domain::action::Action;
use crate::error_chain::ErrorChain;
use crate::senders::Recorder;
use crate::store::{Report, StoreError, StoreResult};
use std::sync::Arc;

/// Maximum number of rows per read.
pub(super) const PAGE: usize = 5_000;

/// An action. `None` if it can't be read, which must not stop the work for other actions.
pub(super) async fn readable(node: &Node, no: i64) -> StoreResult<Option<Arc<Action>>> {
    match node.actions.get(no).await {
        Err(error) if !error.is_transient() => {
            log::error!(action = node.actions.shown(no), error:% = error.chain(); "an action is passed over");
            Ok(None)
        }
        action => action,
    }
}

/// Records reports and returns how many of them the store has accepted.
pub(super) async fn record(recorder: &Recorder, reports: Vec<Report>) -> StoreResult<usize> {
    match recorder.put(reports).await {
        Ok(answers) => Ok(answers.iter().filter(|answer| answer.is_ok()).count()),
        Err(interrupted) => Err(StoreError::Unavailable(interrupted.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Event;
    use crate::pipeline::outcomes::Outcomes;
    use crate::runtime::{Unstarted, Writer};
    use crate::senders::report_of;
    use crate::testing::{REFUSED, TestNode, new_action};
    use serde_json::json;

    #[actix_rt::test]
    async fn an_action_that_cannot_be_read_is_passed_over() {
        let node = TestNode::new().await;
        let new = std::iter::repeat_with(|| new_action(json!({}), node.store.now())).take(2);
        node.store.action_insert(new.collect()).await.unwrap();
        node.sql("UPDATE actions SET operations = '[' WHERE no = 1");
        assert!(node.node.actions.get(1).await.is_err_and(|error| !error.is_transient()));
        assert!(readable(&node.node, 1).await.unwrap().is_none());
        assert!(readable(&node.node, 2).await.unwrap().is_some());
        assert!(readable(&node.node, 3).await.unwrap().is_none(), "there is none");
    }

    #[actix_rt::test]
    async fn what_the_store_refuses_is_not_counted_as_recorded() {
        let node = TestNode::new().await;
        let agents = node.agents(3).await;
        let action = node.resolved(json!({}), &agents).await;
        node.break_inserts("outcomes", &format!("NEW.agent_no = {}", agents[1]), REFUSED);
        let reports = agents.iter().map(|agent_no| report_of(&action, *agent_no, Event::Cancelled));
        assert_eq!(record(&node.recorder, reports.collect()).await.unwrap(), 2);
    }

    #[actix_rt::test]
    async fn outcomes_that_are_gone_are_an_error_that_may_pass() {
        let node = TestNode::new().await;
        let action = node.submit(json!({})).await;
        let never_started = Unstarted::<Outcomes>::default();
        let recorder = Writer::new(never_started.address());
        drop(never_started);
        let reports = vec![report_of(&action, 1, Event::Cancelled)];
        assert!(record(&recorder, reports).await.is_err_and(|error| error.is_transient()));
    }
}
