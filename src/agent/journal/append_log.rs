//! The journal's file and index: records are appended, looked up and read back.

use super::entry::{Entry, KeySlot, State};
use super::error::JournalError;
use super::files::io_error;
use super::record::Record;
use crate::agent::processes::Tree;
use crate::domain::protocol::{RunRef, RunResult};
use crate::domain::time::Timestamp;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
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
    pub(in crate::agent) len: u64,
    /// Number of bytes that a compaction would keep.
    pub(super) live: u64,
    pub(super) index: BTreeMap<RunRef, Entry>,
    /// A write failed: the tail of the file is unknown, and the next commit continues in a new
    /// file.
    pub(super) suspect: bool,
    pub(super) purged_at: Timestamp,
    /// The length of the file at which the disk is full, which leaves no room for another file either.
    #[cfg(test)]
    pub(in crate::agent) room: Option<u64>,
}

impl Journal {
    /// Makes the next write fail, as a full disk would.
    #[cfg(test)]
    pub(in crate::agent) fn spoil(&mut self) -> Result<(), JournalError> {
        self.file = File::open(&self.path).map_err(io_error("open", &self.path))?;
        Ok(())
    }

    /// The state of a run; `None` if it is unknown.
    pub fn state(&self, run: RunRef) -> Option<State> {
        self.index.get(&run).map(|entry| entry.state)
    }

    /// The highest known run of an action.
    pub fn newest_run(&self, action: uuid::Uuid) -> Option<i32> {
        let range =
            (Bound::Included(RunRef { action, run: i32::MIN }), Bound::Included(RunRef { action, run: i32::MAX }));
        self.index.range(range).next_back().map(|(run, _)| run.run)
    }

    /// All runs whose results are not stored yet: waiting, running, ended.
    pub fn unfinished(&self) -> Vec<RunRef> {
        self.with_state(|state| matches!(state, State::Received | State::Started | State::Done))
    }

    /// All runs with a result that is not stored yet.
    pub fn unstored(&self) -> Vec<RunRef> {
        self.with_state(|state| state == State::Done)
    }

    fn with_state(&self, wanted: impl Fn(State) -> bool) -> Vec<RunRef> {
        self.index.iter().filter(|(_, entry)| wanted(entry.state)).map(|(run, _)| *run).collect()
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
        for (record, place) in records.iter().zip(places) {
            self.apply(record, place);
        }
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

    /// Drops expired entries, and compacts if it pays. A failure here costs only space.
    fn tidy(&mut self, now: Timestamp) {
        let is_first = self.purged_at == Timestamp::default();
        if now.since(self.purged_at) >= PURGE_EVERY {
            self.purge(now);
        }
        // The first call also removes what earlier processes left in the file.
        let pays = match is_first && self.purged_at != Timestamp::default() {
            true => self.live < self.len,
            false => self.len > COMPACT_ABOVE && self.live < self.len / 2,
        };
        if pays && let Err(error) = self.compact() {
            log::warn!(error:%; "the journal could not be compacted");
        }
    }

    fn purge(&mut self, now: Timestamp) {
        self.index.retain(|_, entry| !entry.is_over(now));
        self.live = self.index.values().map(Entry::live).sum();
        self.purged_at = now;
    }

    /// Reads the results of some runs, in order, up to `max_bytes`. Also returns how many of `runs`
    /// are done: those that were read, and those without a result.
    pub fn results(&self, runs: &[RunRef], max_bytes: u64) -> Result<(Vec<RunResult>, usize), JournalError> {
        let (mut results, mut bytes) = (Vec::new(), 0);
        for (at, run) in runs.iter().enumerate() {
            let Some(entry) = self.index.get(run) else { continue };
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

    /// Applies a record that is in the file to the index.
    pub(super) fn apply(&mut self, record: &Record, place: KeySlot) {
        let run = record.run_ref();
        let before = self.index.get(&run).map_or(0, Entry::live);
        match record {
            Record::Received { command, .. } => {
                // Never backwards: a duplicated line must not make a run startable again.
                self.index.entry(run).or_insert(Entry {
                    state: State::Received,
                    expires_at: command.expires_at,
                    lines: [Some(place), None],
                });
            }
            Record::Started { expires_at, .. } => {
                let lines = [Some(place), None];
                let entry = Entry { state: State::Started, expires_at: *expires_at, lines };
                let entry = self.index.entry(run).or_insert(entry);
                if entry.state == State::Received {
                    // The `received` line is no longer needed: a run that started isn't run again.
                    (entry.state, entry.lines) = (State::Started, lines);
                }
            }
            Record::Spawned { .. } => {
                if let Some(entry) = self.index.get_mut(&run).filter(|entry| entry.state == State::Started) {
                    entry.lines[1] = Some(place);
                }
            }
            Record::Result { expires_at, .. } => {
                let entry = Entry { state: State::Done, expires_at: *expires_at, lines: [None, Some(place)] };
                self.index.insert(run, entry);
            }
            Record::Forgotten { expires_at, .. } => {
                let entry = Entry { state: State::Forgotten, expires_at: *expires_at, lines: [None, Some(place)] };
                self.index.insert(run, entry);
            }
            Record::Stored { .. } => {
                if let Some(entry) = self.index.get_mut(&run).filter(|entry| entry.state == State::Done) {
                    entry.state = State::Stored;
                }
            }
        }
        let after = self.index.get(&run).map_or(0, Entry::live);
        self.live = self.live - before + after;
    }
}
