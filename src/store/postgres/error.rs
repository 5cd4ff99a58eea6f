//! What goes wrong with PostgreSQL, sorted by whether trying again can help.
//!
//! diesel passes on only a few of the server's error codes as kinds; the rest comes without its code, and with a message
//! that may be in any language. Data is checked before it gets here (lengths, numbers, no NUL characters), so what the
//! server can't do for a reason that isn't named is taken for a reason of its own (locks, a deadlock, a full disk, a
//! shutdown), which passes. The few messages that say that a value is at fault are known in English.

use super::super::StoreError;
use diesel::result::{DatabaseErrorKind, Error};

/// A value that the server can't take, in English.
const AT_FAULT: [&str; 5] = [
    "invalid byte sequence",
    "unsupported Unicode escape sequence",
    "invalid input syntax",
    "out of range",
    "stack depth limit exceeded",
];

/// Sorts an error of the database.
pub(super) fn sort(during: &'static str, source: Error) -> StoreError {
    use DatabaseErrorKind as Kind;
    match &source {
        Error::DatabaseError(Kind::UnableToSendCommand | Kind::ClosedConnection, info) => {
            StoreError::Unavailable(format!("{during}: the connection broke: {}", info.message()))
        }
        Error::DatabaseError(Kind::SerializationFailure | Kind::ReadOnlyTransaction, _)
        | Error::BrokenTransactionManager
        | Error::AlreadyInTransaction => StoreError::Unavailable(format!("{during}: {source}")),
        Error::DatabaseError(Kind::Unknown, info) if !AT_FAULT.iter().any(|words| info.message().contains(words)) => {
            StoreError::Unavailable(format!("{during}: {source}"))
        }
        Error::DeserializationError(_) => StoreError::Corrupt(format!("what can't be read ({during}): {source}")),
        _ => StoreError::Refused { during, source },
    }
}

/// Whether the connection is of no more use.
pub(super) fn is_broken(error: &Error) -> bool {
    matches!(
        error,
        Error::DatabaseError(DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection, _)
            | Error::BrokenTransactionManager
            | Error::AlreadyInTransaction
    )
}

/// Whether the same transaction may well succeed when it is tried again at once.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(error, Error::DatabaseError(DatabaseErrorKind::SerializationFailure | DatabaseErrorKind::Unknown, _))
        || is_broken(error)
}
