//! Converts the SQL parser's tree into a [`Target`]. What a target cannot express is an error.

use super::columns::column;
use super::error::{Result, at};
use super::expression::{Column, CompareOp, Moment, Target, Value};
use super::number::Number;
use super::sql_tree::{arguments, is_call_of, literal, place, what_it_is};
use crate::domain::command::CommandState;
use crate::domain::time::{Span, Timestamp};
use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, InTarget, Interval, UnaryOperator, Value as Literal,
};
use sqlparser::tokenizer::Location;
use uuid::Uuid;

/// Maximum number of values in one list. Each is a bound parameter; PostgreSQL takes 65,535 in a
/// statement.
const MAX_LIST: usize = 10_000;
/// Maximum distance of a moment from now: 100 years.
const MAX_OFFSET: Span = Span::days(36_525);

/// Converts a condition. Recursion is as deep as parentheses and NOT are nested, which the parser
/// limits. Chains of AND and OR are walked in a loop.
pub(super) fn target(expr: &Expr, around: Location) -> Result<Target> {
    match expr {
        Expr::Nested(inner) => target(inner, around),
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => Ok(Target::Not(Box::new(target(expr, around)?))),
        Expr::BinaryOp { op: BinaryOperator::And, .. } => chain(expr, &BinaryOperator::And, around).map(Target::And),
        Expr::BinaryOp { op: BinaryOperator::Or, .. } => chain(expr, &BinaryOperator::Or, around).map(Target::Or),
        Expr::BinaryOp { left, op, right } => match compare_op(op) {
            Some(op) => comparison(left, op, right, around),
            None => Err(at(place(expr, around), format!("the operator {op} makes no condition here"))),
        },
        Expr::In { expr, target: InTarget::List(list), negated, global: false } => {
            in_list(expr, list, *negated, around)
        }
        Expr::Like { negated, any: false, expr, pattern, escape_char: None } => {
            like(expr, pattern, false, *negated, around)
        }
        Expr::ILike { negated, any: false, expr, pattern, escape_char: None } => {
            like(expr, pattern, true, *negated, around)
        }
        Expr::Between { expr, negated, low, high } => {
            let column = column(expr, around)?;
            let (low, high) = (value(low, &column, around)?, value(high, &column, around)?);
            Ok(Target::Between { column, low, high, negated: *negated })
        }
        Expr::IsNull(inner) => Ok(Target::IsNull { column: column(inner, around)?, negated: false }),
        Expr::IsNotNull(inner) => Ok(Target::IsNull { column: column(inner, around)?, negated: true }),
        Expr::Value(literal) => match literal.value {
            Literal::Boolean(true) => Ok(Target::All),
            _ => Err(at(place(expr, around), format!("{expr} alone is not a condition"))),
        },
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => {
            let column = column(expr, around)?;
            Err(at(place(expr, around), format!("{column} alone is not a condition; compare it with a value")))
        }
        _ => Err(at(place(expr, around), format!("{} is not allowed in a target", what_it_is(expr)))),
    }
}

/// The operands of `a AND b AND c`, which is parsed as `(a AND b) AND c`.
fn chain(expr: &Expr, by: &BinaryOperator, around: Location) -> Result<Vec<Target>> {
    let mut operands = Vec::new();
    let mut rest = expr;
    while let Expr::BinaryOp { left, op, right } = rest {
        if op != by {
            break;
        }
        operands.push(right.as_ref());
        rest = left;
    }
    operands.push(rest);
    operands.into_iter().rev().map(|operand| target(operand, around)).collect()
}

fn compare_op(op: &BinaryOperator) -> Option<CompareOp> {
    Some(match op {
        BinaryOperator::Eq => CompareOp::Equal,
        BinaryOperator::NotEq => CompareOp::NotEqual,
        BinaryOperator::Lt => CompareOp::Less,
        BinaryOperator::LtEq => CompareOp::LessOrEqual,
        BinaryOperator::Gt => CompareOp::Greater,
        BinaryOperator::GtEq => CompareOp::GreaterOrEqual,
        _ => return None,
    })
}

fn comparison(left: &Expr, op: CompareOp, right: &Expr, around: Location) -> Result<Target> {
    if let Some(action) = action_call(left, around)? {
        if op != CompareOp::Equal {
            return Err(at(place(left, around), "action('…') can only be compared with = or IN"));
        }
        return Ok(Target::ActionState { action, state: state(right, around)? });
    }
    let around = place(left, around);
    match (is_value(left), is_value(right)) {
        (true, false) => {
            let column = column(right, around)?;
            Ok(Target::Compare { op: op.flipped(), value: value(left, &column, around)?, column })
        }
        (true, true) if matches!(left, Expr::BinaryOp { op: BinaryOperator::Minus, .. }) => {
            Err(at(place(left, around), "a key with a - is written in double quotes: labels.\"tier-name\""))
        }
        (true, true) => Err(at(place(left, around), "one side of a comparison must be a column")),
        (false, _) => {
            let column = column(left, around)?;
            Ok(Target::Compare { value: value(right, &column, around)?, op, column })
        }
    }
}

fn in_list(expr: &Expr, list: &[Expr], negated: bool, around: Location) -> Result<Target> {
    if list.is_empty() {
        return Err(at(place(expr, around), "the list of IN is empty"));
    }
    if list.len() > MAX_LIST {
        let message = format!("the list has {} values, and at most {MAX_LIST} are allowed", list.len());
        return Err(at(place(expr, around), message));
    }
    if let Some(action) = action_call(expr, around)? {
        let states = list.iter().map(|item| Ok(Target::ActionState { action, state: state(item, around)? }));
        let mut states = states.collect::<Result<Vec<_>>>()?;
        let found = if states.len() == 1 { states.remove(0) } else { Target::Or(states) };
        return Ok(if negated { Target::Not(Box::new(found)) } else { found });
    }
    let column = column(expr, around)?;
    let values = list.iter().map(|item| value(item, &column, around)).collect::<Result<_>>()?;
    Ok(Target::In { column, values, negated })
}

fn like(expr: &Expr, pattern: &Expr, ignore_case: bool, negated: bool, around: Location) -> Result<Target> {
    let column = column(expr, around)?;
    if column.is_time() {
        return Err(at(place(expr, around), format!("{column} is a time, and LIKE is for text")));
    }
    let here = place(pattern, around);
    let literal = match literal(pattern) {
        Some(Literal::SingleQuotedString(text)) if !text.contains('\0') => Value::Text(text.clone()),
        _ => value(pattern, &column, around)?,
    };
    let Value::Text(pattern) = literal else {
        return Err(at(here, "the pattern of LIKE must be a text in single quotes"));
    };
    // Whether a trailing escape is an error in SQL depends on the database.
    if (pattern.len() - pattern.trim_end_matches('\\').len()) % 2 == 1 {
        return Err(at(here, r"the pattern ends with a \ that escapes nothing; write \\ for a backslash"));
    }
    Ok(Target::Like { column, pattern, ignore_case, negated })
}

/// Whether an expression is a value rather than a column. This tells which side of a comparison is
/// which.
fn is_value(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_value(inner),
        Expr::Value(_) | Expr::UnaryOp { .. } | Expr::Interval(_) => true,
        Expr::Function(call) => is_call_of(call, "now"),
        Expr::BinaryOp { op, .. } => matches!(op, BinaryOperator::Plus | BinaryOperator::Minus),
        _ => false,
    }
}

/// Converts a value to the type of the column that it is compared with.
fn value(expr: &Expr, column: &Column, around: Location) -> Result<Value> {
    let here = place(expr, around);
    match expr {
        Expr::Nested(inner) => value(inner, column, around),
        Expr::Value(found) => match &found.value {
            Literal::SingleQuotedString(text) if text.contains('\0') => {
                Err(at(here, "a text can't hold a NUL character"))
            }
            Literal::SingleQuotedString(text) if column.is_time() => match Timestamp::parse(text) {
                Ok(time) => Ok(Value::Moment(Moment::At(time))),
                Err(error) => Err(at(here, format!("'{text}' is not an RFC 3339 time: {error}"))),
            },
            Literal::SingleQuotedString(text) => word(text, column, here),
            Literal::Number(digits, false) => number(digits, "", column, here),
            Literal::Boolean(known) => Err(at(here, format!("{known} is written '{known}' beside a column"))),
            Literal::Null => Err(at(here, "nothing equals NULL; use IS NULL or IS NOT NULL")),
            other => Err(at(here, format!("{other} is not a value here; texts are written in single quotes"))),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match literal(inner) {
            Some(Literal::Number(digits, false)) => number(digits, "-", column, here),
            _ => Err(at(here, "- must stand before a number")),
        },
        Expr::Identifier(name) => {
            Err(at(here, format!("a value is needed here; the text is written '{}', in single quotes", name.value)))
        }
        Expr::CompoundIdentifier(_) => {
            Err(at(here, format!("a value is needed here, and {expr} is a column or a text without single quotes")))
        }
        _ => {
            let moment = moment(expr, around)?;
            if column.is_time() {
                Ok(Value::Moment(moment))
            } else {
                Err(at(here, format!("{column} is not a time, and can't be compared with one")))
            }
        }
    }
}

/// A text beside a column. What a column can't be is mostly a slip of the pen.
fn word(text: &str, column: &Column, here: Location) -> Result<Value> {
    let is_name = |text: &str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    match column {
        Column::Status if !matches!(text, "online" | "offline") => {
            Err(at(here, format!("status is 'online' or 'offline', and never '{text}'")))
        }
        Column::Transport if !is_name(text) => Err(at(here, format!("no transport is called '{text}'"))),
        _ => Ok(Value::Text(text.to_owned())),
    }
}

fn number(digits: &str, sign: &str, column: &Column, here: Location) -> Result<Value> {
    if column.is_time() {
        return Err(at(here, format!("{column} is a time: compare it with '2026-01-01T00:00:00Z' or now()")));
    }
    if matches!(column, Column::Status | Column::Transport) {
        return Err(at(here, format!("{column} is a word, and no number")));
    }
    // SQL lets out a zero before the point, and one after it.
    let (mantissa, exponent) = digits.split_at(digits.find(['e', 'E']).unwrap_or(digits.len()));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let filled = |part: &str| if part.is_empty() { "0".to_owned() } else { part.to_owned() };
    match Number::of(&format!("{sign}{}.{}{exponent}", filled(whole), filled(fraction))) {
        Some(number) => Ok(Value::Number(number)),
        None => Err(at(here, "a number is written with at most 4,000 decimal digits, and an exponent of at most four")),
    }
}

/// `now()`, `now() - interval '…'` or `now() + interval '…'`.
fn moment(expr: &Expr, around: Location) -> Result<Moment> {
    let here = place(expr, around);
    match expr {
        Expr::Function(call) if is_call_of(call, "now") && arguments(call).is_some_and(<[_]>::is_empty) => {
            Ok(Moment::Now { offset_ms: 0 })
        }
        Expr::BinaryOp { left, op: op @ (BinaryOperator::Plus | BinaryOperator::Minus), right } => {
            match (left.as_ref(), right.as_ref()) {
                (Expr::Function(_), Expr::Interval(span)) => {
                    moment(left, around)?;
                    let millis = interval(span, here)?;
                    Ok(Moment::Now { offset_ms: if *op == BinaryOperator::Plus { millis } else { -millis } })
                }
                _ => Err(at(here, "the only sum allowed is now() with an interval: now() - interval '5 minutes'")),
            }
        }
        _ => Err(at(here, format!("a value is needed here, and this is {}", what_it_is(expr)))),
    }
}

fn interval(found: &Interval, here: Location) -> Result<i64> {
    let text = match (literal(&found.value), &found.leading_field, &found.last_field) {
        (Some(Literal::SingleQuotedString(text)), None, None) => text,
        _ => return Err(at(here, "an interval is written interval '5 minutes'")),
    };
    // Months and years have no fixed length, and nothing here is shorter than a millisecond.
    const UNITS: [&str; 23] = [
        "ms",
        "msec",
        "millis",
        "millisecond",
        "milliseconds",
        "s",
        "sec",
        "secs",
        "second",
        "seconds",
        "m",
        "min",
        "mins",
        "minute",
        "minutes",
        "h",
        "hr",
        "hrs",
        "hour",
        "hours",
        "d",
        "day",
        "days",
    ];
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let known = words.into_iter().all(|word| UNITS.contains(&word) || ["w", "week", "weeks"].contains(&word));
    // In SQL's words, which are more than those of a document.
    match humantime::parse_duration(text).map(Span) {
        Ok(span) if known && span <= MAX_OFFSET => Ok(span.as_millis()),
        _ => Err(at(here, format!("'{text}' is not an interval such as '5 minutes', '2 hours' or '7 days'"))),
    }
}

/// The id in `action('…')`; `None` for any other expression.
fn action_call(expr: &Expr, around: Location) -> Result<Option<Uuid>> {
    let call = match expr {
        Expr::Nested(inner) => return action_call(inner, around),
        Expr::Function(call) if is_call_of(call, "action") => call,
        _ => return Ok(None),
    };
    let text = match arguments(call) {
        Some([FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))]) => literal(argument),
        _ => None,
    };
    match text {
        Some(Literal::SingleQuotedString(text)) => match Uuid::parse_str(text) {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(at(place(expr, around), format!("'{text}' is not an action's id"))),
        },
        _ => Err(at(place(expr, around), "action needs an action's id in single quotes: action('…') = 'failed'")),
    }
}

fn state(expr: &Expr, around: Location) -> Result<CommandState> {
    let named = match literal(expr) {
        Some(Literal::SingleQuotedString(text)) => CommandState::ALL.into_iter().find(|state| state.as_str() == text),
        _ => None,
    };
    named.ok_or_else(|| {
        let all = CommandState::ALL.map(CommandState::as_str).join("', '");
        at(place(expr, around), format!("a command's state is needed here, one of '{all}'"))
    })
}
