//! Leaves out lines of the log that were just written. While a store is away, many parts of a server say so, each time
//! that they try.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a line is not repeated.
const QUIET: Duration = Duration::from_secs(10);
/// Lines that are remembered.
const MOST: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<u64, Written>>);

#[derive(Debug)]
struct Written {
    at: Instant,
    left_out: u64,
}

impl Repeats {
    /// Whether to write a line of these parts, and how many like it were left out since the last one.
    pub(super) fn take(&self, parts: &impl Hash, now: Instant) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= MOST {
            lines.retain(|_, written| now.duration_since(written.at) < QUIET);
        }
        // There are too many different ones to remember: then none is left out.
        if lines.len() >= MOST {
            lines.clear();
        }
        let key = hasher.finish();
        match lines.get_mut(&key) {
            Some(written) if now.duration_since(written.at) < QUIET => {
                written.left_out += 1;
                None
            }
            before => {
                let left_out = before.map_or(0, |written| written.left_out);
                lines.insert(key, Written { at: now, left_out: 0 });
                Some(left_out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_again_after_a_while_with_the_number_of_those_left_out() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(repeats.take(&"away", at(0)), Some(0));
        assert_eq!(repeats.take(&"away", at(1)), None);
        assert_eq!(repeats.take(&"full", at(2)), Some(0));
        assert_eq!(repeats.take(&"away", at(9_999)), None);
        assert_eq!(repeats.take(&"away", at(10_000)), Some(2));
        assert_eq!(repeats.take(&"away", at(20_000)), Some(0));
        for number in 0..3 * MOST {
            assert_eq!(repeats.take(&number, at(30_000)), Some(0));
        }
        assert!(repeats.0.lock().expect("the only thread").len() <= MOST);
    }
}
