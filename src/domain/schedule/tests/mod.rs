mod document;

use super::*;
use crate::domain::time::{Span, Timestamp};
use std::time::Duration;

fn zones() -> Zones {
    // The bundled data, whatever the machine has.
    Zones::load_from(std::path::Path::new("/nowhere"))
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn just_before(time: Timestamp) -> Timestamp {
    time.minus(Duration::from_millis(1))
}

fn cron(pattern: &str, timezone: &str, on_gap: OnGap, on_repeat: OnRepeat) -> Calendar {
    let timing = Timing::Cron { pattern: pattern.into(), timezone: timezone.into(), on_gap, on_repeat };
    Calendar::new(&timing, None, None, &zones()).unwrap_or_else(|error| panic!("{pattern}: {error:?}"))
}

/// The lines of a preview: instant or `-`, local time, note.
fn preview(calendar: &Calendar, after: &str, count: usize) -> Vec<String> {
    let lines = calendar.upcoming(at(after), count).into_iter().map(|line| {
        let at = line.at.map_or("-".into(), |at| at.to_string().replace(":00.000", ""));
        let note = line.note.map_or(String::new(), |note| format!(" {note:?}").to_lowercase());
        format!("{at} {}{note}", line.local)
    });
    lines.collect()
}

fn every(from: &str, every: Span) -> Calendar {
    Calendar::new(&Timing::Every { from: at(from), every }, None, None, &zones()).expect("a calendar")
}

#[test]
fn a_time_that_a_clock_change_skips_is_shifted_to_the_end_of_the_gap_or_skipped() {
    // On 29 March 2026, 02:00 in Stockholm becomes 03:00.
    let lines =
        |on_gap| preview(&cron("30 2 * * *", "Europe/Stockholm", on_gap, OnRepeat::First), "2026-03-28T00:00:00Z", 3);
    assert_eq!(
        lines(OnGap::Shift),
        [
            "2026-03-28T01:30Z 2026-03-28T02:30:00+01:00",
            "2026-03-29T01:00Z 2026-03-29T03:00:00+02:00 shifted",
            "2026-03-30T00:30Z 2026-03-30T02:30:00+02:00",
        ]
    );
    assert_eq!(
        lines(OnGap::Skip),
        [
            "2026-03-28T01:30Z 2026-03-28T02:30:00+01:00",
            "- 2026-03-29T02:30:00 skipped",
            "2026-03-30T00:30Z 2026-03-30T02:30:00+02:00",
            "2026-03-31T00:30Z 2026-03-31T02:30:00+02:00",
        ]
    );
}

#[test]
fn several_times_of_one_gap_are_one_occurrence_also_with_one_at_its_end() {
    let lines =
        |pattern| preview(&cron(pattern, "Europe/Stockholm", OnGap::Shift, OnRepeat::First), "2026-03-29T00:30:00Z", 2);
    assert_eq!(
        lines("0,20,40 2 * * *"),
        ["2026-03-29T01:00Z 2026-03-29T03:00:00+02:00 shifted", "2026-03-30T00:00Z 2026-03-30T02:00:00+02:00"]
    );
    // The time at the end of the gap is a time of the pattern itself.
    assert_eq!(
        lines("0,30 2,3 * * *"),
        ["2026-03-29T01:00Z 2026-03-29T03:00:00+02:00", "2026-03-29T01:30Z 2026-03-29T03:30:00+02:00"]
    );
}

#[test]
fn of_a_time_that_a_clock_change_repeats_the_first_the_last_or_both_count() {
    // On 25 October 2026, 03:00 in Stockholm becomes 02:00.
    let lines = |on_repeat| {
        preview(&cron("30 2 * * *", "Europe/Stockholm", OnGap::Shift, on_repeat), "2026-10-24T12:00:00Z", 2)
    };
    let (first, last) =
        ("2026-10-25T00:30Z 2026-10-25T02:30:00+02:00 first", "2026-10-25T01:30Z 2026-10-25T02:30:00+01:00 last");
    let next = "2026-10-26T01:30Z 2026-10-26T02:30:00+01:00";
    assert_eq!(lines(OnRepeat::First), [first, next]);
    assert_eq!(lines(OnRepeat::Last), [last, next]);
    assert_eq!(lines(OnRepeat::Both), [first, last]);
}

#[test]
fn copies_in_a_repeated_hour_are_in_the_order_of_their_instants() {
    let calendar = cron("0,30 1-2 * * *", "Europe/Stockholm", OnGap::Shift, OnRepeat::Both);
    let lines = preview(&calendar, "2026-10-24T22:59:59Z", 6);
    let times: Vec<&str> = lines.iter().map(|line| &line[11..16]).collect();
    assert_eq!(times, ["23:00", "23:30", "00:00", "00:30", "01:00", "01:30"], "{lines:?}");
}

#[test]
fn a_star_in_the_hours_counts_elapsed_time_whatever_the_policies_say() {
    for (on_gap, on_repeat) in [(OnGap::Shift, OnRepeat::First), (OnGap::Skip, OnRepeat::Last)] {
        let calendar = cron("15 * * * *", "Europe/Stockholm", on_gap, on_repeat);
        let spring = preview(&calendar, "2026-03-29T00:00:00Z", 2);
        assert_eq!(
            spring,
            [
                "2026-03-29T00:15Z 2026-03-29T01:15:00+01:00",
                "- 2026-03-29T02:15:00 skipped",
                "2026-03-29T01:15Z 2026-03-29T03:15:00+02:00",
            ]
        );
        let autumn = preview(&calendar, "2026-10-25T00:00:00Z", 3);
        assert_eq!(
            autumn,
            [
                "2026-10-25T00:15Z 2026-10-25T02:15:00+02:00 first",
                "2026-10-25T01:15Z 2026-10-25T02:15:00+01:00 last",
                "2026-10-25T02:15Z 2026-10-25T03:15:00+01:00",
            ]
        );
    }
}

#[test]
fn a_day_that_is_missing_and_a_change_of_half_an_hour() {
    // Samoa went from 29 to 31 December 2011.
    let apia = cron("0 12 30 12 *", "Pacific/Apia", OnGap::Shift, OnRepeat::First);
    let lines = preview(&apia, "2011-12-01T00:00:00Z", 2);
    assert_eq!(lines[0], "2011-12-30T10:00Z 2011-12-31T00:00:00+14:00 shifted");
    assert_eq!(lines[1], "2012-12-29T22:00Z 2012-12-30T12:00:00+14:00");
    let lord_howe = cron("10 2 * * *", "Australia/Lord_Howe", OnGap::Shift, OnRepeat::First);
    let lines = preview(&lord_howe, "2026-10-03T12:00:00Z", 1);
    assert_eq!(lines, ["2026-10-03T15:30Z 2026-10-04T02:30:00+11:00 shifted"]);
}

#[test]
fn bounds_hold_and_what_never_comes_is_none() {
    let timing = Timing::Cron {
        pattern: "0 0 * * *".into(),
        timezone: "UTC".into(),
        on_gap: OnGap::Shift,
        on_repeat: OnRepeat::First,
    };
    let (start, end) = (at("2026-01-05T00:00:00Z"), at("2026-01-07T00:00:00Z"));
    let calendar = Calendar::new(&timing, Some(start), Some(end), &zones()).expect("a calendar");
    assert_eq!(calendar.next_after(at("2020-01-01T00:00:00Z")), Some(start));
    assert_eq!(calendar.next_after(start), Some(at("2026-01-06T00:00:00Z")));
    assert_eq!(calendar.next_after(at("2026-01-06T00:00:00Z")), None, "the end is not included");
    assert_eq!(calendar.upcoming(at("2020-01-01T00:00:00Z"), 10).len(), 2);
    let never = cron("0 0 30 2 *", "Europe/Stockholm", OnGap::Shift, OnRepeat::First);
    assert_eq!(never.next_after(at("2026-01-01T00:00:00Z")), None);
    let rare = cron("0 0 * 2 1#5", "Europe/Stockholm", OnGap::Shift, OnRepeat::First);
    assert_eq!(rare.next_after(at("2026-01-01T00:00:00Z")), Some(at("2044-02-28T23:00:00Z")));
    let once = Calendar::new(&Timing::At(start), None, None, &zones()).expect("a calendar");
    assert_eq!((once.next_after(start.minus(Duration::from_millis(1))), once.next_after(start)), (Some(start), None));
}

#[test]
fn every_is_elapsed_time_from_its_start() {
    let calendar = every("2026-01-01T00:00:00.500Z", Span::secs(900));
    assert_eq!(calendar.next_after(at("2020-01-01T00:00:00Z")), Some(at("2026-01-01T00:00:00.500Z")));
    assert_eq!(calendar.next_after(at("2026-01-01T00:00:00.500Z")), Some(at("2026-01-01T00:15:00.500Z")));
    assert_eq!(calendar.next_after(at("2026-03-29T01:10:00Z")), Some(at("2026-03-29T01:15:00.500Z")));
}

fn misfire(policy: MisfirePolicy) -> Misfire {
    Misfire { policy, ..Misfire::default() }
}

/// Hours and minutes.
fn short(time: Timestamp) -> String {
    time.to_string()[11..16].to_owned()
}

fn dropped(plan: &Plan) -> Vec<String> {
    let ranges = plan.dropped.iter();
    ranges.map(|it| format!("{}-{} {} {:?}", short(it.from), short(it.to), it.count, it.reason)).collect()
}

#[test]
fn an_outage_of_three_hours_with_each_policy() {
    // It went away after 10:00 and is back at 13:10.
    let (next_at, now) = (at("2026-06-01T10:30:00Z"), at("2026-06-01T13:10:00Z"));
    for calendar in [
        cron("*/30 * * * *", "Europe/Stockholm", OnGap::Shift, OnRepeat::First),
        every("2026-01-01T00:00:00Z", Span::secs(1800)),
    ] {
        let plan = |misfire: Misfire| plan(&calendar, &misfire, just_before(next_at), now, usize::MAX);
        let made = |plan: &Plan| plan.make.iter().copied().map(short).collect::<Vec<_>>();
        let skip = plan(misfire(MisfirePolicy::Skip));
        assert_eq!((made(&skip), dropped(&skip)), (vec![], vec!["10:30-13:00 6 Missed".to_owned()]));
        let latest = plan(misfire(MisfirePolicy::Latest));
        assert_eq!((made(&latest), dropped(&latest)), (vec!["13:00".into()], vec!["10:30-12:30 5 Missed".to_owned()]));
        let all = plan(misfire(MisfirePolicy::All));
        let six = ["10:30", "11:00", "11:30", "12:00", "12:30", "13:00"];
        assert_eq!((made(&all), dropped(&all)), (six.map(str::to_owned).into(), vec![]));
        let two = plan(Misfire { limit: 2, ..misfire(MisfirePolicy::All) });
        let last = ["12:30", "13:00"].map(str::to_owned);
        assert_eq!((made(&two), dropped(&two)), (last.into(), vec!["10:30-12:00 4 Missed".to_owned()]));
        let young = plan(Misfire { max_age: Span::secs(3600), ..misfire(MisfirePolicy::All) });
        assert_eq!(dropped(&young), ["10:30-12:00 4 TooOld"]);
        assert_eq!(made(&young), ["12:30", "13:00"]);
        for plan in [skip, latest, all, two, young] {
            assert_eq!(plan.next_at.map(short).as_deref(), Some("13:30"));
        }
    }
}

#[test]
fn what_is_within_its_grace_is_not_missed_and_made_whatever_the_policy() {
    let calendar = cron("*/30 * * * *", "UTC", OnGap::Shift, OnRepeat::First);
    let (next_at, now) = (at("2026-06-01T12:00:00Z"), at("2026-06-01T13:00:30Z"));
    let plan = |policy| plan(&calendar, &misfire(policy), just_before(next_at), now, usize::MAX);
    let made = |plan: Plan| plan.make.into_iter().map(short).collect::<Vec<_>>();
    assert_eq!(made(plan(MisfirePolicy::Skip)), ["13:00"]);
    assert_eq!(made(plan(MisfirePolicy::Latest)), ["12:30", "13:00"]);
    assert_eq!(made(plan(MisfirePolicy::All)), ["12:00", "12:30", "13:00"]);
}

#[test]
fn of_many_within_their_grace_some_are_made_and_the_rest_is_due_at_once() {
    let calendar = cron("* * * * * *", "UTC", OnGap::Shift, OnRepeat::First);
    let (next_at, now) = (at("2026-06-01T12:00:00Z"), at("2026-06-01T12:10:00Z"));
    let misfire = Misfire { grace: Span::secs(3600), ..Misfire::default() };
    let (mut next, mut made) = (Some(next_at), Vec::new());
    while let Some(due) = next.filter(|due| *due <= now) {
        let plan = plan(&calendar, &misfire, just_before(due), now, usize::MAX);
        assert!(plan.make.len() <= MOST_IN_TIME && plan.dropped.is_empty());
        made.extend(plan.make);
        next = plan.next_at;
    }
    assert_eq!(made.len(), 601);
    assert!(made.is_sorted());
}

#[test]
fn a_second_after_a_year_costs_little_and_is_counted_exactly() {
    let calendar = cron("* * * * * *", "Europe/Stockholm", OnGap::Shift, OnRepeat::First);
    let (next_at, now) = (at("2025-06-01T00:00:00Z"), at("2026-06-01T00:00:00Z"));
    let plan = plan(&calendar, &misfire(MisfirePolicy::All), just_before(next_at), now, usize::MAX);
    let in_time = 61;
    assert_eq!(plan.make.len(), 100 + in_time.min(MOST_IN_TIME));
    let dropped: u64 = plan.dropped.iter().map(|range| range.count).sum();
    assert_eq!(dropped + plan.make.len() as u64, 365 * 86_400 + 1);
    assert_eq!(plan.dropped[0].reason, Reason::TooOld);
    assert_eq!(plan.next_at, Some(at("2026-06-01T00:00:01Z")));
}
