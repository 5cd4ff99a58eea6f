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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);
    const READ_AHEAD: Timestamp = Timestamp(1_030);

    fn at(time: i64) -> Timestamp {
        Timestamp(time)
    }

    fn due(due_at: i64, agent_no: i64) -> Due {
        Due { action_no: 1, agent_no, run: 1, attempts: 0, due_at: at(due_at), priority: 0, open: true }
    }

    /// All up to here are read.
    fn read_through(place: DueCursor) -> OpenRows {
        let mut rows = OpenRows::new();
        rows.read_through(place);
        rows
    }

    #[test]
    fn the_reading_begins_at_the_first_row_and_goes_on_after_the_last_one_taken() {
        let mut rows = OpenRows::new();
        assert_eq!(rows.next(NOW, READ_AHEAD), Some((FIRST, FIRST.0)));
        rows.taken((at(900), 1, 5));
        assert_eq!(rows.next(NOW, READ_AHEAD).map(|(place, _)| place), Some((at(900), 1, 5)));
        rows.read_through((at(1_060), i64::MAX, i64::MAX));
        assert_eq!(rows.next(NOW, READ_AHEAD), None, "it is far enough ahead");
        assert!(rows.next(at(1_031), at(1_061)).is_some(), "until time has passed");
    }

    #[test]
    fn a_row_that_found_no_room_is_read_again_then() {
        let mut rows = OpenRows::new();
        rows.taken((at(900), 1, 5));
        rows.refused((at(950), 1, 6), at(1_200));
        assert_eq!(rows.next(NOW, READ_AHEAD), None);
        assert_eq!(rows.next(at(1_200), at(1_230)), Some(((at(900), 1, 5), at(950))));
    }

    #[test]
    fn a_displaced_row_is_read_again_and_nothing_is_left_out() {
        let mut rows = read_through((at(1_060), i64::MAX, i64::MAX));
        rows.go_back(&due(1_050, 7), at(1_010));
        rows.go_back(&due(1_020, 3), at(1_015));
        assert_eq!(rows.next(at(1_009), READ_AHEAD), None);
        // Just before the first of them.
        assert_eq!(rows.next(at(1_010), READ_AHEAD), Some(((at(1_020), 1, 2), at(1_020))));
        let mut behind = read_through((at(900), 1, 5));
        behind.go_back(&due(950, 7), NOW);
        assert_eq!(behind.next(NOW, READ_AHEAD).map(|(place, _)| place), Some((at(900), 1, 5)), "it never skips");
    }

    #[test]
    fn room_for_a_displaced_row_is_room_for_one_that_was_refused() {
        let mut rows = OpenRows::new();
        rows.refused((at(950), 1, 6), at(1_200));
        rows.go_back(&due(940, 7), NOW);
        assert_eq!(rows.next(NOW, READ_AHEAD), Some((FIRST, at(940))));
    }

    #[test]
    fn a_second_reading_ends_once() {
        let mut rows = OpenRows::new();
        assert_eq!(rows.second(), None);
        rows.read_again();
        assert_eq!(rows.second(), Some(FIRST));
        rows.second_read_through(Some((at(5), 1, 1)));
        rows.read_again();
        assert_eq!(rows.second(), Some((at(5), 1, 1)), "one that is under way goes on");
        rows.second_read_through(None);
        assert_eq!(rows.second(), None);
    }

    #[test]
    fn news_during_a_second_reading_cause_one_more_after_it() {
        let mut rows = OpenRows::new();
        rows.read_news();
        rows.second_read_through(Some((at(5), 1, 1)));
        rows.read_news();
        rows.read_news();
        assert_eq!(rows.second(), Some((at(5), 1, 1)), "else it never comes to the end");
        rows.second_read_through(None);
        assert_eq!(rows.second(), Some(FIRST));
        rows.second_read_through(None);
        assert_eq!(rows.second(), None, "but once");
    }
}
