//! A target as canonical text, which parses to the same tree.

use super::{Column, Moment, Target, Value};
use crate::domain::time::Span;
use std::fmt::{self, Display, Formatter};

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "NOT " } else { "" };
        match self {
            Self::All => f.write_str("TRUE"),
            Self::Not(inner) => {
                f.write_str("NOT ")?;
                operand(f, inner)
            }
            Self::And(parts) => joined(f, parts, " AND "),
            Self::Or(parts) => joined(f, parts, " OR "),
            Self::Compare { column, op, value } => write!(f, "{column} {} {value}", op.as_str()),
            Self::In { column, values, negated } => {
                write!(f, "{column} {}IN (", not(negated))?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
            Self::Like { column, pattern, ignore_case, negated } => {
                let like = if *ignore_case { "ILIKE" } else { "LIKE" };
                write!(f, "{column} {}{like} {}", not(negated), Quoted(pattern))
            }
            Self::Between { column, low, high, negated } => {
                write!(f, "{column} {}BETWEEN {low} AND {high}", not(negated))
            }
            Self::IsNull { column, negated } => write!(f, "{column} IS {}NULL", not(negated)),
            Self::ActionState { action, state } => write!(f, "action('{action}') = '{}'", state.as_str()),
        }
    }
}

fn joined(f: &mut Formatter<'_>, parts: &[Target], by: &str) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(by)?;
        }
        operand(f, part)?;
    }
    Ok(())
}

/// Writes parentheses where AND or OR is inside. No more than needed, since parsers limit the
/// depth.
fn operand(f: &mut Formatter<'_>, target: &Target) -> fmt::Result {
    match target {
        Target::And(_) | Target::Or(_) => write!(f, "({target})"),
        _ => target.fmt(f),
    }
}

impl Display for Column {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("name"),
            Self::Transport => f.write_str("transport"),
            Self::Status => f.write_str("status"),
            Self::Version => f.write_str("version"),
            Self::LastSeen => f.write_str("last_seen"),
            Self::EnrolledAt => f.write_str("enrolled_at"),
            Self::QueueLoc => f.write_str("queueloc"),
            Self::Label(key) => write!(f, "labels->>{}", Quoted(key)),
            Self::Metadata(key) => write!(f, "metadata->>{}", Quoted(key)),
            Self::Fact(path) => {
                f.write_str("facts")?;
                for (index, key) in path.iter().enumerate() {
                    let arrow = if index + 1 == path.len() { "->>" } else { "->" };
                    write!(f, "{arrow}{}", Quoted(key))?;
                }
                Ok(())
            }
        }
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => Quoted(text).fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Moment(Moment::At(time)) => write!(f, "'{time}'"),
            Self::Moment(Moment::Now { offset_ms: 0 }) => f.write_str("now()"),
            Self::Moment(Moment::Now { offset_ms }) => {
                let sign = if *offset_ms < 0 { '-' } else { '+' };
                write!(f, "now() {sign} interval '{}'", Span::millis(offset_ms.unsigned_abs()))
            }
        }
    }
}

/// A string literal.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0.replace('\'', "''"))
    }
}
