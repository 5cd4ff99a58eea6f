//! Target expressions as SQL: a flat list of pieces, text of this file or values to be bound, never
//! a user's text.
//!
//! Both databases get the same text but for how a value is bound and how JSON is looked into. What
//! counts as a label, a number, or like a pattern is answered by functions of ours: on SQLite they
//! are registered with each connection (`sqlite::functions`), on PostgreSQL the migration makes
//! them. The conformance suite holds both to [`Target::evaluate`].

use crate::domain::command::CommandState;
use crate::domain::target::{Column, CompareOp, Target, Value};
use crate::domain::time::Timestamp;
use crate::store::agents::{Among, CHECK_IN_COUNTS};
use diesel::expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

/// An action's key, by its id, which is to be bound.
pub(super) const ACTION_NO: &str = "(SELECT x.no FROM actions x WHERE x.id = ";

/// Condition over `agents`: the agent is neither removed nor disabled, and the target is true.
pub(in crate::store) fn members(target: &Target, now: Timestamp) -> Condition {
    let mut condition = Condition { pieces: Vec::new(), now };
    condition.sql("agents.removed_at IS NULL AND NOT agents.disabled AND ");
    condition.target(target);
    condition
}

/// Condition over `agents`: the agent is one of these.
pub(in crate::store) fn listed(among: &Among, now: Timestamp) -> Condition {
    let mut condition = Condition { pieces: vec![Piece::Sql("agents.removed_at IS NULL")], now };
    let disabled = among.disabled.or(among.target.as_ref().map(|_| false));
    match disabled {
        Some(true) => condition.sql(" AND agents.disabled"),
        Some(false) => condition.sql(" AND NOT agents.disabled"),
        None => {}
    }
    if let Some(target) = &among.target {
        condition.sql(" AND ");
        condition.target(target);
    }
    condition
}

/// Condition over `agents`: the agent is online.
pub(in crate::store) fn online(now: Timestamp) -> Condition {
    let mut condition = Condition { pieces: Vec::new(), now };
    condition.online();
    condition
}

#[derive(Debug)]
enum Piece {
    Sql(&'static str),
    Text(String),
    /// A number, as it is written and as a text in the order of numbers.
    Number {
        decimal: String,
        sort_key: String,
    },
    Int(i64),
    /// What is at this path in the facts, as text; the path also as a JSON list.
    Fact {
        path: Vec<String>,
        json: String,
    },
    /// The newest value of this key, as text.
    Metadata(String),
}

/// A boolean SQL expression over `agents`.
#[derive(Debug)]
pub(in crate::store) struct Condition {
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
                self.sql(if *negated { "NOT (" } else { "(" });
                // Numbers and texts are compared in different ways: a list of each.
                let numbers = |value: &&Value| matches!(value, Value::Number(_));
                let has_numbers = self.any_of("odoshi_number(", column, values.iter().filter(numbers));
                let texts = if has_numbers { " OR (" } else { "(" };
                self.any_of(texts, column, values.iter().filter(|value| !numbers(value)));
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
            Target::ActionState { action, state } => self.action_state(*action, *state),
        }
    }

    /// The agent's command of an action is in a state. The action's key is looked up once, and not for each agent.
    fn action_state(&mut self, action: Uuid, state: CommandState) {
        let is_final = state.is_final();
        self.sql(if is_final {
            "EXISTS (SELECT 1 FROM outcomes o WHERE o.agent_no = agents.no AND o.is_final AND o.action_no = "
        } else {
            "coalesce((SELECT CASE WHEN o.is_final THEN -1 WHEN p.state = 2 THEN 1 ELSE 0 END FROM commands c \
             LEFT JOIN outcomes o ON o.action_no = c.action_no AND o.agent_no = c.agent_no AND o.is_final \
             LEFT JOIN open_commands p ON p.action_no = c.action_no AND p.agent_no = c.agent_no \
             WHERE c.agent_no = agents.no AND c.action_no = "
        });
        self.sql(ACTION_NO);
        self.pieces.push(Piece::Text(action.to_string()));
        self.sql(if is_final { ") AND o.status = " } else { ")) = " });
        self.pieces.push(Piece::Int(i64::from(state as i16)));
        // The offset keeps PostgreSQL from reading all outcomes of the action instead of the agent's.
        self.sql(if is_final { " LIMIT 1 OFFSET 0)" } else { ", FALSE)" });
    }

    /// As a balanced tree: SQLite takes expressions that are up to 1,000 deep, and a chain is as
    /// deep as it is long.
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

    /// The column is one of these values. False if there are none.
    fn any_of<'a>(&mut self, or: &'static str, column: &Column, values: impl Iterator<Item = &'a Value>) -> bool {
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
        begun
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
            Value::Number(number) => Piece::Number { decimal: number.to_string(), sort_key: number.sort_key() },
            Value::Moment(moment) => Piece::Int(moment.when(self.now).0),
        });
    }

    fn column(&mut self, column: &Column) {
        match column {
            Column::Name => self.sql("agents.name"),
            Column::Transport => self.sql("agents.transport"),
            Column::Status => {
                self.sql("CASE WHEN ");
                self.online();
                self.sql(" THEN 'online' ELSE 'offline' END");
            }
            Column::Version => self.sql("nullif(agents.version, '')"),
            Column::LastSeen => self.sql("agents.last_seen"),
            Column::EnrolledAt => self.sql("agents.enrolled_at"),
            Column::Label(key) => {
                self.sql("odoshi_label(agents.labels, ");
                self.pieces.push(Piece::Text(key.clone()));
                self.sql(")");
            }
            Column::Fact(path) => self.fact(path),
            Column::Metadata(key) => self.pieces.push(Piece::Metadata(key.clone())),
            Column::QueueLoc => {
                self.sql("(");
                self.fact(&["os".to_owned()]);
                self.sql(" || '.' || agents.name)");
            }
        }
    }

    fn online(&mut self) {
        self.sql(
            "(EXISTS (SELECT 1 FROM agent_sessions s WHERE s.agent_no = agents.no) \
             OR coalesce(agents.checked_in_at, 0) > ",
        );
        self.pieces.push(Piece::Int(self.now.minus(CHECK_IN_COUNTS).0));
        self.sql(")");
    }

    fn fact(&mut self, path: &[String]) {
        let json = serde_json::Value::from(path).to_string();
        self.pieces.push(Piece::Fact { path: path.to_vec(), json });
    }
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
                Piece::Number { sort_key, .. } => out.push_bind_param::<Text, _>(sort_key)?,
                Piece::Int(number) => out.push_bind_param::<BigInt, _>(number)?,
                Piece::Fact { json, .. } => {
                    out.push_sql("odoshi_fact(agents.facts, ");
                    out.push_bind_param::<Text, _>(json)?;
                    out.push_sql(")");
                }
                Piece::Metadata(key) => {
                    out.push_sql(
                        "(SELECT odoshi_fact(m.value, '[]') FROM agent_metadata m \
                         WHERE m.agent_no = agents.no AND m.key = ",
                    );
                    out.push_bind_param::<Text, _>(key)?;
                    out.push_sql(")");
                }
            }
        }
        out.push_sql(")");
        Ok(())
    }
}

impl QueryFragment<Pg> for Condition {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        out.push_sql("(");
        for piece in &self.pieces {
            match piece {
                Piece::Sql(text) => out.push_sql(text),
                Piece::Text(text) => {
                    out.push_bind_param::<Text, _>(text)?;
                    // Bytewise, whatever the database's own order is.
                    out.push_sql(" COLLATE \"C\"");
                }
                Piece::Number { decimal, .. } => {
                    out.push_bind_param::<Text, _>(decimal)?;
                    out.push_sql("::numeric");
                }
                Piece::Int(number) => out.push_bind_param::<BigInt, _>(number)?,
                Piece::Fact { path, .. } => {
                    out.push_sql("(agents.facts");
                    for (index, key) in path.iter().enumerate() {
                        let last = index + 1 == path.len();
                        // A path takes digits for an index too, and a plain arrow doesn't. (It
                        // would take " 5" for one.)
                        if index > 0 && key.bytes().all(|b| b.is_ascii_digit()) {
                            out.push_sql(if last { " #>> ARRAY[" } else { " #> ARRAY[" });
                            out.push_bind_param::<Text, _>(key)?;
                            out.push_sql("]");
                        } else {
                            out.push_sql(if last { " ->> " } else { " -> " });
                            out.push_bind_param::<Text, _>(key)?;
                        }
                    }
                    out.push_sql(")");
                }
                Piece::Metadata(key) => {
                    out.push_sql(
                        "(SELECT m.value::json #>> '{}' FROM agent_metadata m WHERE m.agent_no = agents.no AND m.key = ",
                    );
                    out.push_bind_param::<Text, _>(key)?;
                    out.push_sql(")");
                }
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
