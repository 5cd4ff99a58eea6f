use super::*;
use crate::domain::problem::Problem;
use serde_json::{Value, json};

const NOW: &str = "2026-11-29T12:00:00Z";

/// A document with these keys, of which null ones are left out.
fn document(keys: Value) -> Value {
    let action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}]});
    let mut document = json!({"name": "s", "cron": "0 2 * * *", "action": action});
    for (key, value) in keys.as_object().expect("an object") {
        match value {
            Value::Null => drop(document.as_object_mut().expect("an object").remove(key)),
            value => document[key] = value.clone(),
        }
    }
    document
}

fn read(document: &Value) -> Result<Schedule, Problem> {
    Schedule::from_json(document.to_string().as_bytes(), &zones(), at(NOW))
}

fn refused(keys: Value) -> String {
    let problem = read(&document(keys.clone())).expect_err(&keys.to_string());
    assert_eq!(problem.status, 422, "{problem}");
    problem.detail
}

#[test]
fn defaults_are_filled_in_and_the_shown_document_reads_as_the_same_schedule() {
    let schedule = read(&document(json!({}))).expect("a schedule");
    let text = schedule.document().expect("JSON");
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((shown["timezone"].as_str(), shown["overlap"].as_str()), (Some("UTC"), Some("skip")));
    assert_eq!((shown["on_gap"].as_str(), shown["on_repeat"].as_str()), (Some("shift"), Some("first")));
    let misfire = json!({"policy": "latest", "grace": "1m", "max_age": "6h", "limit": 100});
    assert_eq!(shown["misfire"], misfire);
    let again = Schedule::from_stored(&text).expect("a schedule");
    assert_eq!((again.document().expect("JSON"), again.timing), (text, schedule.timing));
}

#[test]
fn what_is_counted_from_now_keeps_its_start() {
    let schedule = read(&document(json!({"cron": null, "every": "15m"}))).expect("a schedule");
    assert_eq!(schedule.timing, Timing::Every { from: at("2026-11-29T12:15:00Z"), every: Span::secs(900) });
    let stored = Schedule::from_stored(&schedule.document().expect("JSON")).expect("a schedule");
    assert_eq!(stored.timing, schedule.timing);
    let calendar = stored.calendar(&zones()).expect("a calendar");
    assert_eq!(calendar.next_after(at(NOW)), Some(at("2026-11-29T12:15:00Z")));
}

#[test]
fn a_schedule_that_is_replaced_keeps_its_phase_unless_its_document_says_otherwise() {
    let every = |keys: Value| {
        let mut keys = keys;
        keys["cron"] = Value::Null;
        read(&document(keys)).expect("a schedule")
    };
    let from = |schedule: &Schedule| match schedule.timing {
        Timing::Every { from, .. } => from,
        _ => panic!("it has an interval"),
    };
    let mut old = every(json!({"every": "15m"}));
    old.timing = Timing::Every { from: at("2026-11-29T11:52:00Z"), every: Span::secs(900) };
    let mut same = every(json!({"every": "15m", "overlap": "allow"}));
    same.keep_phase(&old);
    assert_eq!(from(&same), from(&old));
    for other in [json!({"every": "20m"}), json!({"every": "15m", "starts_at": "2026-11-29T13:00:00Z"})] {
        let mut other = every(other);
        let before = from(&other);
        other.keep_phase(&old);
        assert_eq!(from(&other), before);
    }
}

#[test]
fn an_action_lasts_over_its_spread() {
    let action = |spread: &str, more: Value| {
        let mut action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}], "spread": spread});
        for (key, value) in more.as_object().expect("an object") {
            action[key] = value.clone();
        }
        json!({"cron": "*/10 * * * *", "action": action})
    };
    let schedule = read(&document(action("1h", json!({})))).expect("a schedule");
    let calendar = schedule.calendar(&zones()).expect("a calendar");
    assert_eq!(schedule.lifetime(&calendar, at(NOW)), Span::secs(3_600));
    let said = refused(action("1h", json!({"expires_after": "30m"})));
    assert!(said.starts_with("action.spread: 1h is longer than the 30m"), "{said}");
}

#[test]
fn nothing_takes_place_after_the_last_time_that_can_be_written() {
    for keys in [json!({"cron": "0 0 * * *"}), json!({"cron": null, "every": "1h"})] {
        let schedule = read(&document(keys)).expect("a schedule");
        let lines = schedule.calendar(&zones()).expect("a calendar").upcoming(at("9999-12-30T12:30:00Z"), 99);
        assert!(lines.last().and_then(|line| line.at).is_some_and(|at| at.to_string().starts_with("9999-12-31")));
        assert!(lines.is_sorted_by(|one, other| one.at < other.at), "{lines:?}");
    }
}

#[test]
fn numbers_of_the_action_keep_their_form() {
    let text = r#"{"name":"s","every":"1h","action":{"name":"a","target":"TRUE","operations":[{"module":"ping",
        "parameters":{"n":12345678901234567890123,"x":1.10}}]}}"#;
    let schedule = Schedule::from_json(text.as_bytes(), &zones(), at(NOW)).expect("a schedule");
    let stored = Schedule::from_stored(&schedule.document().expect("JSON")).expect("a schedule");
    let action = stored.new_action(at(NOW), Span::secs(60), at(NOW)).expect("an action");
    assert!(action.operations.contains(r#"{"n":12345678901234567890123,"x":1.10}"#), "{}", action.operations);
}

#[test]
fn an_action_lasts_until_the_next_occurrence_unless_it_says_how_long() {
    let lasts = |keys: Value| {
        let schedule = read(&document(keys)).expect("a schedule");
        let calendar = schedule.calendar(&zones()).expect("a calendar");
        let made = at("2026-11-30T02:00:01Z");
        let action = schedule
            .new_action(at("2026-11-30T02:00:00Z"), schedule.lifetime(&calendar, made), made)
            .expect("an action");
        assert_eq!((action.scheduled_for, action.valid_from), (Some(at("2026-11-30T02:00:00Z")), made));
        assert_eq!(action.author.name, "schedule:s");
        action.expires_at.since(made).as_secs()
    };
    assert_eq!(lasts(json!({"cron": "*/30 * * * *"})), 1_799);
    assert_eq!(lasts(json!({"cron": "0 2 * * *"})), 86_399);
    assert_eq!(lasts(json!({"cron": "0 2 1 1 *"})), 86_400);
    assert_eq!(lasts(json!({"cron": null, "at": "2026-11-30T02:00:00Z"})), 86_400);
    let action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}], "expires_after": "48h"});
    assert_eq!(lasts(json!({"action": action})), 48 * 3_600);
}

#[test]
fn mistakes_are_named_by_their_key() {
    for (keys, expected) in [
        (json!({"cron": null}), "one of cron, every and at is missing"),
        (json!({"every": "1h"}), "every: cron is given too"),
        (json!({"cron": null, "every": "1h", "at": NOW}), "at: every is given too"),
        (json!({"cron": "0 0 30 2 *"}), "cron: it never takes place"),
        (json!({"cron": "*/99 * * * *"}), "cron: "),
        (json!({"cron": "61 * * * *"}), "cron: the minute: \"61\" is not understood"),
        (json!({"cron": "0 2 * * fri-mon"}), "cron: the day of the week: \"fri-mon\" is not understood"),
        (json!({"cron": "@reboot"}), "cron: \"@reboot\" is none of @yearly"),
        (json!({"cron": ""}), "cron: "),
        (json!({"timezone": "Europe/Nowhere"}), "timezone: \"Europe/Nowhere\" is not in the bundled zone data"),
        (json!({"cron": null, "every": "1h", "timezone": "UTC"}), "timezone: it is for cron alone"),
        (json!({"cron": null, "every": "1h", "on_gap": "skip"}), "on_gap: it is for cron alone"),
        (json!({"cron": null, "at": NOW, "on_repeat": "both"}), "on_repeat: it is for cron alone"),
        (json!({"cron": null, "every": "10ms"}), "every: 10ms is not between 1s and"),
        (json!({"cron": null, "every": "0s"}), "every: 0s is not between 1s and"),
        (json!({"cron": null, "every": "200y"}), "every: "),
        (json!({"cron": null, "at": "2026-11-29T12:00:00Z"}), "at: 2026-11-29T12:00:00.000Z is in the past"),
        (json!({"ends_at": "2026-11-30T01:00:00Z"}), "ends_at: there is no occurrence before it"),
        (json!({"starts_at": NOW, "ends_at": NOW}), "ends_at: "),
        (json!({"misfire": {"policy": "some"}}), "misfire.policy: "),
        (json!({"misfire": {"grace": "0s"}}), "misfire.grace: 0s is not between"),
        (json!({"misfire": {"limit": 0}}), "misfire.limit: 0 is not between 1 and 1000"),
        (json!({"misfire": {"limit": 1001}}), "misfire.limit: 1001 is not between 1 and 1000"),
        (json!({"misfire": {"more": 1}}), "misfire.more"),
        (json!({"overlap": "queue"}), "overlap: "),
        (json!({"on_gap": "first"}), "on_gap: "),
        (json!({"more": 1}), "more"),
        (json!({"name": "a/b"}), "name: "),
        (json!({"name": ".."}), "name: "),
        (json!({"name": "preview"}), "name: \"preview\" is a path of the API"),
        (json!({"action": {"name": "a", "target": "TRUE"}}), "action"),
        (
            json!({"action": {"name": "a", "target": "nonsense ~", "operations": [{"module": "ping"}]}}),
            "action.target: ",
        ),
    ] {
        let said = refused(keys.clone());
        assert!(said.contains(expected), "{keys}: {said}");
    }
    for (key, value) in [
        ("id", json!("018f0000-0000-7000-8000-000000000000")),
        ("id", json!(17)),
        ("valid_from", json!(NOW)),
        ("delay", json!("1h")),
        ("expires_at", json!(NOW)),
        ("validfrom", json!(NOW)),
    ] {
        let mut action = json!({"name": "a", "target": "TRUE", "operations": [{"module": "ping"}]});
        action[key] = value;
        let said = refused(json!({"action": action}));
        let named = if key == "validfrom" { "valid_from" } else { key };
        assert!(said.starts_with(&format!("action.{named}: a schedule's action can't have it")), "{key}: {said}");
    }
    let list = Schedule::from_json(b"[1]", &zones(), at(NOW)).expect_err("a list");
    assert!(list.detail.contains("object"), "{list}");
    assert_eq!(Schedule::from_json(b"{", &zones(), at(NOW)).expect_err("no JSON").status, 400);
    let large = document(json!({"action": {"name": "a", "target": "TRUE", "operations": [{"module": "ping",
        "parameters": "x".repeat(MAX_DOCUMENT)}]}}));
    assert_eq!(read(&large).expect_err("too large").status, 413);
}
