//! Commands: their rows, and statements that are the same for both databases.

use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::command::CommandState;
use crate::domain::time::Timestamp;
use crate::store::CommandView;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text};

/// A command as users see it.
#[derive(QueryableByName)]
pub(in crate::store) struct CommandViewRow {
    #[diesel(sql_type = Text)]
    agent: String,
    #[diesel(sql_type = SmallInt)]
    status: i16,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Integer)]
    runs: i32,
    #[diesel(sql_type = BigInt)]
    due_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    sent_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    started_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    finished_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    results: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    error: Option<String>,
}

impl CommandViewRow {
    pub(in crate::store) fn view(self) -> QueryResult<CommandView> {
        Ok(CommandView {
            agent: self.agent,
            status: state(self.status)?,
            attempts: self.attempts,
            runs: self.runs,
            due_at: Timestamp(self.due_at),
            sent_at: self.sent_at.map(Timestamp),
            started_at: self.started_at.map(Timestamp),
            finished_at: self.finished_at.map(Timestamp),
            results: self.results.map(|json| serde_json::from_str(&json)).transpose().map_err(corrupt)?,
            error: self.error,
        })
    }
}

/// The state that has this code.
pub(in crate::store) fn state(code: i16) -> QueryResult<CommandState> {
    CommandState::from_code(code).ok_or_else(|| corrupt(format!("an unknown state, {code}")))
}

/// Selects the agent key of the `count`th command of an action after a key.
pub(in crate::store) fn key_after(action_no: i64, after: i64, count: usize) -> Sql {
    sql("SELECT agent_no AS key FROM commands WHERE action_no = ? AND agent_no > ? ORDER BY agent_no LIMIT 1 OFFSET ?")
        .bind(action_no)
        .bind(after)
        .bind(sql_limit(count.saturating_sub(1)))
}
