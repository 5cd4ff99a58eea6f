//! Properties of all expressions: parsing never panics, and printing loses nothing.

use super::evaluation::agent;
use crate::domain::command::CommandState;
use crate::domain::target::{Column, CompareOp, Moment, Number, Target, Value};
use crate::domain::time::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), "[a-z'\"\\\\%_{},. -]{0,8}", "\\PC{0,6}"]
}

fn column() -> impl Strategy<Value = Column> {
    prop_oneof![
        Just(Column::Name),
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
        "-?[0-9]{1,25}(\\.[0-9]{1,25})?(e-?[0-9]{1,3})?"
            .prop_map(|text| Value::Number(Number::of(&text).expect("a number"))),
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
        (op(), prop::sample::select(vec!["online", "offline"])).prop_map(|(op, status)| Target::Compare {
            column: Column::Status,
            op,
            value: Value::Text(status.to_owned()),
        }),
        (any::<bool>(), "[A-Za-z0-9_-]{1,9}").prop_map(|(negated, name)| Target::In {
            column: Column::Transport,
            values: vec![Value::Text(name)],
            negated,
        }),
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

/// Pieces of the language in any order reach deeper into the parser than random letters do.
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
