//! Errors of PostgreSQL, sorted by whether trying again can help.
//!
//! The code (SQLSTATE) decides, which [`tap`](super::tap) reads, and never the message, which is in
//! the server's language. Refused is what is wrong with a value, or with a statement: the same
//! again fails again. Everything else passes or is fixed by an operator (no room, no rights, a
//! table that a dump has locked, a shutdown), and so do codes that aren't known here: nothing is
//! dropped for them. If a value is at fault after all, the batcher finds it.

use crate::store::{SqlState, StoreError};
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error};

/// Whether waiting, or an operator, can make an error with this code go away.
fn passes(code: SqlState) -> bool {
    match (code.class(), code.as_str()) {
        // Rights that were revoked; a table, a column or a function that somebody dropped, or that
        // isn't there yet.
        ("42", "42501" | "42P01" | "42703" | "42883") => true,
        // Feature not supported, data, constraints, syntax, program limits (a value too large for
        // an index).
        ("0A" | "22" | "23" | "42" | "54", _) => false,
        // 08 connection, 25 read only, 28 and 3D logins and databases, 40 rollback, 53 resources,
        // 55 and 57 locks, timeouts and shutdowns, 58 the system, XX the server itself, and what
        // isn't known.
        _ => true,
    }
}

/// The same without a code: what diesel makes of it.
fn kind_passes(kind: &DatabaseErrorKind) -> bool {
    use DatabaseErrorKind as Kind;
    !matches!(
        kind,
        Kind::UniqueViolation
            | Kind::ForeignKeyViolation
            | Kind::NotNullViolation
            | Kind::CheckViolation
            | Kind::RestrictViolation
            | Kind::ExclusionViolation
    )
}

/// Sorts an error of the database. `code` is that of the connection's last error.
pub(super) fn sort(during: &'static str, source: Error, code: Option<SqlState>) -> StoreError {
    let coded = code.map(|code| format!(" ({code})")).unwrap_or_default();
    match &source {
        Error::DatabaseError(DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection, info) => {
            StoreError::Unavailable(format!("{during}: the connection broke: {}{coded}", info.message()))
        }
        Error::DatabaseError(kind, _) if code.map_or_else(|| kind_passes(kind), passes) => {
            StoreError::Unavailable(format!("{during}: {source}{coded}"))
        }
        Error::DatabaseError(..) => StoreError::Refused { during, code, source },
        Error::BrokenTransactionManager | Error::AlreadyInTransaction => {
            StoreError::Unavailable(format!("{during}: {source}"))
        }
        Error::DeserializationError(_) => StoreError::Corrupt(format!("what can't be read ({during}): {source}")),
        _ => StoreError::Refused { during, code: None, source },
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
pub(super) fn may_pass(error: &Error, code: Option<SqlState>) -> bool {
    match error {
        Error::DatabaseError(kind, _) => is_broken(error) || code.map_or_else(|| kind_passes(kind), passes),
        _ => is_broken(error),
    }
}

/// Sorts an error of connecting.
pub(super) fn not_connected(error: ConnectionError) -> StoreError {
    match error {
        ConnectionError::InvalidConnectionUrl(told) => StoreError::Unusable(told),
        ConnectionError::BadConnection(told) => StoreError::Unavailable(told),
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// Whether a write was refused because a row with the same key exists.
pub(super) fn is_duplicate(error: &StoreError) -> bool {
    let unique = DatabaseErrorKind::UniqueViolation;
    matches!(error, StoreError::Refused { source: Error::DatabaseError(kind, _), .. } if *kind == unique)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whether_it_passes() {
        for code in ["08006", "25006", "28P01", "40001", "40P01", "42501", "42P01", "53100", "53300", "55P03", "57014"]
        {
            assert!(passes(code.parse().expect("a code")), "{code}");
        }
        for code in ["57P01", "58030", "XX000", "XX001", "P0001", "ZZ999"] {
            assert!(passes(code.parse().expect("a code")), "{code}");
        }
        for code in ["0A000", "22021", "22P05", "22003", "23505", "23514", "42601", "42804", "54000", "54001"] {
            assert!(!passes(code.parse().expect("a code")), "{code}");
        }
    }
}
