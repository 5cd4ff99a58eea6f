//! Tracks how far open rows have been read, in order of their due times, and chooses the next read.

use super::cursor::Back;
use crate::domain::time::Timestamp;
use crate::store::{Due, DueCursor};

/// The place before all open rows.
const FIRST: DueCursor = (Timestamp(i64::MIN), 0, 0);

/// The reading positions in the open rows.
#[derive(Debug)]
pub(super) struct OpenRows {
    /// Rows up to this place have been read.
    through: DueCursor,
    /// If a row was refused, no read before this time.
    not_before: Timestamp,
    /// The rows of the next read are due at this time or later.
    next_due: Timestamp,
    /// Displaced and new rows come after this place.
    back: Back<DueCursor>,
    /// The position of the slow second reading, while there is one.
    second: Option<DueCursor>,
    /// Another second reading follows the current one.
    once_more: bool,
}

impl OpenRows {
    /// Starts with nothing read.
    pub fn new() -> Self {
        let (not_before, next_due) = (FIRST.0, FIRST.0);
        Self { through: FIRST, not_before, next_due, back: Back::default(), second: None, once_more: false }
    }

    /// Reads from this row on again, at this time.
    pub fn go_back(&mut self, due: &Due, when: Timestamp) {
        self.back.add((due.due_at, due.action_no, due.agent_no - 1), when);
    }

    /// The place after which the next read begins and its due time, if now is the time. Rows due up
    /// to `ahead` should have been read.
    pub fn next(&mut self, now: Timestamp, ahead: Timestamp) -> Option<(DueCursor, Timestamp)> {
        if let Some(place) = self.back.take_due(now) {
            self.through = self.through.min(place);
            self.not_before = now;
            self.next_due = self.next_due.min(place.0);
        }
        (self.through.0 < ahead && self.not_before <= now).then_some((self.through, self.next_due))
    }

    /// This row was taken in.
    pub fn taken(&mut self, place: DueCursor) {
        self.through = place;
    }

    /// This row found no room and is read again at `when`.
    pub fn refused(&mut self, place: DueCursor, when: Timestamp) {
        (self.not_before, self.next_due) = (when, place.0);
    }

    /// All rows up to here were taken in.
    pub fn read_through(&mut self, place: DueCursor) {
        (self.through, self.next_due) = (place, place.0);
    }

    /// Reads all due rows a second time, to find lost ones.
    pub fn read_again(&mut self) {
        self.second.get_or_insert(FIRST);
    }

    /// Reads all due rows a second time because there are new ones. If a second reading is under
    /// way, another one follows it. Restarting it each time could keep it at its beginning for
    /// ever.
    pub fn read_news(&mut self) {
        self.once_more = self.second.is_some();
        self.read_again();
    }

    /// The place after which the second reading continues, while there is one.
    pub fn second(&self) -> Option<DueCursor> {
        self.second
    }

    /// The second reading has reached this place; `None`: the end.
    pub fn second_read_through(&mut self, place: Option<DueCursor>) {
        self.second = place;
        if place.is_none() && std::mem::take(&mut self.once_more) {
            self.second = Some(FIRST);
        }
    }
}
