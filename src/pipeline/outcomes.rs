//! Records the reports about commands: results, `sent`, failed delivery attempts, and what the
//! reconcilers close.
//!
//! Reports come from sessions, senders, the delay scheduler and the reconcilers. They are answered
//! after the commit, so that an agent gets `stored` only when it is true. Then the signals wake the
//! parts that wait for them. The actor awaits only the store.
//!
//! Crash: see [`batcher`](crate::runtime::batcher). An agent whose result was in memory gets no
//! `stored`, and sends it again.

use crate::context::Node;
use crate::domain::command::{Answer, Event};
use crate::metrics::Metrics;
use crate::runtime::batcher::Verdict;
use crate::runtime::{Batcher, Sink};
use crate::store::{Report, StoreResult};
use std::sync::Arc;

/// The actor.
pub type Outcomes = Batcher<OutcomeSink>;

/// The actor's handle for reporters.
#[derive(Clone)]
pub struct OutcomeSink {
    /// Store, metrics and signals.
    pub node: Arc<Node>,
}

impl Sink for OutcomeSink {
    type Item = Report;
    type Answer = Answer;

    const NAME: &'static str = "outcomes";

    fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    async fn write(&self, reports: &[Report]) -> StoreResult<Vec<Answer>> {
        self.node.store.outcome_record(reports).await
    }

    async fn written(&self, reports: Vec<Report>, answers: &[Verdict<Answer>]) {
        crate::fault_point!("outcomes.written");
        for (report, answer) in reports.iter().zip(answers) {
            // The agent's clock was wrong, and its command has not ended.
            let is_wrong = matches!((&report.event, answer), (Event::FoundExpired { .. }, Ok(Answer::Again { .. })));
            if matches!(answer, Ok(Answer::Stored | Answer::Again { .. })) && !is_wrong {
                self.node.metrics.reported(&report.event);
            }
        }
        self.node.signals.outcomes_recorded(&reports, answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::CommandState::{self, Failed, Pending, Succeeded};
    use crate::senders::report_of;
    use crate::signals::Dirty;
    use crate::testing::{REFUSED, TestNode, end};
    use serde_json::json;
    use std::time::Duration;

    fn result(status: CommandState, node: &TestNode) -> Event {
        Event::Result(Box::new(end(1, status, node.store.now())))
    }

    #[actix_rt::test]
    async fn a_report_is_answered_when_it_is_stored_and_signalled() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let action = node.resolved(json!({}), &agents).await;
        let reports = [(0, Succeeded), (1, Failed)];
        let reports = reports.map(|(agent, status)| report_of(&action, agents[agent], result(status, &node)));
        let answers = node.recorder.put(reports.into()).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Answer::Stored))));
        assert_eq!(node.states(&action).await, [Succeeded, Failed]);
        assert_eq!(node.heard().await, ["complete: wake"]);
        assert_eq!(node.node.signals.changed_actions().take(), Dirty::Keys([action.no].into()));
    }

    #[actix_rt::test]
    async fn a_command_with_another_run_goes_to_the_scheduler() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({"max_runs": 2}), &agents).await;
        let answers = node.recorder.put(vec![report_of(&action, agents[0], result(Failed, &node))]).await.unwrap();
        assert!(matches!(answers[..], [Ok(Answer::Again { run: 2, .. })]));
        let again = format!("scheduler: rescheduled [({}, {}, 2)]", action.no, agents[0]);
        assert_eq!(node.heard().await, [again, "peers: [Waiting]".to_owned()]);
    }

    #[actix_rt::test]
    async fn a_report_that_the_store_refuses_is_answered_with_its_error_and_wakes_nobody() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({}), &agents).await;
        node.break_inserts("outcomes", "TRUE", REFUSED);
        let answers = node.recorder.put(vec![report_of(&action, agents[0], result(Succeeded, &node))]).await.unwrap();
        assert!(answers[0].as_ref().is_err_and(|error| error.to_string().contains(REFUSED)));
        assert_eq!(node.states(&action).await, [Pending]);
        assert!(node.heard().await.is_empty());
    }

    #[actix_rt::test]
    async fn an_agent_that_is_wrong_about_the_time_has_ended_nothing() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let action = node.resolved(json!({"expires_after": "1h"}), &agents).await;
        let expired = || Event::FoundExpired { run: 1, expires_at: action.expires_at };
        let counted = || {
            let text = node.node.metrics.text(&[], 0, true).expect("it can be written");
            text.lines().filter(|line| line.contains("found_expired") && line.ends_with(" 1")).count()
        };
        node.recorder.put(vec![report_of(&action, agents[0], expired())]).await.unwrap();
        assert_eq!(counted(), 0);
        node.pass(Duration::from_secs(3_600));
        node.recorder.put(vec![report_of(&action, agents[0], expired())]).await.unwrap();
        assert_eq!(counted(), 1);
    }
}
