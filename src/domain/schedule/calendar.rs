//! The instants at which a schedule takes place.
//!
//! Between two clock changes, local time is an instant plus an offset. So a window of time is cut into
//! *pieces* with one offset each, and a piece's occurrences are the local times of the pattern in it.
//! Around a clock change, the policies say which pieces count:
//!
//! ```text
//! clocks go forward (a gap)            clocks go back (a repeated hour)
//!   ───────┤       ├───────              ──────────┤first│
//!          ▲ local times of the gap                │last ├──────────
//!            become this instant, or nothing       first, last or both count
//! ```
//!
//! A pattern with a `*` in its hours counts elapsed time: whatever the clock shows then.
//!
//! Rejected: resolving every local time on its own. Copies of a repeated hour then come out of order,
//! a second's pattern costs thousands of look-ups, and nothing can be counted without listing it.

use super::pattern::Pattern;
use super::timing::{OnGap, OnRepeat, Timing};
use super::zones::Zones;
use crate::domain::time::{LAST_WRITABLE, Timestamp};
use jiff::tz::TimeZone;
use std::ops::Range;

/// How far ahead an occurrence is looked for, in seconds: 60 years. A fifth Monday in February comes
/// every 28 years, or after 40.
const SEARCH: i64 = 60 * 366 * 86_400;
/// Further than any clock was ever changed, in seconds.
const REACH: i64 = 26 * 3600;
/// The first window of a search, in seconds. Each next one is larger.
const WINDOW: i64 = 3600;
/// Skipped times in a preview, at most.
const MAX_SKIPPED: usize = 100;

/// What a clock change does to an occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// Its local time doesn't exist: it takes place at the first instant after the gap.
    Shifted,
    /// Its local time doesn't exist, and it doesn't take place.
    Skipped,
    /// The first one of the two instants of its local time.
    First,
    /// The last one of the two instants of its local time.
    Last,
}

/// A line of a preview.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Upcoming {
    /// The instant; `None` if it is skipped.
    pub at: Option<Timestamp>,
    /// The local time with its offset, as RFC 3339 has it; without offset for a skipped one.
    pub local: String,
    /// What a clock change does to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
}

/// A schedule's times, with the zone data of one moment.
#[derive(Debug)]
pub struct Calendar {
    times: Times,
    /// Seconds since 1970. None takes place before, or from `ends` on.
    bounds: Range<i64>,
}

#[derive(Debug)]
enum Times {
    Cron(Box<LocalTimes>),
    /// In milliseconds, since a start may have them.
    Every {
        from: i64,
        every: i64,
    },
    At(i64),
}

#[derive(Debug)]
struct LocalTimes {
    pattern: Pattern,
    zone: TimeZone,
    on_gap: OnGap,
    on_repeat: OnRepeat,
}

/// Part of a window.
#[derive(Clone, Debug)]
enum Piece {
    /// Local times with this offset to UTC.
    Times { local: Range<i64>, offset: i64, note: Option<Note> },
    /// Local times of a gap, which ends at this instant.
    Gap { local: Range<i64>, at: i64, offset: i64 },
}

impl Calendar {
    /// The times of a schedule, from `starts_at` until before `ends_at`.
    ///
    /// # Errors
    /// The key, and what is wrong: the zone is unknown, or the pattern can't be read.
    pub fn new(
        timing: &Timing,
        starts_at: Option<Timestamp>,
        ends_at: Option<Timestamp>,
        zones: &Zones,
    ) -> Result<Self, (&'static str, String)> {
        let times = match timing {
            Timing::Cron { pattern, timezone, on_gap, on_repeat } => Times::Cron(Box::new(LocalTimes {
                pattern: Pattern::parse(pattern).map_err(|error| ("cron", error))?,
                zone: zones.get(timezone).map_err(|error| ("timezone", error))?,
                on_gap: *on_gap,
                on_repeat: *on_repeat,
            })),
            Timing::Every { from, every } => Times::Every { from: from.0, every: every.as_millis().max(1) },
            Timing::At(at) => Times::At(at.0),
        };
        let start = starts_at.map_or(i64::MIN, |time| time.0);
        let end = ends_at.map_or(LAST_WRITABLE, |time| time.0);
        Ok(Self { times, bounds: start..end })
    }

    /// The first occurrence after this time. `None` if there is none in the next 60 years.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let from = after.0.saturating_add(1).max(self.bounds.start);
        let found = match &self.times {
            Times::At(at) => (*at >= from).then_some(*at),
            Times::Every { from: first, every } => {
                let steps = (from.saturating_sub(*first)).max(0).saturating_add(every - 1) / every;
                first.checked_add(steps.checked_mul(*every)?)
            }
            Times::Cron(times) => {
                let start = div_ceil(from, 1000);
                self.windows(start).find_map(|window| times.first(window)).map(|second| second * 1000)
            }
        };
        found.filter(|at| *at < self.bounds.end).map(Timestamp)
    }

    /// The newest `most` occurrences of a range, earliest first.
    pub(super) fn newest(&self, range: Range<Timestamp>, most: usize) -> Vec<Timestamp> {
        let (start, end) = (range.start.0.max(self.bounds.start), range.end.0.min(self.bounds.end));
        if start >= end || most == 0 {
            return Vec::new();
        }
        let mut found = match &self.times {
            Times::At(at) => Vec::from_iter((start..end).contains(at).then_some(*at)),
            Times::Every { from, every } => {
                let last = (end - 1 - from).div_euclid(*every);
                let first = div_ceil(start.saturating_sub(*from), *every).max(0);
                (first..=last).rev().take(most).map(|step| from + step * every).collect()
            }
            Times::Cron(times) => {
                let seconds = div_ceil(start, 1000)..div_ceil(end, 1000);
                times.newest(seconds, most).into_iter().map(|second| second * 1000).collect()
            }
        };
        found.reverse();
        found.into_iter().map(Timestamp).collect()
    }

    /// How many occurrences a range has.
    pub(super) fn count(&self, range: Range<Timestamp>) -> u64 {
        let (start, end) = (range.start.0.max(self.bounds.start), range.end.0.min(self.bounds.end));
        if start >= end {
            return 0;
        }
        match &self.times {
            Times::At(at) => u64::from((start..end).contains(at)),
            Times::Every { from, every } => {
                let (first, last) =
                    (div_ceil(start.saturating_sub(*from), *every).max(0), (end - 1 - from).div_euclid(*every));
                u64::try_from(last - first + 1).unwrap_or(0)
            }
            Times::Cron(times) => times.count(div_ceil(start, 1000)..div_ceil(end, 1000)),
        }
    }

    /// Windows from a second on, as far as an occurrence is looked for.
    fn windows(&self, start: i64) -> Windows {
        let end = start.saturating_add(SEARCH).min(div_ceil(self.bounds.end, 1000));
        Windows { start, size: WINDOW, end }
    }

    /// The next `count` occurrences after this time, and between them those that are skipped.
    pub fn upcoming(&self, after: Timestamp, count: usize) -> Vec<Upcoming> {
        let mut lines = Vec::new();
        let Times::Cron(times) = &self.times else {
            let mut after = after;
            while lines.len() < count
                && let Some(at) = self.next_after(after)
            {
                lines.push(Upcoming { at: Some(at), local: at.to_string(), note: None });
                after = at;
            }
            return lines;
        };
        let from = after.0.saturating_add(1).max(self.bounds.start);
        let start = div_ceil(from, 1000);
        let (mut made, mut skipped) = (0, 0);
        for window in self.windows(start) {
            for line in times.lines(window, count - made, MAX_SKIPPED - skipped) {
                match line.at {
                    Some(at) if at.0 >= self.bounds.end => return lines,
                    Some(_) => made += 1,
                    None => skipped += 1,
                }
                lines.push(line);
                if made == count {
                    return lines;
                }
            }
        }
        lines
    }
}

impl LocalTimes {
    fn offset_at(&self, second: i64) -> i64 {
        let timestamp = timestamp(second);
        i64::from(self.zone.to_offset(timestamp).seconds())
    }

    /// The clock changes in a range: the instant, and the offset from then on.
    fn changes(&self, range: Range<i64>) -> Vec<(i64, i64)> {
        let following = self.zone.following(timestamp(range.start - 1));
        let changes = following.map(|change| (change.timestamp().as_second(), i64::from(change.offset().seconds())));
        let changes = changes.take_while(|(at, _)| *at < range.end);
        // Some only change a name.
        let mut offset = self.offset_at(range.start - 1);
        changes.filter(|(_, new)| std::mem::replace(&mut offset, *new) != *new).collect()
    }

    /// Cuts a window of instants into pieces, in order.
    fn pieces(&self, window: Range<i64>) -> Vec<Piece> {
        let reach = window.start - REACH..window.end + REACH;
        let changes = self.changes(reach.clone());
        let mut offset = self.offset_at(reach.start - 1);
        let mut start = reach.start;
        // Until then, times are those of a repeated hour for the second time.
        let mut repeated_until = i64::MIN;
        let mut pieces = Vec::new();
        for (index, (end, next)) in changes.iter().copied().chain([(reach.end, offset)]).enumerate() {
            let is_change = index < changes.len();
            let back = if is_change { (offset - next).max(0) } else { 0 };
            let first_copy = (end - back).max(start);
            let after_copy = repeated_until.clamp(start, first_copy);
            for (part, note) in [
                (start..after_copy, Some(Note::Last)),
                (after_copy..first_copy, None),
                (first_copy..end, Some(Note::First)),
            ] {
                let part = part.start.max(window.start)..part.end.min(window.end);
                let counts = match note {
                    Some(Note::First) => self.pattern.is_elapsed() || self.on_repeat != OnRepeat::Last,
                    Some(Note::Last) => self.pattern.is_elapsed() || self.on_repeat != OnRepeat::First,
                    _ => true,
                };
                if part.start < part.end && counts {
                    pieces.push(Piece::Times { local: part.start + offset..part.end + offset, offset, note });
                }
            }
            if !is_change {
                break;
            }
            if next > offset && window.contains(&end) {
                pieces.push(Piece::Gap { local: end + offset..end + next, at: end, offset: next });
            }
            repeated_until = end + back;
            (start, offset) = (end, next);
        }
        pieces
    }

    fn shifts(&self) -> bool {
        self.on_gap == OnGap::Shift && !self.pattern.is_elapsed()
    }

    /// Whether times of this gap become an occurrence of their own at its end. A time that lies there
    /// anyway is the same occurrence.
    fn is_shifted(&self, gap: &Range<i64>) -> bool {
        self.shifts() && self.pattern.first(gap.clone()).is_some() && self.pattern.first(gap.end..gap.end + 1).is_none()
    }

    fn first(&self, window: Range<i64>) -> Option<i64> {
        self.pieces(window).into_iter().find_map(|piece| match piece {
            Piece::Times { local, offset, .. } => self.pattern.first(local).map(|local| local - offset),
            Piece::Gap { local, at, .. } => self.is_shifted(&local).then_some(at),
        })
    }

    fn count(&self, window: Range<i64>) -> u64 {
        let counts = self.pieces(window).into_iter().map(|piece| match piece {
            Piece::Times { local, .. } => self.pattern.count(local),
            Piece::Gap { local, .. } => u64::from(self.is_shifted(&local)),
        });
        counts.sum()
    }

    /// The newest ones, latest first.
    fn newest(&self, window: Range<i64>, most: usize) -> Vec<i64> {
        let (mut found, mut end, mut size) = (Vec::new(), window.end, WINDOW);
        while end > window.start && found.len() < most {
            let start = end.saturating_sub(size).max(window.start);
            for piece in self.pieces(start..end).into_iter().rev() {
                match piece {
                    Piece::Times { mut local, offset, .. } => {
                        while found.len() < most
                            && let Some(last) = self.pattern.last(local.clone())
                        {
                            found.push(last - offset);
                            local.end = last;
                        }
                    }
                    Piece::Gap { local, at, .. } if found.len() < most && self.is_shifted(&local) => found.push(at),
                    Piece::Gap { .. } => {}
                }
            }
            (end, size) = (start, size.saturating_mul(4));
        }
        found
    }

    /// The lines of a preview: at most so many that take place, and so many that are skipped.
    fn lines(&self, window: Range<i64>, most: usize, most_skipped: usize) -> Vec<Upcoming> {
        let (mut lines, mut made, mut skipped) = (Vec::new(), 0, 0);
        for piece in self.pieces(window) {
            match piece {
                Piece::Times { mut local, offset, note } => {
                    while made < most
                        && let Some(time) = self.pattern.first(local.clone())
                    {
                        lines.push(Upcoming {
                            at: Some(instant(time - offset)),
                            local: local_text(time, Some(offset)),
                            note,
                        });
                        made += 1;
                        local.start = time + 1;
                    }
                }
                Piece::Gap { local, at, offset } if self.shifts() => {
                    if made < most && self.is_shifted(&local) {
                        let (at, local) = (Some(instant(at)), local_text(at + offset, Some(offset)));
                        lines.push(Upcoming { at, local, note: Some(Note::Shifted) });
                        made += 1;
                    }
                }
                Piece::Gap { mut local, .. } => {
                    while skipped < most_skipped
                        && made < most
                        && let Some(time) = self.pattern.first(local.clone())
                    {
                        lines.push(Upcoming { at: None, local: local_text(time, None), note: Some(Note::Skipped) });
                        skipped += 1;
                        local.start = time + 1;
                    }
                }
            }
        }
        lines
    }
}

/// Windows that grow, up to the end of a search.
struct Windows {
    start: i64,
    size: i64,
    end: i64,
}

impl Iterator for Windows {
    type Item = Range<i64>;

    fn next(&mut self) -> Option<Range<i64>> {
        let window = self.start..self.start.saturating_add(self.size).min(self.end);
        (self.start, self.size) = (window.end, self.size.saturating_mul(4));
        (window.start < window.end).then_some(window)
    }
}

fn div_ceil(number: i64, by: i64) -> i64 {
    number.div_euclid(by) + i64::from(number.rem_euclid(by) != 0)
}

fn instant(second: i64) -> Timestamp {
    Timestamp(second.saturating_mul(1000))
}

/// The nearest time that the zone library knows.
fn timestamp(second: i64) -> jiff::Timestamp {
    let (least, most) = (jiff::Timestamp::MIN.as_second(), jiff::Timestamp::MAX.as_second());
    jiff::Timestamp::from_second(second.clamp(least, most)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// A local time as RFC 3339 writes it, to the second.
fn local_text(local: i64, offset: Option<i64>) -> String {
    let time = chrono::DateTime::from_timestamp(local, 0).unwrap_or_default().naive_utc();
    let text = time.format("%Y-%m-%dT%H:%M:%S");
    match offset {
        None => text.to_string(),
        Some(offset) => {
            let sign = if offset < 0 { '-' } else { '+' };
            format!("{text}{sign}{:02}:{:02}", offset.abs() / 3600, offset.abs() / 60 % 60)
        }
    }
}
