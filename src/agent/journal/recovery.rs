//! Opens the journal: reads what an earlier process left, and ends its interrupted runs.

use super::append_log::Journal;
use super::entry::{KeySlot, State};
use super::error::JournalError;
use super::files::{io_error, lock, options, sync_dir};
use super::record::Record;
use crate::agent::processes::{self, Tree};
use crate::domain::protocol::{Command, OperationResult, RunRef, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the processes of interrupted runs may take to die.
const REMAINS_TIMEOUT: Duration = Duration::from_secs(5);

/// A command that was received and not started before the agent stopped.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The command.
    pub command: Command,
    /// When it was received, by the server's clock.
    pub received_at: Timestamp,
}

/// The content of the journal when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Commands to run now, in order of arrival.
    pub waiting: Vec<Waiting>,
    /// Number of interrupted runs. Their results say so.
    pub interrupted: usize,
}

impl Journal {
    /// Locks the folder, which is created if it is missing, and replays its journal. Kills the processes of runs that were
    /// interrupted, and gives these runs the result `interrupted`. `now` is the agent's clock.
    pub fn open(dir: &Path, now: Timestamp) -> Result<(Self, Recovered), JournalError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make", dir))?;
        let lock = lock(dir)?;
        let path = dir.join("journal.jsonl");
        let is_new = !path.exists();
        let file = options().read(true).write(true).open(&path).map_err(io_error("open", &path))?;
        if is_new {
            sync_dir(dir)?;
        }
        // What a crash has left of a copy.
        for copy in ["jsonl.new", "jsonl.copy"] {
            fs::remove_file(path.with_extension(copy)).ok();
        }
        let mut journal = Self {
            path,
            file,
            _lock: lock,
            len: 0,
            index: Arc::default(),
            pays: false,
            is_copying: false,
            pays_above: 0,
            replaced: 0,
            suspect: false,
            purged_at: Timestamp(0),
            #[cfg(test)]
            room: None,
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
            self.index_mut().apply(&record, place);
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
        // A torn line may follow.
        self.file.set_len(offset).map_err(io_error("cut", &self.path))?;
        let mut waiting: Vec<_> = waiting.into_values().collect();
        waiting.sort_by_key(|(offset, _)| *offset);
        recovered.waiting = waiting.into_iter().map(|(_, command)| command).collect();

        let results: Vec<Record> =
            started.into_iter().map(|(run, (module, at))| self.interrupted(run, module, at, now)).collect();
        recovered.interrupted = results.len();
        trees.retain(|run, _| self.state(*run) == Some(State::Started));
        kill_remains(&trees.into_values().collect::<Vec<_>>());
        let live = self.index().live;
        if live < self.len {
            self.compact()?;
        }
        // Nothing is dropped before the server has sent its time.
        self.commit(&results, Timestamp::default())?;
        Ok(recovered)
    }

    fn interrupted(&self, run: RunRef, module: String, started_at: Timestamp, now: Timestamp) -> Record {
        let expires_at = self.index().entries.get(&run).map_or(now, |entry| entry.expires_at);
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
                lossy: false,
            }],
            started_at: Some(started_at),
            finished_at: Some(now),
        };
        Record::Result { expires_at, result }
    }
}

/// Kills the processes of interrupted runs, so that none of them interferes with later runs.
fn kill_remains(trees: &[Tree]) {
    if trees.is_empty() {
        return;
    }
    let left = processes::kill(trees, REMAINS_TIMEOUT);
    if !left.is_empty() {
        log::error!(pids:? = left; "processes of interrupted runs could not be killed");
    }
}
