//! `[retention]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;

/// Practically forever, but small enough that arithmetic with times can't overflow.
const LONGEST: Span = Span::days(36_500);

section! {
    /// How long things are kept.
    pub struct Retention {
        /// Actions that have ended, with their commands and results.
        actions: Span = Span::days(30);
        /// The audit log.
        audit: Span = Span::days(365);
        /// What is kept of a schedule's occurrences: those that were made, and those that were not.
        occurrences: Span = Span::days(30);
        /// Files in the spool's done/ and failed/.
        spool_done: Span = Span::days(7);
    }
}

impl Retention {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.duration("retention.actions", self.actions, LONGEST);
        checks.duration("retention.audit", self.audit, LONGEST);
        checks.duration("retention.occurrences", self.occurrences, LONGEST);
        checks.duration("retention.spool_done", self.spool_done, LONGEST);
    }
}
