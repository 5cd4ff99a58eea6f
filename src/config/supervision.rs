//! `[supervision]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;

section! {
    /// What happens when a part of the server fails.
    pub struct Supervision {
        /// Maximum number of restarts of one part within the time below. One more ends the process.
        max_restarts: u32 = 10;
        /// The time in which restarts are counted.
        within: Span = Span::secs(60);
        /// The pause before the first restart. It doubles with each one, with some jitter.
        backoff_min: Span = Span::millis(50);
        /// The longest pause before a restart.
        backoff_max: Span = Span::secs(10);
    }
}

impl Supervision {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.duration("supervision.within", self.within, Span::days(1));
        checks.duration("supervision.backoff_min", self.backoff_min, Span::secs(3600));
        checks.duration("supervision.backoff_max", self.backoff_max, Span::secs(3600));
        checks.that(
            "supervision.backoff_max",
            self.backoff_min <= self.backoff_max,
            format!(
                "must not be shorter than supervision.backoff_min ({}), and is {}",
                self.backoff_min, self.backoff_max
            ),
        );
    }
}
