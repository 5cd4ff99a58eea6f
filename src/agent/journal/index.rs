//! What the journal knows of each run. It has a lock of its own, which nobody holds while the disk works: the runner's
//! loop reads it.

use super::entry::{Entry, KeySlot, State};
use super::record::Record;
use crate::domain::protocol::RunRef;
use crate::domain::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Maximum number of bytes of results that the server has. Beyond it, the oldest are forgotten.
pub(super) const STORED_MAX: u64 = 16 * 1024 * 1024;
/// Runs that are over and are remembered at most. Of more, those are forgotten that expire first.
pub(super) const OVER_MAX: usize = 200_000;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Index {
    pub(super) entries: BTreeMap<RunRef, Entry>,
    /// Number of bytes that a compaction would keep.
    pub(super) live: u64,
    /// Number of bytes of stored runs.
    stored: u64,
    /// Number of runs that are over.
    over: usize,
}

impl Index {
    /// The state of a run; `None` if it is unknown.
    pub fn state(&self, run: RunRef) -> Option<State> {
        self.entries.get(&run).map(|entry| entry.state)
    }

    /// The highest known run of an action.
    pub fn newest_run(&self, action: uuid::Uuid) -> Option<i32> {
        let range =
            (Bound::Included(RunRef { action, run: i32::MIN }), Bound::Included(RunRef { action, run: i32::MAX }));
        self.entries.range(range).next_back().map(|(run, _)| run.run)
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
        self.entries.iter().filter(|(_, entry)| wanted(entry.state)).map(|(run, _)| *run).collect()
    }

    fn put(&mut self, run: RunRef, entry: Entry) {
        let before = self.entries.get(&run);
        let (live, over) = (before.map_or(0, Entry::live), before.is_some_and(|entry| entry.state.is_over()));
        let stored = before.map_or(0, stored);
        self.live = self.live - live + entry.live();
        self.stored = self.stored - stored + self::stored(&entry);
        self.over = self.over + usize::from(entry.state.is_over()) - usize::from(over);
        self.entries.insert(run, entry);
    }

    /// Counts anew what the entries hold.
    pub(super) fn recount(&mut self) {
        self.live = self.entries.values().map(Entry::live).sum();
        self.stored = self.entries.values().map(stored).sum();
        self.over = self.entries.values().filter(|entry| entry.state.is_over()).count();
    }

    /// Applies a record that is in the file.
    pub(super) fn apply(&mut self, record: &Record, place: KeySlot) {
        let run = record.run_ref();
        let known = self.entries.get(&run);
        let entry = match record {
            // Never backwards: a duplicated line must not make a run startable again.
            Record::Received { .. } if known.is_some() => return,
            Record::Received { command, .. } => {
                Entry { state: State::Received, expires_at: command.expires_at, lines: [Some(place), None] }
            }
            // The `received` line is no longer needed: a run that started isn't run again.
            Record::Started { expires_at, .. } => match known {
                Some(entry) if entry.state != State::Received => return,
                Some(entry) => Entry { state: State::Started, lines: [Some(place), None], ..entry.clone() },
                None => Entry { state: State::Started, expires_at: *expires_at, lines: [Some(place), None] },
            },
            Record::Spawned { .. } => match known {
                Some(entry) if entry.state == State::Started => {
                    Entry { lines: [entry.lines[0], Some(place)], ..entry.clone() }
                }
                _ => return,
            },
            Record::Result { expires_at, .. } => {
                Entry { state: State::Done, expires_at: *expires_at, lines: [None, Some(place)] }
            }
            Record::Forgotten { expires_at, .. } => {
                Entry { state: State::Forgotten, expires_at: *expires_at, lines: [None, Some(place)] }
            }
            Record::Stored { .. } => match known {
                Some(entry) if entry.state == State::Done => Entry { state: State::Stored, ..entry.clone() },
                _ => return,
            },
        };
        self.put(run, entry);
    }

    /// Drops what need not be known any longer.
    pub(super) fn purge(&mut self, now: Timestamp) {
        self.entries.retain(|_, entry| !entry.is_over(now));
        self.recount();
    }

    /// Keeps within the limits. What an agent holds is bounded by how many commands it has, but for what is over: of
    /// that, results are forgotten that the server has, and then whole runs.
    pub(super) fn limit(&mut self) {
        if self.stored > STORED_MAX {
            let mut stored: Vec<_> =
                self.entries.iter().filter(|(_, entry)| entry.state == State::Stored).map(by_place).collect();
            stored.sort_unstable();
            for (_, run) in stored {
                if self.stored <= STORED_MAX / 2 {
                    break;
                }
                if let Some(entry) = self.entries.get(&run).cloned() {
                    self.put(run, Entry { state: State::Forgotten, lines: [None, None], ..entry });
                }
            }
        }
        if self.over > OVER_MAX {
            let mut over: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.state.is_over()).collect();
            over.sort_unstable_by_key(|(_, entry)| entry.expires_at);
            let most = over.len() - OVER_MAX / 2;
            let forgotten: BTreeSet<RunRef> = over.into_iter().take(most).map(|(run, _)| *run).collect();
            log::warn!(runs = forgotten.len(); "the journal forgets runs that have not expired: there are too many");
            self.entries.retain(|run, _| !forgotten.contains(run));
            self.recount();
        }
    }
}

/// Bytes of an entry that is stored.
fn stored(entry: &Entry) -> u64 {
    if entry.state == State::Stored { entry.live() } else { 0 }
}

fn by_place((run, entry): (&RunRef, &Entry)) -> (u64, RunRef) {
    (entry.lines.iter().flatten().map(|place| place.offset).min().unwrap_or(0), *run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_so_many_runs_that_are_over_are_remembered() {
        let (mut index, begin) = (Index::default(), Timestamp(1_800_000_000_000));
        let run = |n: usize| RunRef { action: uuid::Uuid::from_u128(n as u128), run: 1 };
        for n in 0..=OVER_MAX {
            let expires_at = begin.plus(Duration::from_millis(n as u64));
            index.apply(&Record::Forgotten { run: run(n), expires_at }, KeySlot { offset: 0, len: 1 });
        }
        let result = crate::domain::protocol::RunResult {
            action: run(usize::MAX).action,
            run: 1,
            status: crate::domain::protocol::RunStatus::Succeeded,
            results: Vec::new(),
            started_at: None,
            finished_at: None,
        };
        index.apply(&Record::Result { expires_at: begin, result }, KeySlot { offset: 0, len: 1 });
        index.limit();
        assert_eq!(index.state(run(0)), None, "it expires first");
        assert_eq!(index.state(run(OVER_MAX)), Some(State::Forgotten));
        assert_eq!(index.state(run(usize::MAX)), Some(State::Done), "it is not over");
        assert_eq!(index.entries.len(), OVER_MAX / 2 + 1);
    }
}
