//! Errors of a target expression, with their places in its text.

use sqlparser::tokenizer::Location;

/// Why a text is not a target expression, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct TargetError {
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// A sentence for people.
    pub message: String,
}

/// What reading a part of an expression gives.
pub(super) type Result<T> = std::result::Result<T, TargetError>;

/// An error at a place of the text.
pub(super) fn at(place: Location, message: impl Into<String>) -> TargetError {
    TargetError { line: place.line.max(1), column: place.column.max(1), message: message.into() }
}
