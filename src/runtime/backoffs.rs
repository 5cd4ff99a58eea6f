//! Work that failed, each piece with a pause of its own, so that one that keeps failing is in nobody's way.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The pause after the first failure. It doubles with each one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Failures that are remembered. Beyond, those are forgotten whose pause is over.
const REMEMBERED: usize = 10_000;
/// Maximum length of an error, in characters.
const LONGEST_ERROR: usize = 500;

/// See the module. Keys are those of actions.
#[derive(Debug, Default)]
pub struct Backoffs(HashMap<i64, Failed>);

#[derive(Debug)]
struct Failed {
    failures: u32,
    since: Instant,
    until: Instant,
    error: String,
}

impl Backoffs {
    /// The work for a key has failed. Returns how long it pauses.
    pub fn failed(&mut self, key: i64, error: &str, now: Instant) -> Duration {
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, failed| failed.until > now);
        }
        let failed = self.0.entry(key).or_insert(Failed { failures: 0, since: now, until: now, error: String::new() });
        let pause = PAUSE_MIN.saturating_mul(1 << failed.failures.min(16)).min(PAUSE_MAX);
        failed.failures += 1;
        failed.until = now + pause;
        failed.error = error.chars().take(LONGEST_ERROR).collect();
        pause
    }

    /// The work for a key is done.
    pub fn done(&mut self, key: i64) {
        self.0.remove(&key);
    }

    /// Forgets the keys whose work is not there any more.
    pub fn retain(&mut self, exists: impl Fn(i64) -> bool) {
        self.0.retain(|key, _| exists(*key));
    }

    /// How many keys fail.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none fails.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the pause of a key is over, or it has none.
    pub fn is_due(&self, key: i64, now: Instant) -> bool {
        self.0.get(&key).is_none_or(|failed| failed.until <= now)
    }

    /// The action whose work fails for the longest time, as it is `shown`, and its last error.
    pub fn trouble(&self, shown: impl Fn(i64) -> String) -> Option<String> {
        let oldest = self.0.iter().min_by_key(|(_, failed)| failed.since);
        oldest.map(|(key, failed)| format!("action {}: {}", shown(*key), failed.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(backoffs: &Backoffs) -> Option<String> {
        backoffs.trouble(|key| key.to_string())
    }

    #[test]
    fn each_key_has_a_pause_of_its_own_that_doubles() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        assert!(backoffs.is_due(1, now));
        let pauses: Vec<u128> = (0..8).map(|_| backoffs.failed(1, "away", now).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert!(!backoffs.is_due(1, now) && backoffs.is_due(2, now));
        assert!(backoffs.is_due(1, now + PAUSE_MAX));
        backoffs.failed(2, "slow", now + PAUSE_MIN);
        assert_eq!(trouble(&backoffs).as_deref(), Some("action 1: away"));
        backoffs.done(1);
        assert_eq!(trouble(&backoffs).as_deref(), Some("action 2: slow"));
        backoffs.retain(|key| key != 2);
        assert_eq!(trouble(&backoffs), None);
    }

    #[test]
    fn not_more_is_remembered_than_there_is_room_for() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        for key in 0..REMEMBERED {
            backoffs.failed(key as i64, "away", now);
        }
        backoffs.failed(-1, "away", now + PAUSE_MAX);
        assert_eq!(backoffs.0.len(), 1);
    }
}
