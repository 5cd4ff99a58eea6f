//! Closes the commands of removed agents as `undeliverable`.

use super::support::{PAGE, readable, record};
use crate::context::Node;
use crate::domain::command::Event;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::senders::{Recorder, report_of};
use crate::store::StoreResult;
use std::sync::Arc;
use std::time::Duration;

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long after its removal an agent's commands are looked for: the store may still have been
/// writing one.
const LEAVING: Duration = Duration::from_secs(60);

/// See the module.
pub struct LeavingAgents {
    node: Arc<Node>,
    recorder: Recorder,
}

impl LeavingAgents {
    /// A reconciler for this node, which reports to `recorder`.
    pub fn new(node: Arc<Node>, recorder: Recorder) -> Self {
        Self { node, recorder }
    }

    /// Closes all commands of one agent. False if the store accepts none of the reports.
    async fn close(&self, agent_no: i64) -> StoreResult<bool> {
        loop {
            let mut reports = Vec::new();
            for no in self.node.store.command_unfinished_of(agent_no, PAGE).await? {
                if let Some(action) = readable(&self.node, no).await? {
                    let error = "the agent was removed".into();
                    reports.push(report_of(&action, agent_no, Event::Undeliverable { error }));
                }
            }
            if reports.is_empty() {
                return Ok(true);
            }
            if record(&self.recorder, reports).await? == 0 {
                return Ok(false);
            }
        }
    }
}

impl Reconcile for LeavingAgents {
    const NAME: &'static str = "leaving_agents";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let store = &self.node.store;
        for agent_no in store.agent_list_leaving(PAGE).await? {
            if self.close(agent_no).await? {
                store.agent_left(agent_no, store.now().minus(LEAVING)).await?;
            }
        }
        Ok(Pace::Wait)
    }
}
