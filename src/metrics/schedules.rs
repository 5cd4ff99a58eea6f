//! The numbers of schedules.

use crate::domain::schedule::Reason;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

/// What this process made of schedules. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Schedules {
    lateness: Histogram,
    dropped: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Default for Schedules {
    fn default() -> Self {
        Self { lateness: Histogram::new(exponential_buckets(0.001, 2.0, 16)), dropped: Family::default() }
    }
}

impl Schedules {
    pub(super) fn register(&self, of: &mut Registry) {
        // From the start, so that an alert sees the first one.
        for reason in Reason::ALL {
            self.dropped.get_or_create(&[("reason", reason.as_str())]).inc_by(0);
        }
        let late = "From an occurrence's time to its action";
        of.register("schedule_lateness_seconds", late, self.lateness.clone());
        of.register("schedule_dropped", "Occurrences that were not made, by reason", self.dropped.clone());
    }

    /// An occurrence was made `late` after its time.
    pub fn made(&self, late: Duration) {
        self.lateness.observe(late.as_secs_f64());
    }

    /// `count` occurrences were dropped.
    pub fn dropped(&self, reason: Reason, count: u64) {
        self.dropped.get_or_create(&[("reason", reason.as_str())]).inc_by(count);
    }
}
