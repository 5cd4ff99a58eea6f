//! Counts the agents, for the metrics. That reads them all, stride by stride, and in a large fleet less often.

use crate::context::Node;
use crate::domain::stride::Stride;
use crate::domain::target::{Column, CompareOp, Target, Value};
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::store::{Among, StoreResult};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often they are counted.
const INTERVAL: Duration = Duration::from_secs(60);
/// Counting takes up no more than one part of this many.
const SHARE: u32 = 200;

/// See the module.
pub struct FleetCounts {
    node: Arc<Node>,
    /// How long the last count took the store.
    took: Duration,
}

impl FleetCounts {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, took: Duration::ZERO }
    }

    async fn count(&mut self, among: Among) -> StoreResult<i64> {
        let (mut stride, mut count, mut after) = (Stride::default(), 0, 0);
        loop {
            let began = Instant::now();
            let part = self.node.store.agent_count(&among, after, stride.agents()).await?;
            stride.took(began.elapsed());
            self.took += began.elapsed();
            count += part.agents;
            match part.through {
                Some(through) => after = through,
                None => return Ok(count),
            }
        }
    }
}

impl Reconcile for FleetCounts {
    const NAME: &'static str = "fleet_counts";

    fn period(&self) -> Duration {
        INTERVAL.max(self.took * SHARE)
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        self.took = Duration::ZERO;
        let status =
            Target::Compare { column: Column::Status, op: CompareOp::Equal, value: Value::Text("online".to_owned()) };
        let online = self.count(Among { target: Some(status), disabled: None }).await?;
        let enabled = self.count(Among { target: None, disabled: Some(false) }).await?;
        let disabled = self.count(Among { target: None, disabled: Some(true) }).await?;
        let offline = (enabled - online).max(0);
        self.node.metrics.agents_known([("online", online), ("offline", offline), ("disabled", disabled)]);
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AgentPatch;
    use crate::testing::{TestNode, me};

    #[actix_rt::test]
    async fn agents_are_counted_by_what_they_are() {
        let node = TestNode::new().await;
        node.agents(4_003).await;
        let disable = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
        node.store.agent_update("agent-04001", &disable, &me()).await.unwrap();
        node.store.agent_remove("agent-04002", &me()).await.unwrap();
        let mut counts = FleetCounts::new(node.node.clone());
        counts.run_once().await.unwrap();
        let text = node.node.metrics.text(&[], 0, true).unwrap();
        for (status, number) in [("online", 0), ("offline", 4_001), ("disabled", 1)] {
            let line = format!("odoshi_agents_known{{state=\"{status}\"}} {number}");
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        assert_eq!(FleetCounts { took: Duration::from_secs(1), ..counts }.period(), Duration::from_secs(200));
    }
}
