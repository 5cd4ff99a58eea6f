//! Errors of a target expression, with their positions in its text.

use sqlparser::tokenizer::Location;

/// Why a text is not a target expression, with its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct TargetError {
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1, in characters.
    pub column: u64,
    /// A message for people.
    pub message: String,
}

/// The result of reading a part of an expression.
pub(super) type Result<T> = std::result::Result<T, TargetError>;

/// An error at a position in the text.
pub(super) fn at(place: Location, message: impl Into<String>) -> TargetError {
    TargetError { line: place.line.max(1), column: place.column.max(1), message: message.into() }
}
