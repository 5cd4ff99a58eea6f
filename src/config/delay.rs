//! `[delay]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;

section! {
    /// Commands that wait in memory until they are due.
    pub struct Delay {
        /// Commands due within this time (or 5 s, if it is less) are held in memory; later ones
        /// stay in the store.
        horizon: Span = Span::secs(60);
        /// Maximum number of commands of each transport in memory: the nearest ones. The rest waits in the
        /// store.
        capacity: usize = 1_000_000;
    }
}

impl Delay {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.duration("delay.horizon", self.horizon, Span::days(1));
        checks.count("delay.capacity", self.capacity, 100_000_000);
    }
}
