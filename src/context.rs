//! The context of every actor of a node.

use crate::config::Config;
use crate::domain::metadata::AgentReport;
use crate::domain::protocol::RefusedKey;
use crate::metrics::Metrics;
use crate::runtime::Writer;
use crate::signals::{ActionCache, Presence, ReportPace, Signals};
use crate::store::Store;
use crate::zone_data::ZoneData;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The handle to the actor of metadata: takes agents' reports and answers after the commit.
pub type Reporter = Writer<AgentReport, Vec<RefusedKey>>;

/// One per process, shared by all of its parts.
pub struct Node {
    /// The store, which holds the truth.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub actions: ActionCache,
    /// The agents that are connected to this process.
    pub presence: Presence,
    /// Wakes the parts that wait for an event.
    pub signals: Signals,
    /// Takes what agents report.
    pub reporter: Reporter,
    /// How often they are asked to.
    pub pace: ReportPace,
    /// The metrics.
    pub metrics: Metrics,
    /// The right to search the fleet for a person, one at a time.
    pub questions: Semaphore,
    /// The time zones.
    pub zones: ZoneData,
    /// The settings.
    pub config: Config,
}

impl Node {
    /// An agent was heard of, by a check-in or otherwise. It is written soon.
    pub fn seen(&self, agent_no: i64, checked_in: bool) {
        // A hint: the next one follows soon.
        self.reporter.hint(vec![AgentReport::seen(agent_no, self.store.now(), checked_in)]);
    }
}
