//! Errors of the store: one type for both databases.
//!
//! Callers need to know only whether trying again can help ([`StoreError::is_transient`]). A fault
//! in the *data* of a request (a conflict, an unknown id) is an answer of the method, not an error.

use diesel::result::Error as DieselError;
use std::fmt;

/// The result of a store method.
pub type StoreResult<T> = Result<T, StoreError>;

/// A failed call of the store. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store can't be reached, is busy, or is full: trying again can help.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store refused what it was told: trying the same again won't help.
    #[error("the store refused the call {during}{}", code.map(|code| format!(" ({code})")).unwrap_or_default())]
    Refused {
        /// What was being done.
        during: &'static str,
        /// The code, from a database that has codes.
        code: Option<SqlState>,
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

/// The five characters by which SQL names an error in every language (SQLSTATE).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub(super) [u8; 5]);

impl SqlState {
    /// As text. What isn't ASCII is no code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// The first two characters: what kind of error it is.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("??")
    }
}

impl std::str::FromStr for SqlState {
    type Err = std::array::TryFromSliceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.as_bytes().try_into().map(Self)
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl StoreError {
    /// Whether trying the same again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
