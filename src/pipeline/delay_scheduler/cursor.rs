//! Tracks how far each open action's commands have been read, and chooses the action to read next.

use crate::domain::time::Timestamp;
use std::collections::BTreeMap;

/// Up to this number of actions, every read sorts them anew. Above it, a plan of [`AGENDA`] actions
/// is used up first.
const FULL_PLAN_LIMIT: usize = 1_000;
const AGENDA: usize = 64;

/// Where a reading must go back to, and when. Kept apart from the position, which a read under way
/// moves on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Back<P>(Option<(P, Timestamp)>);

impl<P> Default for Back<P> {
    fn default() -> Self {
        Self(None)
    }
}

impl<P: Copy + Ord> Back<P> {
    /// Goes back to `to` or earlier, at `when` or sooner.
    pub fn add(&mut self, to: P, when: Timestamp) {
        self.0 = Some(self.0.map_or((to, when), |(at, then)| (at.min(to), then.min(when))));
    }

    fn is_set(&self) -> bool {
        self.0.is_some()
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.0.is_some_and(|(_, when)| when <= now)
    }

    /// The place to go back to, if it is time.
    pub fn take_due(&mut self, now: Timestamp) -> Option<P> {
        self.0.take_if(|(_, when)| *when <= now).map(|(to, _)| to)
    }
}

/// How far one action's commands have been read.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The agent key up to which commands have been read.
    pub at: i64,
    /// `Some`: the store has, or may have, more to read at this time.
    pub behind: Option<Timestamp>,
    /// The earliest due time of the next commands, as far as is known. The nearest are read first.
    pub next_due: Timestamp,
    /// A hint arrived during a read.
    pub hinted: bool,
    /// Commands beyond this agent key were displaced, passed over or lost.
    pub back: Back<i64>,
    /// `dispatched_through` at the last comparison.
    pub dispatched: i64,
    /// This node owns the action: it writes `waiting` rows for absent agents, and sends what isn't
    /// a stream.
    pub owned: bool,
    /// The newest reading of the open actions that had begun when the cursor was made. That reading
    /// and earlier ones may not list the action.
    pub reading: u64,
}

impl Cursor {
    /// A cursor at this agent key, with nothing to read.
    pub fn new(at: i64, owned: bool, reading: u64) -> Self {
        let (next_due, back) = (Timestamp(i64::MIN), Back::default());
        Self { at, behind: None, next_due, hinted: false, back, dispatched: at, owned, reading }
    }

    /// Goes back to an agent key at time `when`, for commands due at `due` or later.
    pub fn go_back(&mut self, to: i64, when: Timestamp, due: Timestamp) {
        self.back.add(to, when);
        self.next_due = self.next_due.min(due);
    }

    /// More commands are to be read at time `when`; they are due at `due` or later.
    pub fn wait(&mut self, when: Timestamp, due: Timestamp) {
        self.behind = Some(when);
        self.next_due = if self.back.is_set() { self.next_due.min(due) } else { due };
    }

    fn is_waiting(&self, now: Timestamp) -> bool {
        self.behind.is_some_and(|when| when <= now) || self.back.is_due(now)
    }
}

/// The cursors of all open actions.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    pub by_action: BTreeMap<i64, Cursor>,
    /// The actions to read next, the last one first.
    agenda: Vec<i64>,
    /// The action that was read last. Among actions with equal due times, the one after it has its
    /// turn.
    last_read: i64,
}

impl Cursors {
    /// The action to read now, and when its next command is due. It is the nearest one, so that
    /// commands with later due times don't fill the queue.
    pub fn nearest(&mut self, now: Timestamp) -> Option<(i64, Timestamp)> {
        let waiting = |no: &i64| self.by_action.get(no).is_some_and(|cursor| cursor.is_waiting(now));
        while self.agenda.last().is_some_and(|no| !waiting(no)) {
            self.agenda.pop();
        }
        if self.agenda.is_empty() || self.by_action.len() <= FULL_PLAN_LIMIT {
            self.plan(now);
        }
        let no = *self.agenda.last()?;
        Some((no, self.by_action.get(&no)?.next_due))
    }

    fn plan(&mut self, now: Timestamp) {
        let last_read = self.last_read;
        let waiting = self.by_action.iter().filter(|(_, cursor)| cursor.is_waiting(now));
        let mut turns: Vec<_> = waiting.map(|(no, cursor)| (cursor.next_due, *no <= last_read, *no)).collect();
        if turns.len() > AGENDA {
            turns.select_nth_unstable(AGENDA);
            turns.truncate(AGENDA);
        }
        turns.sort_unstable_by(|a, b| b.cmp(a));
        self.agenda = turns.into_iter().map(|(.., no)| no).collect();
    }

    /// Begins a read of this action and returns its start. A failed read begins there again.
    pub fn begin(&mut self, no: i64, now: Timestamp) -> Option<i64> {
        self.agenda.pop();
        self.last_read = no;
        let cursor = self.by_action.get_mut(&no)?;
        if let Some(to) = cursor.back.take_due(now) {
            cursor.at = cursor.at.min(to);
            cursor.behind = Some(now);
        }
        Some(cursor.at)
    }
}
