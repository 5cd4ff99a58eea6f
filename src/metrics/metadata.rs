//! The numbers of metadata.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// What this process stored of metadata. Clones share the numbers.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    values: Counter,
    coalesced: Counter,
    refused: Counter,
    deferred: Counter,
    watchers: Gauge,
    interval: Gauge<f64, AtomicU64>,
}

impl Metadata {
    pub(super) fn register(&self, of: &mut Registry) {
        of.register("metadata_values", "Values written", self.values.clone());
        let coalesced = "Values left out, because a newer one of the same key was written with them";
        of.register("metadata_coalesced", coalesced, self.coalesced.clone());
        of.register("metadata_refused", "Values refused, because they exceed a limit", self.refused.clone());
        let deferred = "Reports left with their agents for lack of memory";
        of.register("metadata_deferred", deferred, self.deferred.clone());
        of.register("metadata_watchers", "Those who watch metadata at this node", self.watchers.clone());
        let interval = "How often agents are asked to report";
        of.register("metadata_interval_seconds", interval, self.interval.clone());
    }

    /// A batch was written, of so many values; so many were left out, and so many refused.
    pub fn wrote(&self, values: usize, coalesced: usize, refused: usize) {
        self.values.inc_by(values as u64);
        self.coalesced.inc_by(coalesced as u64);
        self.refused.inc_by(refused as u64);
    }

    /// So many values were left out for newer ones before they came into a batch.
    pub fn coalesced(&self, values: usize) {
        self.coalesced.inc_by(values as u64);
    }

    /// So many values were refused before they came into a batch.
    pub fn refused(&self, values: usize) {
        self.refused.inc_by(values as u64);
    }

    /// There is no memory for a report, which its agent keeps.
    pub fn deferred(&self) {
        self.deferred.inc();
    }

    /// So many watch.
    pub fn set_watchers(&self, watchers: usize) {
        self.watchers.set(i64::try_from(watchers).unwrap_or(i64::MAX));
    }

    /// Agents are asked to report this often.
    pub fn set_interval(&self, interval: Duration) {
        self.interval.set(interval.as_secs_f64());
    }
}
