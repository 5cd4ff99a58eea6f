//! The agent's memory across crashes: an append-only file of JSON lines in its state folder.
//!
//! What it is for: a run starts at most once, whatever crashes and whoever repeats a command, and a result isn't lost
//! between the end of a run and the server's `stored`. So a line is on disk *before* what it says is shown to anybody:
//! `received` before the server is told, `started` before the first process, `result` before it is sent. `stored` may
//! get lost; then the result is sent once more.
//!
//! One file and no database, because an agent writes three short lines per command, reads one only to resend it, and
//! two thousand agents may live in one process. Group commit: whatever a turn of the [runner](super::runner) has to
//! say goes down with one write and one `fdatasync`.
//!
//! After a failed write or sync nobody knows what the disk holds of the tail (Linux drops the dirty pages that could
//! not be written, and the next `fsync` succeeds). So the tail isn't tried again: the next commit first writes all that
//! was committed into a new file, as a compaction does, and goes on there.
//!
//! An entry stays until a day after its command's `expires_at`, and until its result is stored.

mod files;
mod record;
#[cfg(test)]
mod tests;

pub(super) use files::sync_dir;
pub use record::Record;

use super::processes::{self, Tree};
use crate::domain::protocol::{Command, OperationResult, RunRef, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use files::{io_error, lock, options};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Below this a file isn't worth rewriting while the agent runs.
const COMPACT_ABOVE: u64 = 16 * 1024 * 1024;
/// How long an entry stays after its command's expiry: repeats may still be under way.
const KEEP: Duration = Duration::from_secs(86_400);
/// How often entries that are over are looked for while the agent runs.
const PURGE_EVERY: Duration = Duration::from_secs(3_600);
/// How long the processes of interrupted runs may take to die.
const REMAINS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk or the file system said no.
    #[error("can't {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent works in the same folder.
    #[error("another agent uses {0}")]
    Locked(PathBuf),
    /// The runtime that does the blocking work is gone.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits.
    Received,
    /// It runs.
    Started,
    /// It ended, and the server doesn't have the result yet.
    Done,
    /// The server has the result.
    Stored,
    /// It won't run and has no result.
    Forgotten,
}

/// A line's place in the file, its newline included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeySlot {
    offset: u64,
    len: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    state: State,
    expires_at: Timestamp,
    /// The lines that a compaction copies: `received`; or `started` and the last `spawned`; or only `result`, or
    /// `forgotten`.
    lines: [Option<KeySlot>; 2],
}

impl Entry {
    fn live(&self) -> u64 {
        let stored = if self.state == State::Stored { STORED_LINE } else { 0 };
        self.lines.iter().flatten().map(|place| place.len).sum::<u64>() + stored
    }

    fn is_over(&self, now: Timestamp) -> bool {
        matches!(self.state, State::Stored | State::Forgotten) && self.expires_at.plus(KEEP) < now
    }
}

/// About the length of a `stored` line.
const STORED_LINE: u64 = 80;

/// A command that was received and not started before the agent stopped.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The command.
    pub command: Command,
    /// When it was received, by the server's clock.
    pub received_at: Timestamp,
}

/// What the journal held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// To be run now, in the order of their arrival.
    pub waiting: Vec<Waiting>,
    /// How many runs were interrupted; their results say so.
    pub interrupted: usize,
}

/// The open journal. Its calls block; see the module's documentation.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Held for as long as the journal is open.
    _lock: File,
    /// What is written and, but for `stored`, safe.
    len: u64,
    /// How much of it a compaction would keep.
    live: u64,
    index: BTreeMap<RunRef, Entry>,
    /// A write failed: the tail is unknown, go on in a new file.
    suspect: bool,
    purged_at: Timestamp,
}

/// Kills what is left of the programs of runs that were under way, so that none of it works beside what runs next.
fn kill_remains(trees: &[Tree]) {
    if trees.is_empty() {
        return;
    }
    let left = processes::kill(trees, REMAINS_TIMEOUT);
    if !left.is_empty() {
        log::error!(pids:? = left; "processes of interrupted runs could not be killed");
    }
}

impl Journal {
    /// Locks the folder (made if need be) and replays its journal. Of runs that were under way the processes that are
    /// left are killed; then they get the result `interrupted`. `now` is the agent's clock.
    pub fn open(dir: &Path, now: Timestamp) -> Result<(Self, Recovered), JournalError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make", dir))?;
        let lock = lock(dir)?;
        let path = dir.join("journal.jsonl");
        let is_new = !path.exists();
        let file = options().read(true).write(true).open(&path).map_err(io_error("open", &path))?;
        if is_new {
            sync_dir(dir)?;
        }
        let mut journal = Self {
            path,
            file,
            _lock: lock,
            len: 0,
            live: 0,
            index: BTreeMap::new(),
            suspect: false,
            purged_at: Timestamp(0),
        };
        let recovered = journal.replay(now)?;
        Ok((journal, recovered))
    }

    fn replay(&mut self, now: Timestamp) -> Result<Recovered, JournalError> {
        let mut recovered = Recovered::default();
        let mut waiting = BTreeMap::new();
        let (mut started, mut trees) = (BTreeMap::new(), BTreeMap::new());
        let mut reader = BufReader::new(self.file.try_clone().map_err(io_error("open", &self.path))?);
        let (mut line, mut number, mut offset) = (Vec::new(), 0_u64, 0_u64);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(io_error("read", &self.path))? as u64;
            if line.last() != Some(&b'\n') {
                if read > 0 {
                    log::info!(file = self.path.display().to_string(), bytes = read; "cut off a torn last line");
                }
                break;
            }
            number += 1;
            let place = KeySlot { offset, len: read };
            offset += read;
            let record = match serde_json::from_slice::<Record>(&line) {
                Ok(record) => record,
                Err(error) => {
                    log::warn!(file = self.path.display().to_string(), line = number, error:%;
                        "skipped an unreadable line of the journal");
                    continue;
                }
            };
            let run = record.run_ref();
            self.apply(&record, place);
            match record {
                Record::Received { command, at, clock_ms } => {
                    if self.state(run) == Some(State::Received) {
                        waiting.insert(
                            run,
                            (offset, Waiting { command, received_at: Timestamp(at.0.saturating_add(clock_ms)) }),
                        );
                    }
                }
                Record::Started { module, at, mark, .. } => {
                    waiting.remove(&run);
                    if self.state(run) == Some(State::Started) {
                        started.insert(run, (module, at));
                        trees.extend(mark.map(|mark| (run, Tree::new(mark))));
                    }
                }
                Record::Spawned { tree, .. } => _ = trees.insert(run, tree),
                Record::Result { .. } | Record::Forgotten { .. } => {
                    waiting.remove(&run);
                    started.remove(&run);
                }
                Record::Stored { .. } => {}
            }
        }
        self.len = offset;
        // What lies behind is a torn line, or nothing.
        self.file.set_len(offset).map_err(io_error("cut", &self.path))?;
        let mut waiting: Vec<_> = waiting.into_values().collect();
        waiting.sort_by_key(|(offset, _)| *offset);
        recovered.waiting = waiting.into_iter().map(|(_, command)| command).collect();

        let results: Vec<Record> =
            started.into_iter().map(|(run, (module, at))| self.interrupted(run, module, at, now)).collect();
        recovered.interrupted = results.len();
        trees.retain(|run, _| self.state(*run) == Some(State::Started));
        kill_remains(&trees.into_values().collect::<Vec<_>>());
        if self.live < self.len {
            self.compact()?;
        }
        // What is over is not known before the server says what time it is.
        self.commit(&results, Timestamp::default())?;
        Ok(recovered)
    }

    fn interrupted(&self, run: RunRef, module: String, started_at: Timestamp, now: Timestamp) -> Record {
        let expires_at = self.index.get(&run).map_or(now, |entry| entry.expires_at);
        let result = RunResult {
            action: run.action,
            run: run.run,
            status: RunStatus::Failed,
            results: vec![OperationResult {
                module,
                ok: false,
                output: None,
                error: Some("interrupted".into()),
                truncated: false,
            }],
            started_at: Some(started_at),
            finished_at: Some(now),
        };
        Record::Result { expires_at, result }
    }

    /// Makes the next write fail, as a full disk would.
    #[cfg(test)]
    pub(in crate::agent) fn spoil(&mut self) -> Result<(), JournalError> {
        self.file = File::open(&self.path).map_err(io_error("open", &self.path))?;
        Ok(())
    }

    /// Where a run stands; `None` for one that isn't known.
    pub fn state(&self, run: RunRef) -> Option<State> {
        self.index.get(&run).map(|entry| entry.state)
    }

    /// The highest run of an action that is known.
    pub fn newest_run(&self, action: uuid::Uuid) -> Option<i32> {
        let range =
            (Bound::Included(RunRef { action, run: i32::MIN }), Bound::Included(RunRef { action, run: i32::MAX }));
        self.index.range(range).next_back().map(|(run, _)| run.run)
    }

    /// All runs whose results aren't stored yet: waiting, running, ended.
    pub fn unfinished(&self) -> Vec<RunRef> {
        self.with_state(|state| matches!(state, State::Received | State::Started | State::Done))
    }

    /// All runs with a result that isn't stored yet.
    pub fn unstored(&self) -> Vec<RunRef> {
        self.with_state(|state| state == State::Done)
    }

    fn with_state(&self, wanted: impl Fn(State) -> bool) -> Vec<RunRef> {
        self.index.iter().filter(|(_, entry)| wanted(entry.state)).map(|(run, _)| *run).collect()
    }

    /// Writes records; after `Ok` all of them are on disk (only `stored` and `spawned` alone don't wait for it), after
    /// an error none of them counts. `now` is the server's clock, by which old entries are dropped; the default: it isn't known.
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
        let written = self.file.write_all_at(&text, self.len);
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

    /// Adds to a run that started how its processes are found. Not waited for until it is on disk: a crash of the
    /// machine, which alone could lose it, leaves no process either.
    pub fn spawned(&mut self, run: RunRef, tree: Tree) -> Result<(), JournalError> {
        self.commit(&[Record::Spawned { run, tree }], self.purged_at)
    }

    /// Drops what is over and compacts when it pays. What fails here costs space, not promises.
    fn tidy(&mut self, now: Timestamp) {
        let is_first = self.purged_at == Timestamp::default();
        if now.since(self.purged_at) >= PURGE_EVERY {
            self.purge(now);
        }
        // The first time, what earlier processes left goes from the file, too.
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

    fn apply(&mut self, record: &Record, place: KeySlot) {
        let run = record.run_ref();
        let before = self.index.get(&run).map_or(0, Entry::live);
        match record {
            Record::Received { command, .. } => {
                // Never backwards: a doubled line must not make a run startable again.
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
                    // The `received` line is of no more use: a run that started isn't run again.
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

    /// Reads the results of some runs, in order, until `max_bytes` of them. Also says how many of `runs` are dealt
    /// with: those read, and those that have no result.
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
                // Nothing that waiting would mend, and the others shall go on.
                _ => log::error!(file = self.path.display().to_string(), offset = place.offset;
                    "a result in the journal is unreadable"),
            }
        }
        Ok((results, runs.len()))
    }

    fn read(&self, place: KeySlot) -> Result<Vec<u8>, JournalError> {
        let len = usize::try_from(place.len).unwrap_or(usize::MAX);
        let mut line = vec![0; len];
        self.file.read_exact_at(&mut line, place.offset).map_err(io_error("read", &self.path))?;
        Ok(line)
    }

    /// Writes what is alive into a new file and puts that in the old one's place.
    fn compact(&mut self) -> Result<(), JournalError> {
        let path = self.path.with_extension("jsonl.new");
        let fail = |what| io_error(what, &path);
        let file = options().read(true).write(true).truncate(true).open(&path).map_err(fail("open"))?;
        let mut writer = BufWriter::with_capacity(64 * 1024, &file);
        let (mut index, mut len) = (self.index.clone(), 0);
        // In the file's order, so that what waits keeps the order of its arrival.
        let mut entries: Vec<_> = index.iter_mut().collect();
        entries.sort_by_key(|(_, entry)| entry.lines.iter().flatten().map(|place| place.offset).min());
        for (run, entry) in entries {
            for place in entry.lines.iter_mut().flatten() {
                writer.write_all(&self.read(*place)?).map_err(fail("write"))?;
                place.offset = len;
                len += place.len;
            }
            if entry.state == State::Stored {
                let mut line =
                    serde_json::to_vec(&Record::Stored { run: *run }).map_err(|error| fail("write")(error.into()))?;
                line.push(b'\n');
                writer.write_all(&line).map_err(fail("write"))?;
                len += line.len() as u64;
            }
        }
        writer.flush().map_err(fail("write"))?;
        drop(writer);
        file.sync_all().map_err(fail("sync"))?;
        fs::rename(&path, &self.path).map_err(fail("rename"))?;
        // From here on the new file is the journal, even if the folder's sync below should fail.
        (self.file, self.index, self.len) = (file, index, len);
        self.live = self.index.values().map(Entry::live).sum();
        self.suspect = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        self.suspect = false;
        Ok(())
    }
}
