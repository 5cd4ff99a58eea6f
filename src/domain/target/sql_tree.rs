//! Helpers for nodes of the SQL parser's tree: their positions, kinds and names.

use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArguments, Ident, InTarget, Spanned, Value as Literal};
use sqlparser::tokenizer::Location;

/// The position where an expression begins, or the nearest known one around it.
///
/// An expression begins where its leftmost part begins. The parser's own `span()` walks the whole
/// tree by recursion, with kilobytes of stack for each link of a chain as long as the text.
pub(super) fn place(expr: &Expr, around: Location) -> Location {
    let mut leftmost = expr;
    let start = loop {
        leftmost = match leftmost {
            Expr::BinaryOp { left, .. } | Expr::AnyOp { left, .. } | Expr::AllOp { left, .. } => left,
            Expr::Nested(inner)
            | Expr::IsNull(inner)
            | Expr::IsNotNull(inner)
            | Expr::IsTrue(inner)
            | Expr::IsNotTrue(inner)
            | Expr::IsFalse(inner)
            | Expr::IsNotFalse(inner)
            | Expr::IsDistinctFrom(inner, _)
            | Expr::IsNotDistinctFrom(inner, _) => inner,
            Expr::UnaryOp { expr, .. }
            | Expr::In { expr, .. }
            | Expr::Between { expr, .. }
            | Expr::Like { expr, .. }
            | Expr::ILike { expr, .. }
            | Expr::SimilarTo { expr, .. }
            | Expr::Cast { expr, .. }
            | Expr::Collate { expr, .. } => expr,
            Expr::CompoundFieldAccess { root, .. } => root,
            Expr::AtTimeZone { timestamp, .. } => timestamp,
            Expr::Interval(interval) => &interval.value,
            Expr::Identifier(name) => break name.span.start,
            Expr::CompoundIdentifier(names) => break names.first().map_or(around, |name| name.span.start),
            Expr::Value(literal) => break literal.span.start,
            Expr::TypedString(typed) => break typed.value.span.start,
            Expr::Function(call) => break call.name.span().start,
            Expr::Case { case_token, .. } => break case_token.0.span.start,
            _ => break around,
        }
    };
    if start.line == 0 { around } else { start }
}

/// The literal that an expression consists of, if it does.
pub(super) fn literal(expr: &Expr) -> Option<&Literal> {
    match expr {
        Expr::Value(literal) => Some(&literal.value),
        _ => None,
    }
}

/// A name as SQL compares it: as written in double quotes, otherwise in lower case.
pub(super) fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() }
}

/// Whether an expression is a plain call of this function, without any of SQL's extras.
pub(super) fn is_call_of(call: &Function, name: &str) -> bool {
    let [part] = call.name.0.as_slice() else { return false };
    part.as_ident().is_some_and(|ident| folded(ident) == name)
        && !call.uses_odbc_syntax
        && matches!(call.parameters, FunctionArguments::None)
        && call.filter.is_none()
        && call.null_treatment.is_none()
        && call.over.is_none()
        && call.within_group.is_empty()
}

/// The arguments of a call that has only arguments.
pub(super) fn arguments(call: &Function) -> Option<&[FunctionArg]> {
    match &call.args {
        FunctionArguments::List(list) if list.duplicate_treatment.is_none() && list.clauses.is_empty() => {
            Some(&list.args)
        }
        _ => None,
    }
}

/// Describes an expression for an error message.
pub(super) fn what_it_is(expr: &Expr) -> String {
    match expr {
        Expr::Function(call) => format!("the function {}", call.name),
        Expr::Subquery(_) | Expr::Exists { .. } => "a subquery".into(),
        Expr::In { target: InTarget::List(_), .. } => "this form of IN".into(),
        Expr::In { .. } => "IN with a subquery or table".into(),
        Expr::Cast { .. } | Expr::Convert { .. } | Expr::TypedString(_) => "a cast".into(),
        Expr::Case { .. } => "CASE".into(),
        Expr::Like { .. } | Expr::ILike { .. } => "LIKE with ANY or ESCAPE".into(),
        Expr::SimilarTo { .. } | Expr::RLike { .. } => "a regular expression".into(),
        Expr::Value(_) => format!("the value {expr}"),
        Expr::BinaryOp { op, .. } => format!("the operator {op}"),
        Expr::UnaryOp { op, .. } => format!("the operator {op}"),
        Expr::Interval(_) => "an interval".into(),
        _ => "this kind of expression".into(),
    }
}
