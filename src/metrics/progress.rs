//! Actors that make no progress: they run, but their work fails again and again. Shown at `/readyz`
//! and `/metrics`.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// Shorter failures aren't worth a line.
const SHOWN_AFTER: Duration = Duration::from_secs(10);
/// Maximum length of an error, which may quote what was written.
const LONGEST_ERROR: usize = 500;

/// The actors' reports about their work. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<&'static str, Option<Failing>>>>);

#[derive(Debug)]
struct Failing {
    since: Instant,
    error: String,
}

/// An actor whose work keeps failing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Stalled {
    /// The actor's name.
    pub actor: &'static str,
    /// For how long its oldest work has been failing.
    pub seconds: u64,
    /// The last error.
    pub error: String,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<Failing>>> {
        // The map is consistent after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `actor` has done all of its work.
    pub fn works(&self, actor: &'static str) {
        self.lock().insert(actor, None);
    }

    /// The work of `actor` has failed: from now on, if it didn't fail before.
    pub fn fails(&self, actor: &'static str, error: &str) {
        let mut actors = self.lock();
        let since = actors.get(actor).and_then(Option::as_ref).map_or_else(Instant::now, |failing| failing.since);
        actors.insert(actor, Some(Failing { since, error: error.chars().take(LONGEST_ERROR).collect() }));
    }

    /// The same, with a start that the actor knows.
    pub fn fails_since(&self, actor: &'static str, since: Instant, error: &str) {
        let error = error.chars().take(LONGEST_ERROR).collect();
        self.lock().insert(actor, Some(Failing { since, error }));
    }

    /// Actors whose work has been failing for longer than a moment.
    pub fn stalled(&self) -> Vec<Stalled> {
        let actors = self.lock();
        let failing = actors.iter().filter_map(|(actor, failing)| Some((*actor, failing.as_ref()?)));
        failing
            .filter(|(_, failing)| failing.since.elapsed() >= SHOWN_AFTER)
            .map(|(actor, failing)| Stalled {
                actor,
                seconds: failing.since.elapsed().as_secs(),
                error: failing.error.clone(),
            })
            .collect()
    }

    /// How long the work of each actor has been failing; 0 if it isn't.
    pub fn seconds(&self) -> Vec<(&'static str, f64)> {
        let of =
            |failing: &Option<Failing>| failing.as_ref().map_or(0.0, |failing| failing.since.elapsed().as_secs_f64());
        self.lock().iter().map(|(actor, failing)| (*actor, of(failing))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_for_a_while_is_shown_until_it_works() {
        let progress = Progress::default();
        progress.fails("young", "no");
        let Some(long_ago) = Instant::now().checked_sub(SHOWN_AFTER) else { return };
        progress.fails_since("old", long_ago, "first");
        progress.fails("old", "second");
        let stalled = progress.stalled();
        assert_eq!(stalled.iter().map(|s| (s.actor, s.error.as_str())).collect::<Vec<_>>(), [("old", "second")]);
        assert!(stalled[0].seconds >= 10);
        progress.works("old");
        assert!(progress.stalled().is_empty());
        assert!(progress.seconds().iter().any(|(actor, seconds)| *actor == "old" && *seconds == 0.0));
    }
}
