//! What can go wrong with the store.
//!
//! One type for both halves. Callers ask only whether trying the same again can help ([`StoreError::is_transient`]); what is
//! wrong with the *data* of a request (a conflict, an unknown id) is an answer of the method, not an error.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// A failed call of the store. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store can't be reached, is busy, or is full: trying again can help.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store refused what it was told: trying the same again won't help.
    #[error("the store refused the call {during}: {source}")]
    Refused {
        /// What was being done.
        during: &'static str,
        /// What the database said.
        source: DieselError,
    },
    /// The store holds something that this version can't read.
    #[error("the store holds {0}")]
    Corrupt(String),
    /// The store can't be opened as it is configured.
    #[error("the store cannot be opened: {0}")]
    Unusable(String),
}

impl StoreError {
    /// Sorts an error of the database.
    pub fn from_diesel(during: &'static str, source: DieselError) -> Self {
        let transient = match &source {
            DieselError::DatabaseError(kind, info) => {
                let message = info.message();
                matches!(
                    kind,
                    DatabaseErrorKind::UnableToSendCommand
                        | DatabaseErrorKind::SerializationFailure
                        | DatabaseErrorKind::ClosedConnection
                ) || ["locked", "busy", "full", "disk I/O", "readonly", "unable to open"]
                    .iter()
                    .any(|word| message.contains(word))
            }
            DieselError::BrokenTransactionManager | DieselError::AlreadyInTransaction => true,
            _ => false,
        };
        if transient { Self::Unavailable(format!("{during}: {source}")) } else { Self::Refused { during, source } }
    }

    /// Whether trying the same again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
