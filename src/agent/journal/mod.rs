//! The agent's memory across crashes: an append-only file of JSON lines in its state folder.
//!
//! Its purpose: a run starts at most once, whatever crashes and however often a command is repeated, and a result is not
//! lost between the end of a run and the server's `stored`. So a line is on disk *before* its fact is visible outside:
//! `received` before the server is told, `started` before the first process, `result` before it is sent. `stored` may be
//! lost; then the result is sent once more.
//!
//! One file and no database, because an agent writes three short lines per command, reads one only to resend it, and
//! two thousand agents may live in one process. Group commit: a turn of the [runner](super::runner) writes all its
//! records with one write and one `fdatasync`.
//!
//! After a failed write or sync it is unknown what the disk holds of the tail (Linux drops the dirty pages that could not
//! be written, and the next `fsync` succeeds). So the tail is not retried: the next commit first copies all committed
//! lines into a new file, as a compaction does, and continues there.
//!
//! An entry stays until a day after its command's `expires_at`, and until its result is stored. Of what is stored, the
//! results are kept up to a limit, and so is the number of runs.

mod append_log;
mod compaction;
mod entry;
mod error;
mod files;
mod index;
mod record;
mod recovery;
mod salvage;
mod shared;
#[cfg(test)]
mod tests;

pub use append_log::Journal;
pub use entry::State;
pub use error::JournalError;
pub(super) use files::sync_dir;
#[cfg(test)]
pub(super) use index::Index;
pub use record::Record;
pub use recovery::{Recovered, Waiting};
pub(super) use salvage::Kept;
pub(super) use shared::SharedJournal;
