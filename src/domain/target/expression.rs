//! A target expression as a typed tree.

use super::number::Number;
use crate::domain::command::CommandState;
use crate::domain::time::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// Selects agents: a condition in SQL's three-valued logic. An agent matches if it is true; unknown
/// is not enough.
///
/// A parsed target is at most a few hundred levels deep, so it is safe to walk by recursion.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// `TRUE`: the whole fleet.
    All,
    /// True for false, and unknown for unknown.
    Not(Box<Target>),
    /// All conditions, at least two.
    And(Vec<Target>),
    /// Any of the conditions, at least two.
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
        /// The values, at least one.
        values: Vec<Value>,
        /// `NOT IN`
        negated: bool,
    },
    /// `COLUMN [NOT] LIKE 'pattern'`: `%` any text, `_` one character, `\` escapes.
    Like {
        /// The left side.
        column: Column,
        /// The pattern. It never ends in an incomplete escape.
        pattern: String,
        /// `ILIKE`: ASCII letters match in either case, and no other characters do, on all stores.
        ignore_case: bool,
        /// `NOT LIKE`
        negated: bool,
    },
    /// `COLUMN [NOT] BETWEEN low AND high`, bounds included.
    Between {
        /// The left side.
        column: Column,
        /// The lower bound.
        low: Value,
        /// The upper bound.
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
    /// `action('ID') = 'STATE'`: agents whose command of an earlier action is in this state. False,
    /// never unknown, for agents without a command of that action.
    ActionState {
        /// The action's public id.
        action: Uuid,
        /// The state of the agent's command.
        state: CommandState,
    },
}

impl Target {
    /// The keys of metadata that it mentions.
    pub fn metadata_keys(&self) -> BTreeSet<&str> {
        match self {
            Self::All | Self::ActionState { .. } => BTreeSet::new(),
            Self::Not(inner) => inner.metadata_keys(),
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::metadata_keys).collect(),
            Self::Compare { column, .. }
            | Self::In { column, .. }
            | Self::Like { column, .. }
            | Self::Between { column, .. }
            | Self::IsNull { column, .. } => match column {
                Column::Metadata(key) => [key.as_str()].into(),
                _ => BTreeSet::new(),
            },
        }
    }
}

/// An attribute of an agent. All are texts, except the two times.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Its unique name.
    Name,
    /// Its transport.
    Transport,
    /// `online` or `offline`.
    Status,
    /// The agent program's version.
    Version,
    /// A time.
    LastSeen,
    /// A time.
    EnrolledAt,
    /// The label with this key.
    Label(String),
    /// The fact at this path (at least one key), as text: a string without its quotes, anything
    /// else as JSON; JSON's `null` is NULL. A key of digits alone is an index if the fact is an
    /// array.
    Fact(Vec<String>),
    /// The newest metadata value of this key, as text.
    Metadata(String),
    /// MIG's `<facts.os>.<name>`; NULL without that fact.
    QueueLoc,
}

impl Column {
    /// Whether it is a time, which is compared only with [`Value::Moment`].
    pub fn is_time(&self) -> bool {
        matches!(self, Self::LastSeen | Self::EnrolledAt)
    }
}

/// A comparison operator.
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
    /// The operator in SQL.
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

    /// The operator for exchanged sides: `1 < x` is `x > 1`.
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

/// The value that a column is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text, compared bytewise. It never contains a NUL character, which PostgreSQL can't store.
    Text(String),
    /// A number. A text that is not a number compares as NULL.
    Number(Number),
    /// A time, for columns that are times.
    Moment(Moment),
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A fixed time.
    At(Timestamp),
    /// This many milliseconds after `now()`; negative values are before it.
    Now {
        /// The offset, at most 100 years either way.
        offset_ms: i64,
    },
}

impl Moment {
    /// The point in time, given the current time `now`.
    pub fn when(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Now { offset_ms } if offset_ms < 0 => now.minus(Duration::from_millis(offset_ms.unsigned_abs())),
            Self::Now { offset_ms } => now.plus(Duration::from_millis(offset_ms.unsigned_abs())),
        }
    }
}
