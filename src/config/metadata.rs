//! `[metadata]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;

section! {
    /// The newest values that agents report.
    pub struct Metadata {
        /// How often reported values are written; only the newest value of each key is.
        flush_interval: Span = Span::secs(1);
        /// Number of waiting values that causes an earlier write.
        max_items: usize = 5000;
    }
}

impl Metadata {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.duration("metadata.flush_interval", self.flush_interval, Span::secs(3600));
        checks.count("metadata.max_items", self.max_items, 100_000);
    }
}
