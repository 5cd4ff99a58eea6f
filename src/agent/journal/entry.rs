//! The index: what is known about each run, and where its lines are.

use crate::domain::time::Timestamp;
use std::time::Duration;

/// How long an entry stays after its command's expiry: repeats may still arrive.
pub(super) const KEEP: Duration = Duration::from_secs(86_400);
/// Approximate length of a `stored` line, in bytes.
const STORED_LINE: u64 = 80;
/// Approximate length of a `forgotten` line, in bytes.
const FORGOTTEN_LINE: u64 = 140;

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is waiting.
    Received,
    /// It is running.
    Started,
    /// It has ended; the server does not have the result yet.
    Done,
    /// The server has the result.
    Stored,
    /// It will not run and has no result.
    Forgotten,
}

impl State {
    /// Whether nothing becomes of the run any more.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Stored | Self::Forgotten)
    }
}

/// A line's place in the file, including its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeySlot {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The index entry of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    pub(super) expires_at: Timestamp,
    /// The lines that a compaction copies: `received`; or `started` and the last `spawned`; or only `result`; or only
    /// `forgotten`, which it writes anew if there is none.
    pub(super) lines: [Option<KeySlot>; 2],
}

impl Entry {
    /// Number of bytes that a compaction keeps.
    pub(super) fn live(&self) -> u64 {
        let written = match self.state {
            State::Stored => STORED_LINE,
            State::Forgotten if self.lines == [None, None] => FORGOTTEN_LINE,
            _ => 0,
        };
        self.lines.iter().flatten().map(|place| place.len).sum::<u64>() + written
    }

    /// Whether the entry can be dropped.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.state.is_over() && self.expires_at.plus(KEEP) < now
    }
}
