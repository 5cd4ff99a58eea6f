//! The waits between attempts to connect.

use super::config::BackoffConfig;
use std::time::Duration;

/// Maximum wait after a close that says "reconnect at once", so that a node's agents don't all
/// reconnect in the same instant.
const AT_ONCE: Duration = Duration::from_millis(200);
/// A session of this length counts as a good one and resets the backoff.
pub(super) const HELD: Duration = Duration::from_secs(10);

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The server asked for an immediate reconnect.
    AtOnce,
    /// An attempt or a connection failed.
    Backoff,
    /// The agent is disabled, and may be enabled at any time.
    Disabled,
    /// The server refuses this agent until a person changes something.
    Long,
}

/// The waits between attempts: capped exponential backoff with full jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    config: BackoffConfig,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(config: BackoffConfig) -> Self {
        Self { config, failures: 0 }
    }

    /// A session has held: the next wait is short.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self, pause: Pause) -> Duration {
        let (min, max) = (self.config.min.0, self.config.max.0);
        match pause {
            Pause::AtOnce => random_between(Duration::ZERO, AT_ONCE),
            Pause::Backoff => {
                let doubled = min.saturating_mul(2_u32.saturating_pow(self.failures));
                self.failures = self.failures.saturating_add(1);
                random_between(Duration::ZERO, doubled.min(max))
            }
            Pause::Disabled => random_between(max / 6, max / 3),
            Pause::Long => random_between(max, max.saturating_mul(2)),
        }
    }
}

fn random_between(from: Duration, to: Duration) -> Duration {
    from + (to - from).mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Span;

    #[test]
    fn waits_grow_to_the_cap_and_the_server_can_shorten_and_lengthen_them() {
        let config = BackoffConfig { min: Span::millis(100), max: Span::secs(1) };
        let mut backoff = Backoff { config, failures: 0 };
        for cap in [100, 200, 400, 800, 1000, 1000] {
            assert!(backoff.next(Pause::Backoff) <= Duration::from_millis(cap));
        }
        backoff.failures = u32::MAX;
        assert!(backoff.next(Pause::Backoff) <= Duration::from_secs(1));
        assert!(backoff.next(Pause::AtOnce) <= AT_ONCE);
        let disabled = backoff.next(Pause::Disabled);
        assert!((Duration::from_millis(160)..=Duration::from_millis(334)).contains(&disabled));
        let long = backoff.next(Pause::Long);
        assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&long));
    }
}
