//! A cron pattern as a set of local times.
//!
//! Local times are counted in seconds since 1970-01-01T00:00:00 of the same calendar, as if there
//! were no time zones. `croner` reads the pattern and says which days match. A day's times are every
//! combination of the hours, minutes and seconds.

use chrono::{Datelike, NaiveDate};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use croner::time::Weekday;
use std::ops::Range;

/// Seconds of a day.
const DAY: i64 = 86_400;
/// The names of the fields, with the largest step of each.
const FIELDS: [(&str, u32); 6] =
    [("second", 59), ("minute", 59), ("hour", 23), ("day of the month", 31), ("month", 12), ("day of the week", 7)];
/// What stands for a pattern.
const NICKNAMES: [&str; 6] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"];

/// See the module.
#[derive(Debug)]
pub(super) struct Pattern {
    cron: Cron,
    /// A bit per second, minute and hour.
    seconds: u64,
    minutes: u64,
    hours: u64,
    /// It holds a `*` in the hours: its times are counted in elapsed time.
    is_elapsed: bool,
}

impl Pattern {
    /// Reads a pattern of five fields, or six with seconds first, or a nickname such as `@daily`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_fields(text)?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| match culprit(&parser, text) {
            Some((name, field)) => format!("the {name}: \"{field}\" is not understood ({error})"),
            None => format!("\"{text}\" is not understood ({error})"),
        })?;
        let bits = |values: Vec<u16>| values.into_iter().fold(0_u64, |bits, value| bits | 1 << value);
        let fields: Vec<&str> = cron.pattern.as_str().split_whitespace().collect();
        let hours = fields.get(fields.len().saturating_sub(4)).copied().unwrap_or_default();
        Ok(Self {
            seconds: bits(cron.pattern.seconds.values()),
            minutes: bits(cron.pattern.minutes.values()),
            hours: bits(cron.pattern.hours.values()),
            is_elapsed: hours.contains('*'),
            cron,
        })
    }

    /// Whether its times are counted in elapsed time, whatever the policies about clock changes say.
    pub(super) fn is_elapsed(&self) -> bool {
        self.is_elapsed
    }

    /// The first matching time in a range.
    pub(super) fn first(&self, range: Range<i64>) -> Option<i64> {
        let mut day = range.start.div_euclid(DAY);
        let last = (range.end - 1).div_euclid(DAY);
        while day <= last && range.start < range.end {
            match self.next_day(day, last) {
                Some(next) => day = next,
                None => return None,
            }
            let from = (range.start - day * DAY).max(0);
            if let Some(second) = self.time_from(from) {
                let found = day * DAY + second;
                return (found < range.end).then_some(found);
            }
            day += 1;
        }
        None
    }

    /// The last matching time in a range.
    pub(super) fn last(&self, range: Range<i64>) -> Option<i64> {
        if range.start >= range.end {
            return None;
        }
        let first = range.start.div_euclid(DAY);
        let mut day = (range.end - 1).div_euclid(DAY);
        while day >= first {
            if self.is_day(day) {
                let to = (range.end - 1 - day * DAY).min(DAY - 1);
                if let Some(second) = self.time_to(to) {
                    let found = day * DAY + second;
                    return (found >= range.start).then_some(found);
                }
            }
            day -= 1;
        }
        None
    }

    /// How many times match in a range.
    pub(super) fn count(&self, range: Range<i64>) -> u64 {
        if range.start >= range.end {
            return 0;
        }
        let (first, last) = (range.start.div_euclid(DAY), (range.end - 1).div_euclid(DAY));
        let whole = self.times_before(DAY);
        let mut count = 0;
        let mut day = first;
        while let Some(found) = self.next_day(day, last) {
            let from = (range.start - found * DAY).max(0);
            let to = (range.end - found * DAY).min(DAY);
            count += if to - from == DAY { whole } else { self.times_before(to) - self.times_before(from) };
            day = found + 1;
        }
        count
    }

    /// The first matching day from `day` to `last`.
    fn next_day(&self, mut day: i64, last: i64) -> Option<i64> {
        while day <= last {
            let date = date_of(day)?;
            if !self.cron.pattern.month_match(date.month()).unwrap_or(false) {
                // To the first of the next month.
                day += i64::from(date.num_days_in_month()) - i64::from(date.day0());
                continue;
            }
            if self.is_date(date) {
                return Some(day);
            }
            day += 1;
        }
        None
    }

    fn is_day(&self, day: i64) -> bool {
        date_of(day)
            .is_some_and(|date| self.cron.pattern.month_match(date.month()).unwrap_or(false) && self.is_date(date))
    }

    fn is_date(&self, date: NaiveDate) -> bool {
        let weekday = match date.weekday() {
            chrono::Weekday::Sun => Weekday::Sunday,
            chrono::Weekday::Mon => Weekday::Monday,
            chrono::Weekday::Tue => Weekday::Tuesday,
            chrono::Weekday::Wed => Weekday::Wednesday,
            chrono::Weekday::Thu => Weekday::Thursday,
            chrono::Weekday::Fri => Weekday::Friday,
            chrono::Weekday::Sat => Weekday::Saturday,
        };
        self.cron.pattern.day_match(date.year(), date.month(), date.day(), weekday).unwrap_or(false)
    }

    /// The first matching second of a day from `from` on.
    fn time_from(&self, from: i64) -> Option<i64> {
        let (hour, minute, second) = split(from)?;
        if self.hours >> hour & 1 == 1 {
            if self.minutes >> minute & 1 == 1
                && let Some(second) = next_bit(self.seconds, second)
            {
                return Some(join(hour, minute, second));
            }
            if let Some(minute) = next_bit(self.minutes, minute + 1) {
                return Some(join(hour, minute, next_bit(self.seconds, 0)?));
            }
        }
        let hour = next_bit(self.hours, hour + 1)?;
        Some(join(hour, next_bit(self.minutes, 0)?, next_bit(self.seconds, 0)?))
    }

    /// The last matching second of a day up to and including `to`.
    fn time_to(&self, to: i64) -> Option<i64> {
        let (hour, minute, second) = split(to)?;
        let (last_minute, last_second) = (last_bit(self.minutes, 59)?, last_bit(self.seconds, 59)?);
        if self.hours >> hour & 1 == 1 {
            if self.minutes >> minute & 1 == 1
                && let Some(second) = last_bit(self.seconds, second)
            {
                return Some(join(hour, minute, second));
            }
            if let Some(minute) = minute.checked_sub(1).and_then(|minute| last_bit(self.minutes, minute)) {
                return Some(join(hour, minute, last_second));
            }
        }
        let hour = hour.checked_sub(1).and_then(|hour| last_bit(self.hours, hour))?;
        Some(join(hour, last_minute, last_second))
    }

    /// How many matching seconds a day has before `end`, which may be the day's length.
    fn times_before(&self, end: i64) -> u64 {
        let ones = |bits: u64| u64::from(bits.count_ones());
        let below = |bits: u64, end: u32| ones(bits & ((1 << end) - 1));
        let (seconds, minutes) = (ones(self.seconds), ones(self.minutes));
        let Some((hour, minute, second)) = split(end) else { return ones(self.hours) * minutes * seconds };
        let mut count = below(self.hours, hour) * minutes * seconds;
        if self.hours >> hour & 1 == 1 {
            count += below(self.minutes, minute) * seconds;
            if self.minutes >> minute & 1 == 1 {
                count += below(self.seconds, second);
            }
        }
        count
    }
}

/// Checks what `croner` takes and nobody means: empty parts of a list, steps that are larger than
/// their field, and marks of other dialects.
/// The field that can't be read, if it is one alone.
fn culprit<'a>(parser: &CronParser, text: &'a str) -> Option<(&'static str, &'a str)> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let names = FIELDS.get(FIELDS.len().checked_sub(fields.len())?..)?;
    let alone = |at: usize| {
        let field = |other: usize| if other == at { fields[at] } else { "*" };
        (0..fields.len()).map(field).collect::<Vec<_>>().join(" ")
    };
    let mut culprits = (0..fields.len()).filter(|at| parser.parse(&alone(*at)).is_err());
    culprits.next().map(|at| (names[at].0, fields[at]))
}

fn check_fields(text: &str) -> Result<(), String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if let [nickname] = fields.as_slice()
        && nickname.starts_with('@')
    {
        let is_known = NICKNAMES.iter().any(|known| nickname.eq_ignore_ascii_case(known));
        let unknown = || format!("\"{nickname}\" is none of {}", NICKNAMES.join(" "));
        return if is_known { Ok(()) } else { Err(unknown()) };
    }
    if !matches!(fields.len(), 5 | 6) {
        return Err(format!("{} fields, but 5 are needed, or 6 with seconds first", fields.len()));
    }
    for (field, (name, most)) in fields.iter().zip(&FIELDS[6 - fields.len()..]) {
        for part in field.split(',') {
            if part.is_empty() {
                return Err(format!("the {name}: \"{field}\" has an empty part"));
            }
            let is_vague = *name == "day of the week" && part.eq_ignore_ascii_case("L");
            if part.contains(['+', '@']) || is_vague {
                return Err(format!("the {name}: \"{part}\" is not understood"));
            }
            let step = part.split_once('/').and_then(|(_, step)| step.parse::<u64>().ok());
            if step.is_some_and(|step| step > u64::from(*most)) {
                return Err(format!("the {name}: the step of \"{part}\" is larger than {most}"));
            }
        }
    }
    Ok(())
}

fn date_of(day: i64) -> Option<NaiveDate> {
    i32::try_from(day).ok().and_then(NaiveDate::from_epoch_days)
}

/// Hour, minute and second; `None` beyond the end of the day.
fn split(second: i64) -> Option<(u32, u32, u32)> {
    let second = u32::try_from(second).ok().filter(|second| i64::from(*second) < DAY)?;
    Some((second / 3600, second / 60 % 60, second % 60))
}

fn join(hour: u32, minute: u32, second: u32) -> i64 {
    i64::from(hour * 3600 + minute * 60 + second)
}

fn next_bit(bits: u64, from: u32) -> Option<u32> {
    let rest = if from < 64 { bits >> from } else { 0 };
    (rest != 0).then(|| from + rest.trailing_zeros())
}

fn last_bit(bits: u64, to: u32) -> Option<u32> {
    let rest = bits << (63 - to);
    (rest != 0).then(|| to - rest.leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_nobody_means_is_an_error_that_names_the_field() {
        for (text, part) in [
            ("*/90 * * * *", "minute: the step"),
            ("0 */24 * * *", "hour: the step"),
            ("0 0 1,,2 * *", "empty part"),
            ("0 0 * * +1", "day of the week"),
            ("0 0 * *", "4 fields"),
            ("0 0 0 * * * 2030", "7 fields"),
            ("", "0 fields"),
        ] {
            let error = Pattern::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        for text in
            ["60 * * * *", "* 24 * * *", "0 0 32 * *", "0 0 * 13 *", "x * * * *", "@never", "5-1 * * * *", "/5 * * * *"]
        {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
        for text in
            ["@daily", "0 0 L * *", "0 0 15W * *", "0 0 * * FRI#2", "0 0 * JAN-MAR MON", "0 0 * * 5L", "0 0 LW * *"]
        {
            pattern(text);
        }
    }

    #[test]
    fn a_star_in_the_hours_counts_elapsed_time() {
        for (text, is_elapsed) in [
            ("0 * * * *", true),
            ("0 */2 * * *", true),
            ("0 0 * * * *", true),
            ("@hourly", true),
            ("* 2 * * *", false),
            ("0 0-23 * * *", false),
            ("@daily", false),
        ] {
            assert_eq!(pattern(text).is_elapsed(), is_elapsed, "{text}");
        }
    }

    /// Every field of these is drawn, so that most have some times in ten days.
    fn texts() -> impl Strategy<Value = String> {
        let field = |values: &'static [&'static str]| prop::sample::select(values);
        (
            field(&["0", "59", "*", "*/7", "10-20,40"]),
            field(&["0", "30", "*/15", "1-5", "*", "59"]),
            field(&["0", "23", "2,3", "*/6", "*"]),
            field(&["*", "1", "31", "L", "15W", "*/2"]),
            field(&["*", "1", "2-3"]),
            field(&["*", "0", "MON-FRI", "5#2", "7"]),
        )
            .prop_map(|(s, m, h, d, mo, w)| format!("{s} {m} {h} {d} {mo} {w}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn first_last_and_count_agree(text in texts(), start in 0_i64..100 * DAY, length in 0_i64..3 * DAY) {
            let (pattern, range) = (pattern(&text), start..start + length);
            let (mut found, mut from) = (Vec::new(), range.start);
            while let Some(time) = pattern.first(from..range.end) {
                prop_assert!(time >= from && time < range.end);
                found.push(time);
                from = time + 1;
            }
            prop_assert_eq!(pattern.count(range.clone()), found.len() as u64);
            let (mut backwards, mut to) = (Vec::new(), range.end);
            while let Some(time) = pattern.last(range.start..to) {
                backwards.push(time);
                to = time;
            }
            backwards.reverse();
            prop_assert_eq!(found, backwards);
        }
    }
}
