//! Live membership: statements that are the same for both databases, and their rows.

use super::statement::{Sql, sql};
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};

/// The actions that agents can join at a time, which is to be bound.
const JOINABLE: &str = "live AND ended_at IS NULL AND resolved AND NOT cancelled AND NOT expired AND expires_at > ?";

/// An action that agents can join.
#[derive(QueryableByName)]
pub(in crate::store) struct Joinable {
    #[diesel(sql_type = Integer)]
    pub(in crate::store) priority: i32,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) valid_from: i64,
}

/// Selects the keys of the actions that agents can join.
pub(in crate::store) fn list(now: Timestamp) -> Sql {
    sql(format!("SELECT no AS key FROM actions WHERE {JOINABLE} ORDER BY no")).bind(now.0)
}

/// Selects an action as [`Joinable`]. `lock` is what PostgreSQL adds to lock it.
pub(in crate::store) fn joinable(action_no: i64, now: Timestamp, lock: &'static str) -> Sql {
    sql(format!("SELECT priority, valid_from FROM actions WHERE {JOINABLE} AND no = ?{lock}"))
        .bind(now.0)
        .bind(action_no)
}
