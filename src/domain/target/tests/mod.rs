//! Parsing target expressions: what is accepted, and where errors are.

mod evaluation;
mod properties;

use super::*;

const ID: &str = "018f3c1e-52d4-7b7a-9c43-1f0e8d26b957";

fn parse(text: &str) -> Target {
    Target::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The canonical text of a parsed expression.
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
        let x = if column == "status" { "online" } else { "x" };
        assert_eq!(canonical(&format!("{text} = '{x}'")), format!("{column} = '{x}'"));
        assert_eq!(canonical(&format!("{text}='{x}'")), format!("{column} = '{x}'"));
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
    // We flatten long chains, but the parser builds deep trees from them.
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

#[test]
fn what_a_column_can_not_be_is_an_error_with_its_place() {
    for (text, what) in [
        ("status = 'onlin'", "line 1, column 10: status is 'online' or 'offline', and never 'onlin'"),
        ("status IN ('online', 'x')", "column 22: status is"),
        ("status != 1", "column 11: status is a word, and no number"),
        ("transport = 'no such'", "column 13: no transport is called 'no such'"),
        ("transport = 1", "transport is a word"),
        ("labels.tier-name = 'x'", "labels.\"tier-name\""),
        ("labels.role = \"web\"", "the text is written 'web'"),
        ("facts.n = 0x10", "decimal digits"),
    ] {
        let error = error(text).to_string();
        assert!(error.contains(what), "{text}: {error}");
    }
    canonical("status LIKE 'on%' OR transport = 'my-own_1'");
}
