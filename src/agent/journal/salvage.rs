//! The last writes of an agent that stops while its journal can't be written, mostly because the disk is full.

use super::append_log::Journal;
use super::error::JournalError;
use super::files::io_error;
use super::record::Record;
use crate::domain::fit::shrink;
use crate::domain::protocol::RunResult;
use crate::domain::time::Timestamp;

/// Sizes to which a result is cut until it fits, in bytes.
const SIZES: [usize; 3] = [64 * 1024, 4 * 1024, 256];

/// What was kept of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Kept {
    /// All of it.
    Whole,
    /// Its status, and as much of its outputs as there is room for.
    Part,
    /// Nothing. After its next start, the agent reports the run as interrupted.
    Nothing,
}

impl Journal {
    /// Writes as much of a result as there is room for.
    pub(in crate::agent) fn salvage(&mut self, expires_at: Timestamp, result: RunResult) -> Kept {
        let mut write = |result| {
            // A new file needs more room than is left; what of the old one counts is known.
            if self.suspect && self.compact().is_err() {
                self.rewind()?;
            }
            self.commit(&[Record::Result { expires_at, result }], Timestamp::default())
        };
        if write(result.clone()).is_ok() {
            return Kept::Whole;
        }
        let fits = |size: &usize| write(shrink(result.clone(), *size)).is_ok();
        if SIZES.iter().any(fits) { Kept::Part } else { Kept::Nothing }
    }

    /// Goes back to what is written for certain.
    fn rewind(&mut self) -> Result<(), JournalError> {
        self.file.set_len(self.len).map_err(io_error("truncate", &self.path))?;
        self.suspect = false;
        Ok(())
    }
}
