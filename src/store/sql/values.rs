//! Values that many statements take or return.

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use std::collections::HashMap;
use std::sync::Arc;

/// An error for a stored value that can't be read.
pub(in crate::store) fn corrupt(what: impl std::fmt::Display) -> diesel::result::Error {
    diesel::result::Error::DeserializationError(what.to_string().into())
}

/// A limit as SQL takes it.
pub(in crate::store) fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// One key.
#[derive(QueryableByName)]
pub(in crate::store) struct Key {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) key: i64,
}

/// Shares the names of transports: a fleet has few, and so one string each instead of one per
/// command.
#[derive(Default)]
pub(in crate::store) struct Transports(HashMap<String, Arc<str>>);

impl Transports {
    pub(in crate::store) fn share(&mut self, transport: String) -> Arc<str> {
        self.0.entry(transport).or_insert_with_key(|transport| transport.as_str().into()).clone()
    }
}
