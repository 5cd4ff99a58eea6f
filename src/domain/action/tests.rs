//! Reading documents, and due times.

use super::*;
use crate::domain::problem::Problem;
use crate::domain::time::{Span, Timestamp};
use std::time::Duration;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(1_767_225_600_000);

fn read(json: &str) -> Result<NewAction, Problem> {
    NewAction::from_json(json.as_bytes(), Uuid::nil(), NOW)
}

fn with(extra: &str) -> Result<NewAction, Problem> {
    let comma = if extra.is_empty() { "" } else { "," };
    read(&format!(r#"{{"name":"n","target":"TRUE","operations":[{{"module":"ping"}}]{comma}{extra}}}"#))
}

#[test]
fn defaults_are_those_of_the_interface() {
    let action = with("").expect("valid");
    assert_eq!(action.valid_from, NOW);
    assert_eq!(action.expires_at, NOW.plus(Duration::from_secs(86_400)));
    assert_eq!((action.timeout, action.max_runs, action.priority), (Span::secs(300), 1, 0));
    assert_eq!(action.max_deliveries, None);
}

#[test]
fn errors_name_the_place() {
    let cases: &[(&str, &str)] = &[
        (r#""colour":"red""#, "unknown field `colour`"),
        (r#""delay":"10m","valid_from":"2026-01-01T00:00:00Z""#, "delay: valid_from is given too"),
        (r#""expires_at":"2027-01-01T00:00:00Z","expires_after":"1h""#, "expires_after:"),
        (r#""expires_at":"2020-01-01T00:00:00Z""#, "expires_at: 2020-01-01T00:00:00.000Z is in the past"),
        (r#""max_runs":0"#, "max_runs: 0 is not between"),
        (r#""priority":101"#, "priority: 101 is not between"),
        (r#""timeout":"0s""#, "timeout:"),
        (r#""timeout":"soon""#, "timeout: \"soon\" is not a duration"),
        (r#""timeout":5"#, "timeout: invalid type"),
        (r#""spread":"99999999999h""#, "spread: longer than 100 years"),
        (r#""id":"x""#, "id: \"x\" is not a UUID"),
        (r#""description":[]"#, "description: an object is expected"),
        (r#""name":"twice""#, "the key \"name\" is given twice at line 1 column "),
    ];
    for (extra, expected) in cases {
        let problem = with(extra).expect_err(extra);
        assert_eq!(problem.status, 422, "{extra}");
        assert!(problem.detail.contains(expected), "{extra}: {}", problem.detail);
    }
    assert_eq!(read("{").expect_err("cut off").status, 400);
    assert_eq!(read("").expect_err("empty").status, 400);
    let target = r#"{"name":"n","target":"name = ","operations":[{"module":"ping"}]}"#;
    assert!(read(target).expect_err("bad target").detail.starts_with("target: "));
    let module = r#"{"name":"n","target":"TRUE","operations":[{"module":"ping"},{"module":"../x"}]}"#;
    assert!(read(module).expect_err("bad module").detail.starts_with("operations[1].module: "));
}

#[test]
fn a_document_of_mig_is_accepted() {
    let action = read(
        r#"{"id":6115472790655,"name":"n","target":"name='a'","operations":[{"module":"file","parameters":{"x":1}}],
            "validfrom":"2026-01-01T00:00:00Z","expireafter":"2026-01-02T00:00:00Z","syntaxversion":2,
            "pgpsignatures":["x"],"investigators":null,"counters":{},"status":"pending","threat":{"level":"low"},
            "starttime":"0001-01-01T00:00:00Z","finishtime":"0001-01-01T00:00:00Z","lastupdatetime":""}"#,
    )
    .expect("valid");
    assert_eq!(action.id, Uuid::nil());
    assert_eq!(action.expires_at.since(action.valid_from), Duration::from_secs(86_400));
}

#[test]
fn the_digest_minds_content_and_not_layout() {
    let one = read(r#"{"name":"n","target":"TRUE","operations":[{"module":"ping"}]}"#).expect("valid");
    let same = read(r#" {"target":"TRUE", "operations":[{"module":"ping"}], "name":"n"}"#).expect("valid");
    let other = read(r#"{"name":"m","target":"TRUE","operations":[{"module":"ping"}]}"#).expect("valid");
    assert_eq!(one.digest, same.digest);
    assert_ne!(one.digest, other.digest);
}

#[test]
fn due_times_grow_with_the_position_over_the_whole_spread() {
    let new = with(r#""spread":"10s""#).expect("valid");
    let action = Action::from_new(1, &new, false, false).expect("valid");
    let dues: Vec<i64> = (0..4).map(|n| action.due_at(n, 4).0 - NOW.0).collect();
    assert_eq!(dues, [0, 2_500, 5_000, 7_500]);
    assert_eq!(action.due_at(9, 4).0 - NOW.0, 10_000);
}
