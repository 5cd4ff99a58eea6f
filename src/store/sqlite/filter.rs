//! Target expressions as SQL: a flat list of pieces, text of this file or values to be bound, never a user's text.
//!
//! What is inside JSON (labels, facts), and what counts as a number, is answered by functions of ours that are registered
//! with each connection. SQLite's own JSON paths can't name every key, and this way the target's reference meaning
//! ([`Target::evaluate`]) and the database run the same code.

use super::schema::agents;
use crate::domain::target::{Column, CompareOp, Target, Value, fact_text, like, number_of};
use crate::domain::time::Timestamp;
use diesel::expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};
use diesel::sqlite::Sqlite;

#[diesel::declare_sql_function]
extern "SQL" {
    /// The label with this key.
    fn odoshi_label(labels: Text, key: Text) -> Nullable<Text>;
    /// What is at this path (a JSON list of keys) in the facts, as text.
    fn odoshi_fact(facts: Text, path: Text) -> Nullable<Text>;
    /// The number that a text is.
    fn odoshi_number(text: Nullable<Text>) -> Nullable<Double>;
    /// LIKE. SQLite's own takes exponential time over some patterns, refuses long ones, and stops at a NUL.
    fn odoshi_like(text: Nullable<Text>, pattern: Text, ignore_case: Bool) -> Nullable<Bool>;
}

/// Makes the functions known to a connection.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    odoshi_label_utils::register_impl(conn, |labels: String, key: String| -> Option<String> {
        let labels: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&labels).ok()?;
        labels.get(&key)?.as_str().map(str::to_owned)
    })?;
    odoshi_fact_utils::register_impl(conn, |facts: String, path: String| -> Option<String> {
        let facts: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&facts).ok()?;
        let path: Vec<String> = serde_json::from_str(&path).ok()?;
        fact_text(&facts, &path).map(|text| text.into_owned())
    })?;
    odoshi_number_utils::register_impl(conn, |text: Option<String>| number_of(&text?))?;
    odoshi_like_utils::register_impl(conn, |text: Option<String>, pattern: String, ignore_case: bool| {
        Some(like(&text?, &pattern, ignore_case))
    })
}

/// The agents that match: neither removed nor disabled, and the condition is true.
pub(super) fn members(target: &Target, now: Timestamp) -> agents::BoxedQuery<'static, Sqlite> {
    let mut condition = Condition { pieces: Vec::new(), now };
    condition.target(target);
    agents::table.filter(agents::removed_at.is_null()).filter(agents::disabled.eq(false)).filter(condition).into_boxed()
}

#[derive(Debug)]
enum Piece {
    Sql(&'static str),
    Text(String),
    Number(f64),
    Int(i64),
}

/// A boolean SQL expression over `agents`.
#[derive(Debug)]
struct Condition {
    pieces: Vec<Piece>,
    now: Timestamp,
}

impl Condition {
    fn sql(&mut self, text: &'static str) {
        self.pieces.push(Piece::Sql(text));
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::All => self.sql("TRUE"),
            Target::Not(inner) => {
                self.sql("NOT (");
                self.target(inner);
                self.sql(")");
            }
            Target::And(parts) => self.joined(parts, " AND "),
            Target::Or(parts) => self.joined(parts, " OR "),
            Target::Compare { column, op, value } => self.compare(column, *op, value),
            Target::In { column, values, negated } => {
                self.sql(if *negated { "NOT (FALSE" } else { "(FALSE" });
                // Numbers and texts are compared in different ways: a list of each.
                let numbers = |value: &&Value| matches!(value, Value::Number(_));
                self.any_of(" OR odoshi_number(", column, values.iter().filter(numbers));
                self.any_of(" OR (", column, values.iter().filter(|value| !numbers(value)));
                self.sql(")");
            }
            Target::Like { column, pattern, ignore_case, negated } => {
                self.sql(if *negated { "NOT odoshi_like(" } else { "odoshi_like(" });
                self.column(column);
                self.sql(", ");
                self.pieces.push(Piece::Text(pattern.clone()));
                self.sql(if *ignore_case { ", TRUE)" } else { ", FALSE)" });
            }
            Target::Between { column, low, high, negated } => {
                self.sql(if *negated { "NOT (" } else { "(" });
                self.compare(column, CompareOp::GreaterOrEqual, low);
                self.sql(" AND ");
                self.compare(column, CompareOp::LessOrEqual, high);
                self.sql(")");
            }
            Target::IsNull { column, negated } => {
                self.sql("((");
                self.column(column);
                self.sql(if *negated { ") IS NOT NULL)" } else { ") IS NULL)" });
            }
            Target::ActionState { action, state } => {
                self.sql(
                    "coalesce((SELECT CASE WHEN o.is_final THEN o.status WHEN p.state = 2 THEN 1 ELSE 0 END \
                     FROM actions x JOIN commands c ON c.action_no = x.no AND c.agent_no = agents.no \
                     LEFT JOIN outcomes o ON o.action_no = x.no AND o.agent_no = agents.no AND o.is_final \
                     LEFT JOIN open_commands p ON p.action_no = x.no AND p.agent_no = agents.no WHERE x.id = ",
                );
                self.pieces.push(Piece::Text(action.to_string()));
                self.sql(") = ");
                self.pieces.push(Piece::Int(i64::from(*state as i16)));
                self.sql(", FALSE)");
            }
        }
    }

    /// As a balanced tree: SQLite takes expressions that are up to 1,000 deep, and a chain is as deep as it is long.
    fn joined(&mut self, parts: &[Target], by: &'static str) {
        self.sql("(");
        match parts {
            [part] => self.target(part),
            parts => {
                let (left, right) = parts.split_at(parts.len() / 2);
                self.joined(left, by);
                self.sql(by);
                self.joined(right, by);
            }
        }
        self.sql(")");
    }

    /// One of these, of which there may be none.
    fn any_of<'a>(&mut self, or: &'static str, column: &Column, values: impl Iterator<Item = &'a Value>) {
        let mut begun = false;
        for value in values {
            if begun {
                self.sql(", ");
            } else {
                self.sql(or);
                self.column(column);
                self.sql(") IN (");
            }
            self.value(value);
            begun = true;
        }
        if begun {
            self.sql(")");
        }
    }

    fn compare(&mut self, column: &Column, op: CompareOp, value: &Value) {
        let is_number = matches!(value, Value::Number(_));
        self.sql(if is_number { "(odoshi_number(" } else { "((" });
        self.column(column);
        self.sql(match op {
            CompareOp::Equal => ") = ",
            CompareOp::NotEqual => ") <> ",
            CompareOp::Less => ") < ",
            CompareOp::LessOrEqual => ") <= ",
            CompareOp::Greater => ") > ",
            CompareOp::GreaterOrEqual => ") >= ",
        });
        self.value(value);
        self.sql(")");
    }

    fn value(&mut self, value: &Value) {
        self.pieces.push(match value {
            Value::Text(text) => Piece::Text(text.clone()),
            Value::Number(number) => Piece::Number(*number),
            Value::Moment(moment) => Piece::Int(moment.when(self.now).0),
        });
    }

    fn column(&mut self, column: &Column) {
        match column {
            Column::Name => self.sql("agents.name"),
            Column::Transport => self.sql("agents.transport"),
            Column::Status => {
                self.sql(
                    "CASE WHEN EXISTS (SELECT 1 FROM agent_sessions s WHERE s.agent_no = agents.no) \
                     OR coalesce(agents.checked_in_at, 0) > ",
                );
                self.pieces.push(Piece::Int(self.now.minus(super::super::CHECK_IN_COUNTS).0));
                self.sql(" THEN 'online' ELSE 'offline' END");
            }
            Column::Version => self.sql("nullif(agents.version, '')"),
            Column::LastSeen => self.sql("agents.last_seen"),
            Column::EnrolledAt => self.sql("agents.enrolled_at"),
            Column::Label(key) => self.call("odoshi_label(agents.labels, ", key.clone()),
            Column::Fact(path) => self.call("odoshi_fact(agents.facts, ", path_json(path)),
            Column::Metadata(key) => {
                // A list of one, so that the same function takes the value out as text.
                self.sql("(SELECT odoshi_fact(json_object('v', json(m.value)), '[\"v\"]') FROM agent_metadata m ");
                self.call("WHERE m.agent_no = agents.no AND m.key = ", key.clone());
            }
            Column::QueueLoc => {
                self.call("(odoshi_fact(agents.facts, ", path_json(&["os".to_owned()]));
                self.sql(" || '.' || agents.name)");
            }
        }
    }

    fn call(&mut self, function: &'static str, argument: String) {
        self.sql(function);
        self.pieces.push(Piece::Text(argument));
        self.sql(")");
    }
}

fn path_json(path: &[String]) -> String {
    serde_json::Value::from(path.to_vec()).to_string()
}

impl QueryFragment<Sqlite> for Condition {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        // The whole is true, false or NULL; a filter takes NULL for false.
        out.push_sql("(");
        for piece in &self.pieces {
            match piece {
                Piece::Sql(text) => out.push_sql(text),
                Piece::Text(text) => out.push_bind_param::<Text, _>(text)?,
                Piece::Number(number) => out.push_bind_param::<Double, _>(number)?,
                Piece::Int(number) => out.push_bind_param::<BigInt, _>(number)?,
            }
        }
        out.push_sql(")");
        Ok(())
    }
}

impl QueryId for Condition {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Expression for Condition {
    type SqlType = Nullable<Bool>;
}

impl<QS> AppearsOnTable<QS> for Condition {}
impl<QS> SelectableExpression<QS> for Condition {}

impl ValidGrouping<()> for Condition {
    type IsAggregate = is_aggregate::No;
}
