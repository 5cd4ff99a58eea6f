//! The names of columns, in all their spellings, including MIG's.

use super::error::{Result, at};
use super::expression::Column;
use super::sql_tree::{folded, literal, place, what_it_is};
use sqlparser::ast::{BinaryOperator, Expr, Ident, Value as Literal};
use sqlparser::tokenizer::Location;

/// The longest path into facts. No facts are nested deeper.
const MAX_PATH: usize = 64;

/// A column: a name, dotted names, or a name and JSON arrows.
pub(super) fn column(expr: &Expr, around: Location) -> Result<Column> {
    let here = place(expr, around);
    let mut names: &[Ident] = &[];
    let mut keys: Vec<String> = Vec::new();
    let mut as_text = None;
    let mut rest = expr;
    loop {
        match rest {
            Expr::Nested(inner) => rest = inner,
            Expr::Identifier(name) => names = std::slice::from_ref(name),
            Expr::CompoundIdentifier(parts) => names = parts,
            Expr::BinaryOp { left, op, right } if is_arrow(op) => {
                let text = matches!(op, BinaryOperator::LongArrow | BinaryOperator::HashLongArrow);
                if as_text.is_some() && text {
                    return Err(at(here, format!("{op} gives text, and so it must be the last arrow")));
                }
                as_text = as_text.or(Some(text));
                let mut more = arrow_keys(op, right, around)?;
                more.extend(keys);
                keys = more;
                if keys.len() > MAX_PATH {
                    return Err(at(here, format!("the path has more than {MAX_PATH} keys")));
                }
                rest = left;
            }
            _ => return Err(at(here, format!("a column is needed here, and this is {}", what_it_is(expr)))),
        }
        if !names.is_empty() {
            break;
        }
    }
    if as_text == Some(false) {
        return Err(at(here, "-> and #> give JSON; use ->> or #>> for the last step to get text"));
    }
    if let [first, _, ..] = names
        && folded(first) == "agents"
    {
        names = &names[1..];
    }
    let (first, more) = names.split_first().ok_or_else(|| at(here, "a column is needed here"))?;
    let path: Vec<String> = more.iter().map(|name| name.value.clone()).chain(keys).collect();
    if path.iter().any(|key| key.contains('\0')) {
        return Err(at(here, "a key can't hold a NUL character"));
    }
    named(&folded(first), path, here)
}

fn named(name: &str, path: Vec<String>, here: Location) -> Result<Column> {
    let plain = match name {
        "name" => Some(Column::Name),
        "transport" => Some(Column::Transport),
        "status" => Some(Column::Status),
        "version" => Some(Column::Version),
        "last_seen" => Some(Column::LastSeen),
        "enrolled_at" => Some(Column::EnrolledAt),
        "queueloc" => Some(Column::QueueLoc),
        "mode" => Some(Column::Fact(vec!["mode".into()])),
        _ => None,
    };
    if let Some(column) = plain {
        return if path.is_empty() { Ok(column) } else { Err(at(here, format!("{name} has no keys inside of it"))) };
    }
    match name {
        "labels" | "tags" => single(name, path, here).map(Column::Label),
        "metadata" => single(name, path, here).map(Column::Metadata),
        "facts" | "environment" | "env" => {
            if path.is_empty() {
                return Err(at(here, format!("{name} needs a key: {name}.KEY")));
            }
            let negative = |key: &String| {
                key.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            };
            match path.iter().find(|key| negative(key)) {
                Some(key) => Err(at(here, format!("the index {key} from the end of a list is not allowed"))),
                None => Ok(Column::Fact(path)),
            }
        }
        _ => Err(at(
            here,
            format!(
                "there is no column {name}; there are name, transport, status, version, last_seen, enrolled_at, \
                 labels.KEY, facts.KEY and metadata.KEY, and texts are written in single quotes"
            ),
        )),
    }
}

fn single(name: &str, mut path: Vec<String>, here: Location) -> Result<String> {
    match (path.pop(), path.is_empty()) {
        (Some(key), true) => Ok(key),
        (None, _) => Err(at(here, format!("{name} needs a key: {name}.KEY"))),
        (Some(_), false) => Err(at(here, format!("{name} has one key; one with dots is written {name}.\"a.b\""))),
    }
}

fn is_arrow(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Arrow, HashArrow, HashLongArrow, LongArrow};
    matches!(op, Arrow | LongArrow | HashArrow | HashLongArrow)
}

fn arrow_keys(op: &BinaryOperator, right: &Expr, around: Location) -> Result<Vec<String>> {
    let here = place(right, around);
    match (op, literal(right)) {
        (BinaryOperator::Arrow | BinaryOperator::LongArrow, Some(Literal::SingleQuotedString(key))) => {
            Ok(vec![key.clone()])
        }
        (BinaryOperator::Arrow | BinaryOperator::LongArrow, Some(Literal::Number(index, false)))
            if index.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Ok(vec![index.clone()])
        }
        (BinaryOperator::HashArrow | BinaryOperator::HashLongArrow, Some(Literal::SingleQuotedString(path))) => {
            array_literal(path).ok_or_else(|| at(here, format!("'{path}' is not a path such as '{{a,b}}'")))
        }
        _ => Err(at(here, format!("{op} needs a key in single quotes"))),
    }
}

/// PostgreSQL's text form of an array of texts: `{a,"b c",d}`.
fn array_literal(text: &str) -> Option<Vec<String>> {
    let inside = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut items = Vec::new();
    let mut letters = inside.chars().peekable();
    loop {
        while letters.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let mut item = String::new();
        if letters.next_if_eq(&'"').is_some() {
            loop {
                match letters.next()? {
                    '"' => break,
                    '\\' => item.push(letters.next()?),
                    letter => item.push(letter),
                }
            }
            while letters.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        } else {
            while let Some(letter) = letters.next_if(|c| *c != ',') {
                match letter {
                    '{' | '}' | '"' => return None,
                    '\\' => item.push(letters.next()?),
                    letter => item.push(letter),
                }
            }
            item.truncate(item.trim_end().len());
            if item.is_empty() || item.eq_ignore_ascii_case("null") {
                return None;
            }
        }
        items.push(item);
        match letters.next() {
            None => return Some(items),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}
