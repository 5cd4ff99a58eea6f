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
