//! `[metadata]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;

section! {
    /// The newest values that agents report.
    pub struct Metadata {
        /// Reported values are written this often; only the newest of each key is.
        flush_interval: Span = Span::secs(1);
        /// Or as soon as there are so many.
        max_items: usize = 5000;
    }
}

impl Metadata {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.duration("metadata.flush_interval", self.flush_interval, Span::secs(3600));
        checks.count("metadata.max_items", self.max_items, 100_000);
    }
}
