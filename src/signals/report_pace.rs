//! How often agents are asked to report metadata.
//!
//! The actor that stores it sets the interval; sessions tell it to their agents.

use crate::domain::metadata::INTERVAL_MIN;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// See the module. Clones share the interval.
#[derive(Clone, Debug)]
pub struct ReportPace(Arc<AtomicU64>);

impl Default for ReportPace {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(INTERVAL_MIN.as_millis() as u64)))
    }
}

impl ReportPace {
    /// The interval.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// Sets it.
    pub fn set(&self, interval: Duration) {
        self.0.store(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_interval() {
        let pace = ReportPace::default();
        pace.clone().set(Duration::from_secs(30));
        assert_eq!((pace.interval(), ReportPace::default().interval()), (Duration::from_secs(30), INTERVAL_MIN));
    }
}
