//! The database's time, told by this process.
//!
//! Everything is due and expires by the database's clock, and is asked for far more often than a
//! round trip would allow. So each answer of the database that says what time it is anchors the
//! clock, and in between this process's own monotonic clock moves it on. An answer says only that
//! the time lies between what it says and that plus the round trip: a clock within these bounds
//! stays as it is, one outside of them is moved to the lower bound, since early is worse than late
//! by a round trip.

use crate::domain::time::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct Clock {
    anchor: Mutex<(Instant, i64)>,
    /// What tests add, in milliseconds.
    offset: AtomicI64,
}

impl Clock {
    /// This machine's clock, until the database says something.
    pub(super) fn new() -> Self {
        let anchor = Mutex::new((Instant::now(), Timestamp::of_this_machine().0));
        Self { anchor, offset: AtomicI64::new(0) }
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp(self.database_at(Instant::now()) + self.offset.load(Ordering::Relaxed))
    }

    fn database_at(&self, at: Instant) -> i64 {
        let (since, time) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        time.saturating_add(millis(at.saturating_duration_since(since)))
    }

    /// The database said `time` (milliseconds) in an answer to what was asked at `asked`.
    pub(super) fn observe(&self, time: i64, asked: Instant, answered: Instant) {
        let here = self.database_at(answered);
        let latest = time.saturating_add(millis(answered.saturating_duration_since(asked)) + 1);
        if (time..=latest).contains(&here) {
            return;
        }
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = (answered, time);
    }

    pub(super) fn set_offset(&self, millis: i64) {
        self.offset.store(millis, Ordering::Relaxed);
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_database_within_a_round_trip_and_never_runs_ahead() {
        let clock = Clock::new();
        let start = Instant::now();
        let trip = Duration::from_millis(40);
        clock.observe(1_000_000, start, start + trip);
        assert_eq!(clock.database_at(start + trip), 1_000_000);
        let later = start + Duration::from_secs(10);
        // Within what the answer allows: left alone.
        clock.observe(1_009_980, later, later + trip);
        assert_eq!(clock.database_at(later + trip), 1_010_000);
        // The database's clock was set forward, and back.
        clock.observe(2_000_000, later, later + trip);
        assert_eq!(clock.database_at(later + trip), 2_000_000);
        clock.observe(1_500_000, later, later + trip);
        assert_eq!(clock.database_at(later + trip), 1_500_000);
        clock.set_offset(-500);
        assert!(clock.now().0 <= clock.database_at(Instant::now()) - 500);
    }
}
