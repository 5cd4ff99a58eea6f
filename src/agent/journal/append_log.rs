//! The journal's file and index: records are appended, looked up and read back.

use super::entry::{KeySlot, State};
use super::error::JournalError;
use super::files::io_error;
use super::index::Index;
use super::record::Record;
use crate::agent::processes::Tree;
use crate::domain::protocol::{RunRef, RunResult};
use crate::domain::time::Timestamp;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Smaller files are not rewritten while the agent runs.
pub(super) const COMPACT_ABOVE: u64 = 16 * 1024 * 1024;
/// How often expired entries are dropped while the agent runs.
pub(super) const PURGE_EVERY: Duration = Duration::from_secs(3_600);

/// The open journal. Its calls block; see the [module](super).
#[derive(Debug)]
pub struct Journal {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Held for as long as the journal is open.
    pub(super) _lock: File,
    /// Length of the written lines. Except for `stored` lines, they are on disk.
    pub(super) len: u64,
    pub(super) index: Arc<RwLock<Index>>,
    /// A compaction pays.
    pub(super) pays: bool,
    /// A copy is being made, or was made and is not the journal yet.
    pub(super) is_copying: bool,
    /// After a compaction that failed, the file must be longer than this.
    pub(super) pays_above: u64,
    /// How often the file was replaced.
    pub(super) replaced: u64,
    /// A write failed: the tail of the file is unknown, and the next commit continues in a new
    /// file.
    pub(super) suspect: bool,
    pub(super) purged_at: Timestamp,
    /// The length of the file at which the disk is full, which leaves no room for another file either.
    #[cfg(test)]
    pub(super) room: Option<u64>,
}

impl Journal {
    /// Makes the next write fail, as a full disk would.
    #[cfg(test)]
    pub(in crate::agent) fn spoil(&mut self) -> Result<(), JournalError> {
        self.file = File::open(&self.path).map_err(io_error("open", &self.path))?;
        // A copy that is being made would mend it.
        self.replaced += 1;
        Ok(())
    }

    /// The disk has room for so many bytes more.
    #[cfg(test)]
    pub(in crate::agent) fn fill(&mut self, room: u64) {
        self.room = Some(self.len + room);
        self.replaced += 1;
    }

    /// What it knows of each run.
    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        // Each change of the index is whole.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Index::state`].
    pub fn state(&self, run: RunRef) -> Option<State> {
        self.index().state(run)
    }

    /// See [`Index::unfinished`].
    pub fn unfinished(&self) -> Vec<RunRef> {
        self.index().unfinished()
    }

    /// See [`Index::unstored`].
    pub fn unstored(&self) -> Vec<RunRef> {
        self.index().unstored()
    }

    /// Writes records. After `Ok` all of them are on disk (a group of only `stored` and `spawned`
    /// does not wait for the disk); after an error none of them counts. `now` is the server's
    /// clock, by which old entries are dropped; it is the default while the clock is unknown.
    pub fn commit(&mut self, records: &[Record], now: Timestamp) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        if self.suspect {
            self.compact()?;
            log::info!(file = self.path.display().to_string(); "the journal can be written again");
        }
        let mut text = Vec::new();
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let start = text.len() as u64;
            serde_json::to_writer(&mut text, record).map_err(|error| io_error("write", &self.path)(error.into()))?;
            text.push(b'\n');
            places.push(KeySlot { offset: self.len + start, len: text.len() as u64 - start });
        }
        let sync = !records.iter().all(|record| matches!(record, Record::Stored { .. } | Record::Spawned { .. }));
        let written = self.write(&text);
        let written = if sync { written.and_then(|()| self.file.sync_data()) } else { written };
        if let Err(error) = written {
            self.suspect = true;
            return Err(io_error("write", &self.path)(error));
        }
        self.len += text.len() as u64;
        let mut index = self.index_mut();
        for (record, place) in records.iter().zip(places) {
            index.apply(record, place);
        }
        drop(index);
        self.tidy(now);
        Ok(())
    }

    fn write(&self, text: &[u8]) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(room) = self.room.and_then(|room| usize::try_from(room - self.len).ok())
            && room < text.len()
        {
            self.file.write_all_at(&text[..room], self.len)?;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(text, self.len)
    }

    /// Records how to find the processes of a started run. Does not wait for the disk: only a crash
    /// of the machine could lose the line, and it leaves no processes either.
    pub fn spawned(&mut self, run: RunRef, tree: Tree) -> Result<(), JournalError> {
        self.commit(&[Record::Spawned { run, tree }], self.purged_at)
    }

    /// Drops expired entries, and notes whether a compaction pays.
    fn tidy(&mut self, now: Timestamp) {
        let is_first = self.purged_at == Timestamp::default();
        if now.since(self.purged_at) >= PURGE_EVERY {
            self.index_mut().purge(now);
            self.purged_at = now;
        }
        self.index_mut().limit();
        let live = self.index().live;
        // The first call also removes what earlier processes left in the file.
        self.pays |= match is_first && self.purged_at != Timestamp::default() {
            true => live < self.len,
            false => self.len > COMPACT_ABOVE.max(self.pays_above) && live < self.len / 2,
        };
    }

    /// Reads the results of some runs, in order, up to `max_bytes`. Also returns how many of `runs`
    /// are done: those that were read, and those without a result.
    pub fn results(&self, runs: &[RunRef], max_bytes: u64) -> Result<(Vec<RunResult>, usize), JournalError> {
        let (mut results, mut bytes) = (Vec::new(), 0);
        for (at, run) in runs.iter().enumerate() {
            let Some(entry) = self.index().entries.get(run).cloned() else { continue };
            if !matches!(entry.state, State::Done | State::Stored) {
                continue;
            }
            let [_, Some(place)] = entry.lines else { continue };
            bytes += place.len;
            if bytes > max_bytes && !results.is_empty() {
                return Ok((results, at));
            }
            let line = self.read(place)?;
            match serde_json::from_slice(&line) {
                Ok(Record::Result { result, .. }) => results.push(result),
                // A retry would not help, and this one must not block the others.
                _ => log::error!(file = self.path.display().to_string(), offset = place.offset;
                    "a result in the journal is unreadable"),
            }
        }
        Ok((results, runs.len()))
    }

    pub(super) fn read(&self, place: KeySlot) -> Result<Vec<u8>, JournalError> {
        let len = usize::try_from(place.len).unwrap_or(usize::MAX);
        let mut line = vec![0; len];
        self.file.read_exact_at(&mut line, place.offset).map_err(io_error("read", &self.path))?;
        Ok(line)
    }
}
