//! Errors of SQLite, sorted by whether trying again can help.

use crate::store::StoreError;
use diesel::result::{DatabaseErrorKind, Error};

/// The messages of SQLite when the file, the disk or another process is in the way. diesel hides
/// its codes; these texts are compiled into SQLite, one for each code, and are never translated.
const TRANSIENT: [&str; 11] = [
    "database is locked",
    "database table is locked",
    "database schema is locked",
    "locking protocol",
    "interrupted",
    "out of memory",
    "database or disk is full",
    "disk I/O error",
    "attempt to write a readonly database",
    "unable to open database file",
    "database schema has changed",
];

/// Sorts an error of SQLite.
pub(super) fn sort(during: &'static str, source: Error) -> StoreError {
    use DatabaseErrorKind as Kind;
    let transient = match &source {
        Error::DatabaseError(
            Kind::UnableToSendCommand | Kind::SerializationFailure | Kind::ClosedConnection | Kind::ReadOnlyTransaction,
            _,
        )
        | Error::BrokenTransactionManager
        | Error::AlreadyInTransaction => true,
        Error::DatabaseError(Kind::Unknown, info) => TRANSIENT.iter().any(|text| info.message().starts_with(text)),
        _ => false,
    };
    match source {
        source if transient => StoreError::Unavailable(format!("{during}: {source}")),
        Error::DeserializationError(_) => StoreError::Corrupt(format!("what can't be read ({during}): {source}")),
        source => StoreError::Refused { during, code: None, source },
    }
}
