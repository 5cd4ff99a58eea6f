//! A circuit breaker: stops deliveries to a host that can't be reached, and probes it.
//!
//! Closed: deliveries go out. A host that was not reached yet gets one at a time, so that a host that
//! is away when the server starts costs one attempt and not one for every command that waits for it.
//! After [`THRESHOLD`] failures in a row, or the first one if it was not reached yet, it opens: nothing goes out for a
//! while. Then it is half open: one delivery goes out as a probe. If it reaches the host, the breaker
//! closes; if not, it opens again, for twice as long. The pattern is Michael Nygard's ("Release It!").

use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
pub(super) const THRESHOLD: u32 = 3;
/// How long it stays open the first time.
const OPEN_MIN: Duration = Duration::from_secs(1);
/// How long it stays open at most.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    last_wait: Duration,
    /// The host was reached before.
    proven: bool,
}

impl Breaker {
    /// Whether the host counts as away: the breaker is open or half open.
    pub(super) fn is_away(&self) -> bool {
        self.open_until.is_some()
    }

    /// Whether the host is known to be there: it was reached, and the breaker is closed.
    pub(super) fn is_certain(&self) -> bool {
        self.proven && self.open_until.is_none()
    }

    /// Whether the host was reached before.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    /// Whether nothing has failed since the last success.
    pub(super) fn is_quiet(&self) -> bool {
        self.failures == 0
    }

    /// How long nothing may go out.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        self.open_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// How many deliveries may be under way, where `most` may be while it is closed.
    pub(super) fn slots(&self, most: usize, now: Instant) -> usize {
        match self.open_until {
            None if self.proven => most,
            None => 1,
            Some(until) if until <= now => 1,
            Some(_) => 0,
        }
    }

    /// The host was reached.
    pub(super) fn reached(&mut self) {
        *self = Self { proven: true, ..Self::default() };
    }

    /// The host was not reached. `jitter` (0 to 1) takes up to half of the wait away.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        let is_late = self.open_until.is_some_and(|until| until > now);
        // Deliveries that were under way when it opened say nothing new.
        let threshold = if self.proven { THRESHOLD } else { 1 };
        if self.failures < threshold || is_late {
            return;
        }
        self.last_wait = (self.last_wait * 2).clamp(OPEN_MIN, OPEN_MAX);
        self.open_until = Some(now + self.last_wait.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Breaker {
        let mut breaker = Breaker::default();
        breaker.reached();
        breaker
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = closed();
        (0..THRESHOLD).for_each(|_| breaker.failed(now, 0.0));
        breaker
    }

    #[test]
    fn a_host_gets_one_delivery_at_a_time_until_it_is_reached() {
        let (now, mut breaker) = (Instant::now(), Breaker::default());
        assert_eq!(breaker.slots(9, now), 1);
        breaker.reached();
        assert_eq!((breaker.slots(9, now), breaker.is_proven()), (9, true));
        let mut breaker = Breaker::default();
        breaker.failed(now, 0.0);
        assert_eq!((breaker.slots(9, now), breaker.remaining(now)), (0, Some(OPEN_MIN)), "the first failure opens it");
    }

    #[test]
    fn it_opens_after_some_failures_in_a_row() {
        let (now, mut breaker) = (Instant::now(), closed());
        for _ in 1..THRESHOLD {
            breaker.failed(now, 0.0);
            assert_eq!((breaker.slots(9, now), breaker.is_away()), (9, false));
        }
        breaker.reached();
        breaker.failed(now, 0.0);
        assert_eq!(breaker.slots(9, now), 9, "a success in between starts anew");
        let breaker = opened(now);
        assert_eq!((breaker.slots(9, now), breaker.remaining(now)), (0, Some(OPEN_MIN)));
    }

    #[test]
    fn after_the_wait_one_probe_goes_out_and_its_result_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + OPEN_MIN;
        assert_eq!((breaker.slots(9, later), breaker.remaining(later)), (1, None));
        breaker.failed(later, 0.0);
        assert_eq!((breaker.slots(9, later), breaker.remaining(later)), (0, Some(OPEN_MIN * 2)));
        breaker.reached();
        assert_eq!((breaker.slots(9, later), breaker.is_away()), (9, false));
    }

    #[test]
    fn failures_of_what_was_under_way_when_it_opened_do_not_lengthen_the_wait() {
        let now = Instant::now();
        let mut breaker = opened(now);
        (0..50).for_each(|_| breaker.failed(now, 0.0));
        assert_eq!(breaker.remaining(now), Some(OPEN_MIN));
    }

    #[test]
    fn waits_are_capped_and_jitter_shortens_them() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for _ in 0..20 {
            now += OPEN_MAX;
            breaker.failed(now, 0.0);
        }
        assert_eq!(breaker.remaining(now), Some(OPEN_MAX));
        breaker.failed(now + OPEN_MAX, 1.0);
        assert_eq!(breaker.remaining(now + OPEN_MAX), Some(OPEN_MAX / 2));
    }
}
