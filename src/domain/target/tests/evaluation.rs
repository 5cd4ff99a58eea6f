//! The meaning of conditions.

use super::{ID, parse};
use crate::domain::command::CommandState;
use crate::domain::json::JsonObject;
use crate::domain::target::AgentRecord;
use crate::domain::time::Timestamp;
use serde_json::json;
use uuid::Uuid;

pub(super) fn agent() -> AgentRecord {
    let facts = json!({"os": "linux", "n": 5, "text": "5.50", "word": "five", "none": null, "yes": true,
        "list": [{"a": "first"}], "map": {"a": 1}, "mode": "daemon"});
    AgentRecord {
        name: "web1".into(),
        transport: "stream".into(),
        online: true,
        version: Some("1.2".into()),
        last_seen: Some(Timestamp(1_000_000)),
        labels: [("role".to_owned(), "Web".to_owned()), ("big".to_owned(), "9007199254740993".to_owned())].into(),
        facts: JsonObject::from_json(&facts.to_string()).expect("an object"),
        metadata: [("load".to_owned(), "0.50".to_owned())].into(),
        commands: [(Uuid::parse_str(ID).expect("an id"), CommandState::Failed)].into(),
        ..AgentRecord::default()
    }
}

#[test]
fn conditions_follow_three_valued_logic() {
    let (agent, now) = (agent(), Timestamp(1_060_000));
    let by_action = format!("action('{ID}') = 'failed'");
    let not_by_action = "action('00000000-0000-0000-0000-000000000000') = 'failed'";
    for (text, expected) in [
        ("TRUE", Some(true)),
        ("name = 'web1' AND status = 'online' AND queueloc = 'linux.web1' AND mode = 'daemon'", Some(true)),
        ("labels.role = 'web'", Some(false)),
        ("labels.none = 'web'", None),
        ("NOT labels.none = 'web'", None),
        ("labels.none != 'web'", None),
        ("labels.none = 'web' OR TRUE", Some(true)),
        ("labels.none = 'web' AND NOT TRUE", Some(false)),
        ("labels.none = 'web' AND TRUE", None),
        ("labels.none IS NULL AND facts.none IS NULL AND facts.word IS NOT NULL AND facts.map IS NOT NULL", Some(true)),
        ("facts.n = 5 AND facts.n = '5' AND facts.n < 10 AND facts.n > '10'", Some(true)),
        ("facts.text = 5.5 AND facts.text != '5.5'", Some(true)),
        ("facts.word = 5", None),
        ("facts.word != 5", None),
        ("facts.word IN (5, 'six')", None),
        ("facts.word IN (5, 'five')", Some(true)),
        ("facts.word NOT IN ('six', 'five')", Some(false)),
        ("facts.word NOT IN (5, 'six')", None),
        ("facts.n BETWEEN 5 AND 6 AND facts.n NOT BETWEEN 6 AND 5", Some(true)),
        ("facts.word BETWEEN 5 AND 'a'", Some(false)),
        ("facts.yes = 'true' AND facts.list->0->>'a' = 'first' AND facts.map.a = 1", Some(true)),
        ("facts.list.a = 'x'", None),
        ("metadata.load < 1 AND metadata.load = 0.5 AND metadata.load = '0.50'", Some(true)),
        ("labels.big = 9007199254740993 AND labels.big != 9007199254740992", Some(true)),
        ("labels.big IN (9007199254740992) OR labels.big > 9007199254740993.0001", Some(false)),
        ("name LIKE 'WEB%'", Some(false)),
        ("name ILIKE 'WEB_' AND name LIKE '%e%1%' AND name NOT LIKE 'web'", Some(true)),
        (r"name LIKE 'web\_'", Some(false)),
        ("labels.none LIKE '%'", None),
        ("last_seen = now() - interval '1 minute'", Some(true)),
        ("last_seen < '1970-01-01T00:16:39.999Z'", Some(false)),
        ("version = '1.2'", Some(true)),
        (by_action.as_str(), Some(true)),
        (not_by_action, Some(false)),
    ] {
        assert_eq!(parse(text).evaluate(&agent, now), expected, "{text}");
    }
    assert!(parse("TRUE").matches(&agent, now));
    assert!(!parse("labels.none = 'web'").matches(&agent, now));
    assert!(!parse("TRUE").matches(&AgentRecord { disabled: true, ..agent }, now));
}

#[test]
fn like_takes_no_exponential_time() {
    let agent = AgentRecord { name: "a".repeat(2_000), ..AgentRecord::default() };
    let pattern = format!("name LIKE '{}b'", "%a".repeat(1_000));
    assert_eq!(parse(&pattern).evaluate(&agent, Timestamp(0)), Some(false));
}
