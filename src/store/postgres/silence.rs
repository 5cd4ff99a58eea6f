//! How long other nodes have been silent, by this process's own monotonic clock.
//!
//! A living node changes the value of its heartbeat. The value is a time of the database for people
//! to read; it is never compared with a clock, which may be set, or be another one after a
//! failover. A node is silent for as long as this process has polled and read the same value. Time
//! without a poll doesn't count: this process may have been stopped itself, or the database did not
//! answer anybody.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A node's incarnation and its heartbeat as it was read.
pub(super) type Beat = (String, i64);

/// See the module.
#[derive(Debug)]
pub(super) struct Watch {
    nodes: HashMap<String, Seen>,
    looked: Option<Instant>,
    /// The longest time that counts between two polls.
    longest: Duration,
}

#[derive(Debug)]
struct Seen {
    heartbeat: i64,
    silent: Duration,
}

impl Watch {
    /// For polls with this period.
    pub(super) fn new(every: Duration) -> Self {
        Self { nodes: HashMap::new(), looked: None, longest: every.saturating_mul(2) }
    }

    /// Takes in all nodes, as they were just read.
    pub(super) fn look(&mut self, nodes: impl IntoIterator<Item = Beat>, now: Instant) {
        let gap = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked)).min(self.longest);
        self.looked = Some(now);
        let mut known = std::mem::take(&mut self.nodes);
        for (incarnation, heartbeat) in nodes {
            let silent = match known.remove(&incarnation) {
                Some(seen) if seen.heartbeat == heartbeat => seen.silent + gap,
                _ => Duration::ZERO,
            };
            self.nodes.insert(incarnation, Seen { heartbeat, silent });
        }
    }

    /// Forgets all nodes: the database did not answer, and no node could send a heartbeat.
    pub(super) fn forget(&mut self) {
        self.nodes.clear();
        self.looked = None;
    }

    /// How long a node has been silent. Zero for an unknown node.
    pub(super) fn silence(&self, incarnation: &str) -> Duration {
        self.nodes.get(incarnation).map_or(Duration::ZERO, |seen| seen.silent)
    }

    /// The nodes that have been silent for this long, with their last heartbeats.
    pub(super) fn silent(&self, for_so_long: Duration) -> Vec<Beat> {
        let silent = self.nodes.iter().filter(|(_, seen)| seen.silent >= for_so_long);
        silent.map(|(incarnation, seen)| (incarnation.clone(), seen.heartbeat)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(2);
    const DEAD_AFTER: Duration = Duration::from_secs(10);

    fn look(watch: &mut Watch, now: Instant, beats: [i64; 2]) -> Vec<Beat> {
        watch.look([("a".to_owned(), beats[0]), ("b".to_owned(), beats[1])], now);
        watch.silent(DEAD_AFTER)
    }

    #[test]
    fn a_node_is_dead_when_it_was_seen_to_say_nothing_for_long_enough() {
        let (mut watch, start) = (Watch::new(EVERY), Instant::now());
        for n in 0..5 {
            assert_eq!(look(&mut watch, start + EVERY * n, [i64::from(n), 7]), []);
        }
        assert_eq!(look(&mut watch, start + EVERY * 5, [5, 7]), [("b".to_owned(), 7)]);
        assert_eq!(
            (watch.silence("a"), watch.silence("b"), watch.silence("c")),
            (Duration::ZERO, DEAD_AFTER, Duration::ZERO)
        );
        assert_eq!(look(&mut watch, start + EVERY * 6, [6, 8]), [], "it was only slow");
    }

    #[test]
    fn a_heartbeat_that_goes_back_is_one() {
        let (mut watch, start) = (Watch::new(EVERY), Instant::now());
        for n in 0..20_i64 {
            let now = start + EVERY * u32::try_from(n).expect("small");
            assert_eq!(look(&mut watch, now, [1_000_000 - n * 300_000, n * 3_600_000]), []);
        }
    }

    #[test]
    fn what_nobody_looked_at_is_no_silence() {
        let (mut watch, start) = (Watch::new(EVERY), Instant::now());
        look(&mut watch, start, [1, 1]);
        // It was stopped for an hour, and was no node any more for the others; they may be, or not.
        let awake = start + Duration::from_secs(3_600);
        assert_eq!(look(&mut watch, awake, [1, 1]), []);
        assert_eq!(watch.silence("a"), EVERY * 2);
        assert_eq!(look(&mut watch, awake + EVERY, [9, 1]), []);
        // The database was away.
        watch.forget();
        for n in 0..5 {
            assert_eq!(look(&mut watch, awake + EVERY * (2 + n), [9, 1]), []);
        }
        assert_eq!(look(&mut watch, awake + EVERY * 7, [9, 1]).len(), 2);
    }
}
