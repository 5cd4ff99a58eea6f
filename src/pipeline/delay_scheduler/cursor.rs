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
    /// `dispatched_through` when it was compared last; `None`: it was not compared yet.
    pub dispatched: Option<i64>,
    /// When the first command after this agent key is due, as was read last.
    pub first: Option<(i64, Timestamp)>,
    /// This node writes down whose agents are away, and sends what isn't a stream.
    pub owned: bool,
    /// The newest reading of the open actions that had begun when the cursor was made. That reading
    /// and earlier ones may not list the action.
    pub reading: u64,
}

impl Cursor {
    /// A cursor at this agent key, with nothing to read.
    pub fn new(at: i64, owned: bool, reading: u64) -> Self {
        let (next_due, back) = (Timestamp(i64::MIN), Back::default());
        Self { at, behind: None, next_due, hinted: false, back, dispatched: None, first: None, owned, reading }
    }

    /// Whether commands after `dispatched` seem to be missing: nothing became of them since the last comparison, though
    /// they are due. What is not due yet, or is being read, is not missing.
    pub fn is_stuck(&self, dispatched: i64, resolved_through: i64, now: Timestamp) -> bool {
        let is_being_read = self.behind.is_some_and(|when| when <= now);
        let is_early = self.first.is_some_and(|(after, due)| after == dispatched && due > now);
        !is_being_read && !is_early && dispatched < resolved_through && self.dispatched == Some(dispatched)
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

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(i64::MIN);

    fn at(time: i64) -> Timestamp {
        Timestamp(time)
    }

    /// Cursors at key 10 of these actions, to be read at once; what comes next is due then.
    fn cursors(due: &[(i64, i64)]) -> Cursors {
        let mut cursors = Cursors::default();
        for (no, due) in due {
            let mut cursor = Cursor::new(10, true, 0);
            cursor.wait(at(0), at(*due));
            cursors.by_action.insert(*no, cursor);
        }
        cursors
    }

    fn cursor(cursors: &mut Cursors, no: i64) -> &mut Cursor {
        cursors.by_action.get_mut(&no).expect("it is there")
    }

    #[test]
    fn a_back_goes_to_the_lowest_place_at_the_earliest_time_once() {
        let mut back = Back::default();
        assert_eq!(back.take_due(at(i64::MAX)), None);
        back.add(7, at(50));
        back.add(3, at(90));
        back.add(5, at(60));
        assert_eq!(back.take_due(at(49)), None);
        assert_eq!(back.take_due(at(50)), Some(3));
        assert_eq!(back.take_due(at(90)), None);
    }

    #[test]
    fn nothing_is_read_of_a_cursor_that_is_not_behind() {
        let mut cursors = Cursors::default();
        cursors.by_action.insert(1, Cursor::new(10, true, 0));
        assert_eq!(cursors.nearest(at(100)), None);
        cursor(&mut cursors, 1).behind = Some(at(100));
        assert_eq!(cursors.nearest(at(99)), None);
        assert_eq!(cursors.nearest(at(100)), Some((1, START)));
    }

    #[test]
    fn the_action_whose_next_command_is_nearest_is_read_first() {
        let mut cursors = cursors(&[(1, 300), (2, 100), (3, 200)]);
        assert_eq!(cursors.nearest(at(0)), Some((2, at(100))));
        cursor(&mut cursors, 2).behind = None;
        assert_eq!(cursors.nearest(at(0)), Some((3, at(200))));
    }

    #[test]
    fn actions_that_are_alike_take_turns() {
        let mut cursors = cursors(&[(1, 100), (2, 100), (3, 100)]);
        let mut read = Vec::new();
        for _ in 0..7 {
            let (no, _) = cursors.nearest(at(0)).expect("there is one");
            assert_eq!(cursors.begin(no, at(0)), Some(10));
            read.push(no);
        }
        assert_eq!(read, [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn many_actions_are_all_read_in_the_order_of_their_due_times() {
        let due: Vec<(i64, i64)> = (1..=2 * FULL_PLAN_LIMIT as i64).map(|no| (no, no * 7_919 % 100_003)).collect();
        let mut cursors = cursors(&due);
        let mut read = Vec::new();
        while let Some((no, due)) = cursors.nearest(at(0)) {
            cursors.begin(no, at(0));
            cursor(&mut cursors, no).behind = None;
            read.push(due);
        }
        assert_eq!(read.len(), due.len());
        assert!(read.is_sorted());
    }

    #[test]
    fn going_back_begins_the_reading_there_and_does_not_move_one_that_is_farther_back() {
        let mut cursors = cursors(&[(1, 100)]);
        cursor(&mut cursors, 1).behind = None;
        cursor(&mut cursors, 1).go_back(4, at(50), at(20));
        assert_eq!(cursors.nearest(at(49)), None);
        assert_eq!(cursors.nearest(at(50)), Some((1, at(20))));
        assert_eq!(cursors.begin(1, at(50)), Some(4));
        assert_eq!(cursor(&mut cursors, 1).behind, Some(at(50)), "should the read fail, it begins there again");
        cursor(&mut cursors, 1).go_back(8, at(60), at(20));
        assert_eq!(cursors.begin(1, at(60)), Some(4));
        assert_eq!(cursors.begin(2, at(60)), None, "there is none");
    }

    #[test]
    fn commands_are_missing_that_are_due_and_of_which_nothing_became_between_two_comparisons() {
        let mut cursor = Cursor::new(10, true, 0);
        assert!(!cursor.is_stuck(0, 10, at(100)), "it was not compared before");
        cursor.dispatched = Some(0);
        assert!(cursor.is_stuck(0, 10, at(100)));
        assert!(!cursor.is_stuck(4, 10, at(100)), "it has moved on");
        assert!(!cursor.is_stuck(0, 0, at(100)), "there are none");
        cursor.behind = Some(at(100));
        assert!(!cursor.is_stuck(0, 10, at(100)) && cursor.is_stuck(0, 10, at(99)), "being read, or later");
        cursor.behind = None;
        cursor.first = Some((0, at(3_600)));
        assert!(!cursor.is_stuck(0, 10, at(3_599)), "not due for an hour: it is not read again and again");
        assert!(cursor.is_stuck(0, 10, at(3_600)));
        cursor.first = Some((4, at(3_600)));
        assert!(cursor.is_stuck(0, 10, at(100)), "that is about later ones");
    }

    #[test]
    fn what_lies_behind_is_not_forgotten_for_what_comes_later() {
        let mut cursor = Cursor::new(10, true, 0);
        cursor.go_back(4, at(50), at(20));
        cursor.wait(at(70), at(500));
        assert_eq!(cursor.next_due, at(20).min(START), "what is known is kept");
        let mut cursor = Cursor::new(10, true, 0);
        cursor.wait(at(70), at(500));
        assert_eq!((cursor.behind, cursor.next_due), (Some(at(70)), at(500)));
    }
}
