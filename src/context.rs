//! What every actor of a node works with.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::signals::{ActionCache, Presence, Signals};
use crate::store::Store;
use std::sync::Arc;

/// One per process, shared by everything that runs in it.
pub struct Node {
    /// What is true when nothing is in memory.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub actions: ActionCache,
    /// The agents that are connected to this process.
    pub presence: Presence,
    /// Wakes what waits for something.
    pub signals: Signals,
    /// Counts and measures.
    pub metrics: Metrics,
    /// The settings.
    pub config: Config,
}
