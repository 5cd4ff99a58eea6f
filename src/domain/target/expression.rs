//! A target expression as a typed tree.

use crate::domain::command::CommandState;
use crate::domain::time::Timestamp;
use std::time::Duration;
use uuid::Uuid;

/// Which agents: a condition with SQL's three-valued logic. An agent matches when it is true, not when it is unknown.
///
/// At most a few hundred levels deep when it was parsed, and so safe to walk by recursion.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// `TRUE`: the whole fleet.
    All,
    /// True for what was false, and unknown for what was unknown.
    Not(Box<Target>),
    /// All of these, at least two.
    And(Vec<Target>),
    /// Any of these, at least two.
    Or(Vec<Target>),
    /// `COLUMN op VALUE`
    Compare {
        /// The left side.
        column: Column,
        /// The operator.
        op: CompareOp,
        /// The right side.
        value: Value,
    },
    /// `COLUMN [NOT] IN (…)`
    In {
        /// The left side.
        column: Column,
        /// At least one.
        values: Vec<Value>,
        /// `NOT IN`
        negated: bool,
    },
    /// `COLUMN [NOT] LIKE 'pattern'`: `%` any text, `_` one character, `\` escapes.
    Like {
        /// The left side.
        column: Column,
        /// Never ends in an escape that escapes nothing.
        pattern: String,
        /// `ILIKE`: the ASCII letters match in either case, and no others, on all stores alike.
        ignore_case: bool,
        /// `NOT LIKE`
        negated: bool,
    },
    /// `COLUMN [NOT] BETWEEN low AND high`, both included.
    Between {
        /// The left side.
        column: Column,
        /// The lowest.
        low: Value,
        /// The highest.
        high: Value,
        /// `NOT BETWEEN`
        negated: bool,
    },
    /// `COLUMN IS [NOT] NULL`
    IsNull {
        /// The column.
        column: Column,
        /// `IS NOT NULL`
        negated: bool,
    },
    /// `action('ID') = 'STATE'`: agents whose command of an earlier action is in this state. False, never unknown, for
    /// those that have no command of it.
    ActionState {
        /// The action's public id.
        action: Uuid,
        /// The state of its command for the agent.
        state: CommandState,
    },
}

/// An attribute of an agent. All are text, except the two times.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Its unique name.
    Name,
    /// How it is reached.
    Transport,
    /// `online` or `offline`.
    Status,
    /// Of the agent program.
    Version,
    /// A time.
    LastSeen,
    /// A time.
    EnrolledAt,
    /// The label of this key.
    Label(String),
    /// What is at this path (at least one key) in the facts, as text: a string without its quotes, anything else as
    /// JSON; JSON's `null` is NULL. A key of digits alone is an index where the fact is an array.
    Fact(Vec<String>),
    /// The newest value of this key, as text.
    Metadata(String),
    /// MIG's `<facts.os>.<name>`; NULL without that fact.
    QueueLoc,
}

impl Column {
    /// Whether it is a point in time, which is compared with [`Value::Moment`] alone.
    pub fn is_time(&self) -> bool {
        matches!(self, Self::LastSeen | Self::EnrolledAt)
    }
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// `=`
    Equal,
    /// `!=` or `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl CompareOp {
    /// As SQL writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    /// The same with its sides exchanged: `1 < x` is `x > 1`.
    #[must_use]
    pub const fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            same => same,
        }
    }
}

/// What a column is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Compared bytewise; never holds a NUL character, which PostgreSQL can't store.
    Text(String),
    /// Finite and not `-0`; beside it a text that is not a number (see [`number_of`](super::number_of)) is NULL.
    Number(f64),
    /// Beside a column that is a time.
    Moment(Moment),
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This one.
    At(Timestamp),
    /// This many milliseconds after `now()`; negative values are before it.
    Now {
        /// At most 100 years either way.
        offset_ms: i64,
    },
}

impl Moment {
    /// The point in time when it is `now`.
    pub fn when(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Now { offset_ms } if offset_ms < 0 => now.minus(Duration::from_millis(offset_ms.unsigned_abs())),
            Self::Now { offset_ms } => now.plus(Duration::from_millis(offset_ms.unsigned_abs())),
        }
    }
}
