//! Functions that several reconcilers use.

use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::target::Target;
use crate::error_chain::ErrorChain;
use crate::senders::Recorder;
use crate::store::{Part, Report, StoreError, StoreResult};
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

/// Lets agents of a part of the fleet join a live action, or those among some. Returns the key up to which was searched;
/// `None` at the end.
pub(super) async fn join(
    node: &Node,
    no: i64,
    target: &Target,
    among: Option<&[i64]>,
    part: Part,
) -> StoreResult<Option<i64>> {
    let found = node.store.agent_match_joining(no, target, among, part).await?;
    if !found.agents.is_empty() {
        let agents: Vec<i64> = found.agents.into_iter().map(|(agent, _)| agent).collect();
        let due = node.store.command_insert_joining(no, &agents).await?;
        if !due.is_empty() {
            log::info!(action = node.actions.shown(no), agents = due.len(); "agents join a live action");
            node.metrics.commands_written(due.len() as u64);
            node.signals.commands_joined(due);
        }
    }
    Ok(found.through)
}

/// The target of an action. `None` if the action is gone or can't be read.
pub(super) async fn target_of(node: &Node, no: i64) -> StoreResult<Option<Arc<Target>>> {
    let Some(action) = readable(node, no).await? else { return Ok(None) };
    // The target was parsed when the action was accepted.
    Ok(Target::parse(&action.target).ok().map(Arc::new))
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
