//! `[spool]`

use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;
use std::path::PathBuf;

section! {
    /// The folder that takes actions as files.
    pub struct Spool {
        /// The path of the folder. Default: spool in data_dir.
        dir: Option<PathBuf> = None, example "odoshi-data/spool";
        /// How often new/ is scanned, in addition to notifications of changes.
        scan_interval: Span = Span::secs(1);
    }
}

impl Spool {
    pub(super) fn validate(&self, checks: &mut Checks) {
        let empty = self.dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty());
        checks.that("spool.dir", !empty, "must not be empty");
        checks.duration("spool.scan_interval", self.scan_interval, Span::days(1));
    }
}
