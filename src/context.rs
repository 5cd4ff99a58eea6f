//! The context of every actor of a node.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::signals::{ActionCache, Presence, Signals};
use crate::store::Store;
use crate::zone_data::ZoneData;
use std::sync::Arc;

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
    /// The metrics.
    pub metrics: Metrics,
    /// The time zones.
    pub zones: ZoneData,
    /// The settings.
    pub config: Config,
}
