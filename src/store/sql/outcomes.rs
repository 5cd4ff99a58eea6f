//! Commands as recording their outcomes needs them.

use super::commands::state;
use super::values::corrupt;
use crate::domain::command::{Known, Open, OpenState};
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, SmallInt, Text};

/// What is stored of one command.
#[derive(QueryableByName)]
pub(in crate::store) struct KnownRow {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) action_no: i64,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) agent_no: i64,
    #[diesel(sql_type = Bool)]
    cancelled: bool,
    #[diesel(sql_type = Nullable<Integer>)]
    last_run: Option<i32>,
    #[diesel(sql_type = Nullable<SmallInt>)]
    last_status: Option<i16>,
    #[diesel(sql_type = Nullable<Bool>)]
    last_final: Option<bool>,
    #[diesel(sql_type = Nullable<SmallInt>)]
    open_state: Option<i16>,
    #[diesel(sql_type = Nullable<Integer>)]
    open_run: Option<i32>,
    #[diesel(sql_type = Nullable<Integer>)]
    open_attempts: Option<i32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    open_due_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    open_sent_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    open_error: Option<String>,
}

impl KnownRow {
    pub(in crate::store) fn known(self) -> QueryResult<Known> {
        let open = match (self.open_state, self.open_run, self.open_attempts, self.open_due_at) {
            (Some(state), Some(run), Some(attempts), Some(due_at)) => Some(Open {
                state: OpenState::from_code(state).ok_or_else(|| corrupt(format!("an unknown open state, {state}")))?,
                run,
                attempts,
                due_at: Timestamp(due_at),
                sent_at: self.open_sent_at.map(Timestamp),
                error: self.open_error.map(Into::into),
            }),
            _ => None,
        };
        let last = match (self.last_run, self.last_status, self.last_final) {
            (Some(run), Some(status), Some(is_final)) => Some((run, is_final.then_some(state(status)?))),
            _ => None,
        };
        Ok(Known { exists: true, cancelled: self.cancelled, open, last })
    }
}
