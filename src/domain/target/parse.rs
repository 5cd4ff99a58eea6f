//! Parses a text into a target: limits, the SQL parser, and the positions of its errors.

use super::convert::target;
use super::error::{TargetError, at};
use super::expression::Target;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

/// The longest expression in bytes. A list of thousands of names fits.
pub const MAX_TEXT: usize = 64 * 1024;
/// Maximum nesting of parentheses and NOT, in steps of the parser.
const MAX_DEPTH: usize = 200;
/// Stack for the parser, reserved during one call and only touched as far as needed. `a OR a OR …`
/// makes a tree as deep as the text is long, and the parser drops it by recursion. In debug builds
/// the worst known text of 64 KiB needs less than 4 MiB. A thread's usual 2 MiB, partly used by the
/// caller, might not be enough.
const STACK: usize = 32 * 1024 * 1024;

impl Target {
    /// Parses an expression of the interface's section 3.
    ///
    /// Accepts any text without panicking, in time that grows with its length.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text.len() > MAX_TEXT {
            let message = format!("the expression has {} bytes, and at most {MAX_TEXT} are allowed", text.len());
            return Err(TargetError { line: 1, column: 1, message });
        }
        stacker::grow(STACK, || parse(text))
    }
}

fn parse(text: &str) -> Result<Target, TargetError> {
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, text).tokenize_with_location().map_err(|error| TargetError {
        line: error.location.line.max(1),
        column: error.location.column.max(1),
        message: format!("this can't be read: {}", error.message),
    })?;
    let end = end_of(text);
    for token in &tokens {
        if let Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)) = token.token {
            return Err(at(token.span.start, "comments are not allowed in a target"));
        }
    }
    let significant = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_) | Token::EOF);
    let Some(first) = tokens.iter().find(significant).map(|token| token.span.start) else {
        return Err(at(end, "the expression is empty; TRUE is the whole fleet"));
    };
    let mut parser = Parser::new(&dialect).with_recursion_limit(MAX_DEPTH).with_tokens_with_locations(tokens);
    let expression = match parser.parse_expr() {
        Ok(expression) => expression,
        Err(error) => {
            let next = parser.peek_token();
            let here = if next.token == Token::EOF || next.span.start.line == 0 { end } else { next.span.start };
            return Err(syntax_error(error, here, end));
        }
    };
    let next = parser.peek_token();
    if next.token != Token::EOF {
        let message = format!("nothing may follow the expression, and here is {}", next.token);
        return Err(at(next.span.start, message));
    }
    target(&expression, first)
}

/// The parser writes the position into its message, unless it is the end of the text.
fn syntax_error(error: ParserError, here: Location, end: Location) -> TargetError {
    let message = match error {
        ParserError::RecursionLimitExceeded => return at(here, "the expression is nested too deeply"),
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
    };
    let place = message.rsplit_once(" at Line: ").and_then(|(what, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((what, Location { line: line.parse().ok()?, column: column.trim().parse().ok()? }))
    });
    match place {
        Some((what, place)) => at(place, sentence(what)),
        None if message.contains("found: EOF") => at(end, sentence(&message)),
        None => at(here, sentence(&message)),
    }
}

fn sentence(message: &str) -> String {
    message.replacen("Expected: ", "expected ", 1).replacen(", found: ", ", and found ", 1).replace("EOF", "the end")
}

/// The position after the last character.
fn end_of(text: &str) -> Location {
    let line = text.matches('\n').count() as u64 + 1;
    let last = text.rsplit('\n').next().unwrap_or_default();
    Location { line, column: last.chars().count() as u64 + 1 }
}
