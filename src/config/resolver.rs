//! `[resolver]`

use super::error::Checks;
use super::setting::section;

section! {
    /// Finding the agents of an action.
    pub struct Resolver {
        /// How many agents are read at a time.
        page: usize = 5000;
    }
}

impl Resolver {
    pub(super) fn validate(&self, checks: &mut Checks) {
        checks.count("resolver.page", self.page, 100_000);
    }
}
