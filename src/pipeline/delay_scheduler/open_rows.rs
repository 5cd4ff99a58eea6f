//! How far open rows have been read, in the order of their due times, and what of them is read next.

use super::cursor::Back;
use crate::domain::time::Timestamp;
use crate::store::{Due, DueCursor};

/// Before all open rows.
const FIRST: DueCursor = (Timestamp(i64::MIN), 0, 0);

/// See the module.
#[derive(Debug)]
pub(super) struct OpenRows {
    /// Those up to here have been read.
    through: DueCursor,
    /// The rest didn't all fit: not before this.
    not_before: Timestamp,
    /// What comes then is due no sooner.
    next_due: Timestamp,
    /// What was displaced, or is new, comes after this.
    back: Back<DueCursor>,
    /// Where the slow second reading of what is due is, while there is one.
    second: Option<DueCursor>,
    /// There is to be one more after it.
    once_more: bool,
}

impl OpenRows {
    /// Nothing has been read.
    pub fn new() -> Self {
        let (not_before, next_due) = (FIRST.0, FIRST.0);
        Self { through: FIRST, not_before, next_due, back: Back::default(), second: None, once_more: false }
    }

    /// Reads from this one on again, at this time.
    pub fn go_back(&mut self, due: &Due, when: Timestamp) {
        self.back.add((due.due_at, due.action_no, due.agent_no - 1), when);
    }

    /// After what the reading goes on, and when that is due, if now is the time: those due up to `ahead` are to have been read.
    pub fn next(&mut self, now: Timestamp, ahead: Timestamp) -> Option<(DueCursor, Timestamp)> {
        if let Some(place) = self.back.take_due(now) {
            self.through = self.through.min(place);
            self.not_before = now;
            self.next_due = self.next_due.min(place.0);
        }
        (self.through.0 < ahead && self.not_before <= now).then_some((self.through, self.next_due))
    }

    /// This one is taken in.
    pub fn taken(&mut self, place: DueCursor) {
        self.through = place;
    }

    /// This one found no room: it is read again then.
    pub fn refused(&mut self, place: DueCursor, when: Timestamp) {
        (self.not_before, self.next_due) = (when, place.0);
    }

    /// All up to here are taken in.
    pub fn read_through(&mut self, place: DueCursor) {
        (self.through, self.next_due) = (place, place.0);
    }

    /// Reads all that are due a second time, for what was lost.
    pub fn read_again(&mut self) {
        self.second.get_or_insert(FIRST);
    }

    /// Reads all that are due a second time, since something is new: if that is under way, once more when it is done, lest it
    /// never comes beyond its beginning.
    pub fn read_news(&mut self) {
        self.once_more = self.second.is_some();
        self.read_again();
    }

    /// After what the second reading goes on, while there is one.
    pub fn second(&self) -> Option<DueCursor> {
        self.second
    }

    /// The second reading has come to this one; `None`: to the end.
    pub fn second_read_through(&mut self, place: Option<DueCursor>) {
        self.second = place;
        if place.is_none() && std::mem::take(&mut self.once_more) {
            self.second = Some(FIRST);
        }
    }
}
