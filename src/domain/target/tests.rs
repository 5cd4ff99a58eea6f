use super::*;
use crate::domain::command::CommandState;
use proptest::prelude::*;
use serde_json::json;

const ID: &str = "018f3c1e-52d4-7b7a-9c43-1f0e8d26b957";

fn parse(text: &str) -> Target {
    Target::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The canonical text of what was parsed.
fn canonical(text: &str) -> String {
    let target = parse(text);
    let canonical = target.to_string();
    assert_eq!(parse(&canonical), target, "{canonical}");
    canonical
}

fn error(text: &str) -> TargetError {
    match Target::parse(text) {
        Ok(target) => panic!("{text} was parsed as {target:?}"),
        Err(error) => error,
    }
}

#[test]
fn every_form_of_a_column_is_read() {
    for (text, column) in [
        ("name", "name"),
        ("NAME", "name"),
        ("agents.name", "name"),
        (r#""name""#, "name"),
        ("transport", "transport"),
        ("status", "status"),
        ("version", "version"),
        ("queueloc", "queueloc"),
        ("labels.role", "labels->>'role'"),
        ("labels.Role", "labels->>'Role'"),
        ("labels.group", "labels->>'group'"),
        ("labels.order", "labels->>'order'"),
        ("labels->>'role'", "labels->>'role'"),
        ("agents.labels.role", "labels->>'role'"),
        ("(labels->>'role')", "labels->>'role'"),
        (r#"labels."it's a.b""#, "labels->>'it''s a.b'"),
        ("labels#>>'{role}'", "labels->>'role'"),
        ("tags.operator", "labels->>'operator'"),
        ("tags->>'operator'", "labels->>'operator'"),
        ("facts.os", "facts->>'os'"),
        ("facts.a.b", "facts->'a'->>'b'"),
        ("facts#>>'{a,b}'", "facts->'a'->>'b'"),
        (r#"facts#>>'{ "a b" , c\,d}'"#, "facts->'a b'->>'c,d'"),
        ("facts#>'{a}'->>'b'", "facts->'a'->>'b'"),
        ("facts->'a'->>'b'", "facts->'a'->>'b'"),
        ("facts->'disks'->0->>'size'", "facts->'disks'->'0'->>'size'"),
        ("environment->>'os'", "facts->>'os'"),
        ("agents.environment->'a'->>'os'", "facts->'a'->>'os'"),
        ("env.os", "facts->>'os'"),
        ("env#>>'{os}'", "facts->>'os'"),
        ("mode", "facts->>'mode'"),
        ("agents.mode", "facts->>'mode'"),
        ("metadata.load", "metadata->>'load'"),
        ("metadata->>'a.b'", "metadata->>'a.b'"),
    ] {
        assert_eq!(canonical(&format!("{text} = 'x'")), format!("{column} = 'x'"));
        assert_eq!(canonical(&format!("{text}='x'")), format!("{column} = 'x'"));
        assert_eq!(canonical(&format!("{text} IS NOT NULL")), format!("{column} IS NOT NULL"));
    }
}

#[test]
fn every_operator_is_read() {
    for (text, shown) in [
        ("true", "TRUE"),
        ("(TRUE)", "TRUE"),
        ("not true", "NOT TRUE"),
        ("name != 'x'", "name != 'x'"),
        ("name <> 'x'", "name != 'x'"),
        ("name < 'x' or name >= 'it''s'", "name < 'x' OR name >= 'it''s'"),
        ("'x' < name", "name > 'x'"),
        ("5 >= facts.n", "facts->>'n' <= 5"),
        ("facts.n = -1.50", "facts->>'n' = -1.5"),
        ("facts.n = -0", "facts->>'n' = 0"),
        ("facts.n = 1e3", "facts->>'n' = 1000"),
        ("name in ('a', 'b')", "name IN ('a', 'b')"),
        ("facts.n not in (1, -2, 'x')", "facts->>'n' NOT IN (1, -2, 'x')"),
        (r"name like 'a\%%'", r"name LIKE 'a\%%'"),
        ("name not like '_'", "name NOT LIKE '_'"),
        ("name ilike 'A%' and name not ilike 'B'", "name ILIKE 'A%' AND name NOT ILIKE 'B'"),
        ("facts.n between 1 and 5 and name = 'x'", "facts->>'n' BETWEEN 1 AND 5 AND name = 'x'"),
        ("name not between 'a' and 'b'", "name NOT BETWEEN 'a' AND 'b'"),
        ("labels.a is null", "labels->>'a' IS NULL"),
        ("not name = 'a' and true", "NOT name = 'a' AND TRUE"),
        ("name='a' or name='b' and name='c'", "name = 'a' OR (name = 'b' AND name = 'c')"),
        ("name='a' and (name='b' and name='c')", "name = 'a' AND (name = 'b' AND name = 'c')"),
        ("not (name='a' or true)", "NOT (name = 'a' OR TRUE)"),
        ("last_seen > now()", "last_seen > now()"),
        ("last_seen > now() - interval '5 minutes'", "last_seen > now() - interval '5m'"),
        ("last_seen > NOW() + INTERVAL '1 hour 30 mins'", "last_seen > now() + interval '1h30m'"),
        ("now() - interval '7 days' < last_seen", "last_seen > now() - interval '7d'"),
        ("enrolled_at < '2026-01-01T02:00:00+02:00'", "enrolled_at < '2026-01-01T00:00:00.000Z'"),
        ("last_seen is null", "last_seen IS NULL"),
    ] {
        assert_eq!(canonical(text), shown);
    }
}

#[test]
fn agents_by_the_state_of_an_earlier_command() {
    assert_eq!(canonical(&format!("action('{ID}') = 'failed'")), format!("action('{ID}') = 'failed'"));
    let either = canonical(&format!("action('{ID}') NOT IN ('failed', 'timed_out')"));
    assert_eq!(either, format!("NOT (action('{ID}') = 'failed' OR action('{ID}') = 'timed_out')"));
    assert_eq!(canonical(&format!("action('{ID}') IN ('sent')")), format!("action('{ID}') = 'sent'"));
}

#[test]
fn the_example_of_the_interface_and_those_of_mig_are_read() {
    canonical("labels.role = 'web' AND facts.os = 'linux'");
    canonical("status='online' AND mode='daemon'");
    canonical("agents.environment->>'os'='linux' AND agents.tags->>'operator'='IT' AND agents.mode != 'checkin'");
    canonical("queueloc like 'linux.%' AND tags#>>'{operator}'='IT' AND environment#>>'{ident}' ILIKE 'ubuntu%'");
    canonical("name\n  LIKE 'web%.example.com'\n");
}

#[test]
fn what_is_outside_of_the_list_is_an_error_with_its_place() {
    for (text, line, column, part) in [
        ("", 1, 1, "empty"),
        ("  \n ", 2, 2, "empty"),
        ("name", 1, 1, "not a condition"),
        ("'x'", 1, 1, "not a condition"),
        ("false", 1, 1, "not a condition"),
        ("TRUE AND\n  colour = 'red'", 2, 3, "no column colour"),
        ("name = ", 1, 8, "the end"),
        ("name = 'a", 1, 8, "can't be read"),
        ("name = 'a')", 1, 11, "nothing may follow"),
        ("name = 'a'; DROP TABLE agents", 1, 11, "nothing may follow"),
        ("TRUE TRUE", 1, 6, "nothing may follow"),
        ("TRUE;", 1, 5, "nothing may follow"),
        ("TRUE -- all", 1, 6, "comments"),
        ("TRUE /* all */ AND TRUE", 1, 6, "comments"),
        ("name = 'a' AND lower(name) = 'b'", 1, 16, "the function lower"),
        ("name = lower('b')", 1, 8, "the function lower"),
        ("name = 'a' AND name = (SELECT 'a')", 1, 16, "a subquery"),
        ("name IN (SELECT name FROM agents)", 1, 1, "IN with a subquery"),
        ("EXISTS (SELECT 1)", 1, 1, "a subquery"),
        ("name::text = 'a'", 1, 1, "a cast"),
        ("CAST(name AS text) = 'a'", 1, 6, "a cast"),
        ("name = 'a'::text", 1, 8, "a cast"),
        ("name || 'x' = 'a'", 1, 1, "the operator ||"),
        ("name ~ 'a'", 1, 1, "the operator ~"),
        ("name SIMILAR TO 'a'", 1, 1, "regular expression"),
        ("name LIKE 'a' ESCAPE '!'", 1, 1, "ESCAPE"),
        (r"name LIKE 'a\'", 1, 11, "escapes nothing"),
        ("name LIKE 5", 1, 11, "pattern"),
        ("last_seen LIKE 'a'", 1, 1, "is a time"),
        ("last_seen = 5", 1, 13, "is a time"),
        ("last_seen > 'yesterday'", 1, 13, "RFC 3339"),
        ("last_seen > now() - interval '1 month'", 1, 13, "not an interval"),
        ("last_seen > now() - interval '5' minute", 1, 13, "an interval is written"),
        ("last_seen > now() - 5", 1, 13, "the only sum"),
        ("name > now()", 1, 8, "not a time"),
        ("last_seen > now(1)", 1, 13, "the function now"),
        ("name = NULL", 1, 8, "IS NULL"),
        ("facts.x = true", 1, 11, "'true'"),
        ("name = \"web1\"", 1, 8, "single quotes"),
        ("name = web1", 1, 8, "single quotes"),
        ("labels.a = facts.b", 1, 12, "single quotes"),
        ("1 = 1", 1, 1, "must be a column"),
        ("name = 'a' = 'b'", 1, 1, "a column is needed"),
        ("name = $1", 1, 8, "not a value"),
        ("name = E'a'", 1, 8, "not a value"),
        ("name IN ()", 1, 10, "expected an expression"),
        ("name IS TRUE", 1, 1, "not allowed"),
        ("name IS DISTINCT FROM 'a'", 1, 1, "not allowed"),
        ("name = ANY('{a}')", 1, 1, "not allowed"),
        ("CASE WHEN TRUE THEN TRUE END", 1, 1, "CASE"),
        ("labels = 'a'", 1, 1, "needs a key"),
        ("labels.a.b = 'a'", 1, 1, "one key"),
        ("labels.a[1] = 'a'", 1, 1, ""),
        ("facts->'a' = 'a'", 1, 1, "->>"),
        ("facts->>'a'->>'b' = 'a'", 1, 1, "last arrow"),
        ("facts->>name = 'a'", 1, 9, "a key in single quotes"),
        ("facts#>>'a' = 'a'", 1, 9, "not a path"),
        ("facts#>>'{}' = 'a'", 1, 9, "not a path"),
        ("facts#>>'{a,-1}' = 'a'", 1, 1, "from the end"),
        ("facts ? 'a'", 1, 1, ""),
        ("status.x = 'a'", 1, 1, "no keys"),
        ("other.name = 'a'", 1, 1, "no column other"),
        ("\"Name\" = 'a'", 1, 1, "no column Name"),
        ("action('x') = 'failed'", 1, 1, "not an action's id"),
        ("action() = 'failed'", 1, 1, "needs an action's id"),
    ] {
        let error = error(text);
        assert!(error.message.contains(part), "{text}: {error}");
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
    }
    assert!(error(&format!("action('{ID}') = 'broken'")).message.contains("'timed_out'"));
    assert!(error(&format!("action('{ID}') != 'failed'")).message.contains("with = or IN"));
    assert!(error(&format!("action('{ID}') IS NULL")).message.contains("a column is needed"));
    error("name = 'a\0b'");
}

#[test]
fn limits_are_errors_and_not_crashes() {
    let deep = |open: &str, close: &str| format!("{}TRUE{}", open.repeat(10_000), close.repeat(10_000));
    for text in
        [deep("(", ")"), deep("NOT ", ""), deep("(NOT ", ")"), deep("- ", ""), "(".repeat(60_000), deep("!", "")]
    {
        let error = error(&text);
        assert!(error.line == 1 && error.column > 1, "{error}");
    }
    assert!(error(&format!("name = '{}'", "x".repeat(70_000))).message.contains("at most 65536"));
    let list = vec!["1"; 10_001].join(",");
    assert!(error(&format!("facts.n IN ({list})")).message.contains("at most 10000"));
    let list = vec!["1"; 10_000].join(",");
    parse(&format!("facts.n IN ({list})"));
    parse(&format!("{}TRUE{}", "(".repeat(40), ")".repeat(40)));
    // Long chains are no deep trees to us, but they are to the parser.
    let Target::Or(parts) = parse(&vec!["TRUE"; 8_000].join(" OR ")) else { panic!("not OR") };
    assert_eq!(parts.len(), 8_000);
    for link in
        ["+a", "->a", " IS NULL", "::a", ".a", "[1]", "->>'a'", " OR a", " AND NOT a", "||a", "=a", " LIKE a", "(a)"]
    {
        error(&format!("a{}", link.repeat(65_000 / link.len())));
        error(&format!("a{} )", link.repeat(65_000 / link.len())));
    }
}

#[test]
fn half_written_nests_do_not_take_exponential_time() {
    for open in [
        "(",
        "NOT (",
        "name IN (",
        "action(",
        "CASE WHEN ",
        "f(",
        "interval ",
        "cast(",
        "ARRAY[",
        "(SELECT ",
        "EXISTS(",
    ] {
        error(&open.repeat(150));
        error(&format!("{}1", open.repeat(30)));
    }
}

fn agent() -> AgentRecord {
    let facts = json!({"os": "linux", "n": 5, "text": "5.50", "word": "five", "none": null, "yes": true,
        "list": [{"a": "first"}], "map": {"a": 1}, "mode": "daemon"});
    AgentRecord {
        name: "web1".into(),
        transport: "stream".into(),
        online: true,
        version: Some("1.2".into()),
        last_seen: Some(Timestamp(1_000_000)),
        labels: [("role".to_owned(), "Web".to_owned())].into(),
        facts: facts.as_object().expect("an object").clone(),
        metadata: [("load".to_owned(), json!(0.5))].into(),
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
        ("metadata.load < 1", Some(true)),
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
fn what_is_a_number_is_the_same_everywhere() {
    for (text, number) in
        [("5", 5.0), ("-0.50", -0.5), ("007", 7.0), ("1e3", 1000.0), ("2.5E-1", 0.25), ("1e+2", 100.0)]
    {
        assert_eq!(number_of(text), Some(number), "{text}");
    }
    let long = "1".repeat(65);
    for text in
        ["", "-", "+5", "5.", ".5", " 5", "5 ", "1e", "1e100", "NaN", "inf", "0x5", "1_000", "٥", "--5", long.as_str()]
    {
        assert_eq!(number_of(text), None, "{text}");
    }
}

#[test]
fn like_takes_no_exponential_time() {
    let agent = AgentRecord { name: "a".repeat(2_000), ..AgentRecord::default() };
    let pattern = format!("name LIKE '{}b'", "%a".repeat(1_000));
    assert_eq!(parse(&pattern).evaluate(&agent, Timestamp(0)), Some(false));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), "[a-z'\"\\\\%_{},. -]{0,8}", "\\PC{0,6}"]
}

fn column() -> impl Strategy<Value = Column> {
    prop_oneof![
        Just(Column::Name),
        Just(Column::Transport),
        Just(Column::Status),
        Just(Column::Version),
        Just(Column::QueueLoc),
        text().prop_map(Column::Label),
        text().prop_map(Column::Metadata),
        prop::collection::vec(text().prop_map(|key| format!("k{key}")), 1..4).prop_map(Column::Fact),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::Text),
        (-1_000_000i32..1_000_000).prop_map(|n| Value::Number(f64::from(n) / 8.0)),
        any::<f64>().prop_filter_map("finite", |n| n.is_finite().then_some(Value::Number(n + 0.0))),
    ]
}

fn moment() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0i64..4_000_000_000_000).prop_map(|ms| Moment::At(Timestamp(ms))),
        (-3_000_000_000_000i64..3_000_000_000_000).prop_map(|offset_ms| Moment::Now { offset_ms }),
    ]
    .prop_map(Value::Moment)
}

fn op() -> impl Strategy<Value = CompareOp> {
    use CompareOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    prop::sample::select(vec![Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual])
}

fn tree() -> impl Strategy<Value = Target> {
    let time = prop_oneof![Just(Column::LastSeen), Just(Column::EnrolledAt)];
    let leaf = prop_oneof![
        Just(Target::All),
        (column(), op(), value()).prop_map(|(column, op, value)| Target::Compare { column, op, value }),
        (time, op(), moment()).prop_map(|(column, op, value)| Target::Compare { column, op, value }),
        (column(), prop::collection::vec(value(), 1..4), any::<bool>())
            .prop_map(|(column, values, negated)| Target::In { column, values, negated }),
        (column(), text(), any::<bool>(), any::<bool>()).prop_map(|(column, pattern, ignore_case, negated)| {
            Target::Like { column, pattern: pattern.replace('\\', r"\\"), ignore_case, negated }
        }),
        (column(), value(), value(), any::<bool>()).prop_map(|(column, low, high, negated)| Target::Between {
            column,
            low,
            high,
            negated
        }),
        (column(), any::<bool>()).prop_map(|(column, negated)| Target::IsNull { column, negated }),
        (any::<u128>(), prop::sample::select(CommandState::ALL.to_vec()))
            .prop_map(|(id, state)| Target::ActionState { action: Uuid::from_u128(id), state }),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|target| Target::Not(Box::new(target))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Target::And),
            prop::collection::vec(inner, 2..4).prop_map(Target::Or),
        ]
    })
}

/// Pieces of the language in any order come further than random letters.
fn soup() -> impl Strategy<Value = String> {
    let pieces = [
        "name",
        "labels.a",
        "facts->>'a'",
        "->",
        "->>",
        "#>>",
        "'{a,b}'",
        "'a'",
        "5",
        "-",
        "=",
        "<>",
        "<",
        "IN",
        "(",
        ")",
        ",",
        "NOT",
        "AND",
        "OR",
        "LIKE",
        "BETWEEN",
        "IS",
        "NULL",
        "TRUE",
        "now()",
        "interval",
        "'5 minutes'",
        "action",
        ".",
        "\"",
        "'",
        ";",
        "--",
        "/*",
        "SELECT",
        "CASE",
        "::",
        "[",
        "]",
        "$1",
        "E'",
        "ANY",
        "\n",
        "é",
        "*",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..24).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in prop_oneof![any::<String>(), "\\PC{0,60}", soup()]) {
        match Target::parse(&text) {
            Ok(target) => prop_assert_eq!(Target::parse(&target.to_string()), Ok(target)),
            Err(error) => prop_assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty()),
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same_tree(target in tree()) {
        let text = target.to_string();
        prop_assert_eq!(Target::parse(&text), Ok(target), "{}", text);
    }

    #[test]
    fn double_negation_changes_nothing(target in tree()) {
        let (agent, now) = (agent(), Timestamp(1_060_000));
        let twice = Target::Not(Box::new(Target::Not(Box::new(target.clone()))));
        prop_assert_eq!(twice.evaluate(&agent, now), target.evaluate(&agent, now));
    }
}
