//! What is due: its rows, and statements that are the same for both databases.

use super::Transports;
use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::command::OpenState;
use crate::domain::time::Timestamp;
use crate::store::{Due, DuePage, StrayPage};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
use uuid::Uuid;

/// The key of a command.
#[derive(QueryableByName)]
pub(in crate::store) struct CommandKey {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) action_no: i64,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) agent_no: i64,
}

/// A command, and whether it has neither outcome nor open row.
#[derive(QueryableByName)]
pub(in crate::store) struct UntouchedRow {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) agent_no: i64,
    #[diesel(sql_type = Text)]
    pub(in crate::store) transport: String,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) due_at: i64,
    #[diesel(sql_type = Bool)]
    pub(in crate::store) untouched: bool,
}

/// A command to deliver.
#[derive(QueryableByName)]
pub(in crate::store) struct DueRow {
    #[diesel(sql_type = BigInt)]
    action_no: i64,
    #[diesel(sql_type = BigInt)]
    agent_no: i64,
    #[diesel(sql_type = Integer)]
    run: i32,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = BigInt)]
    due_at: i64,
    #[diesel(sql_type = Integer)]
    priority: i32,
    #[diesel(sql_type = Bool)]
    open: bool,
}

impl DueRow {
    pub(in crate::store) fn due(&self) -> Due {
        Due {
            action_no: self.action_no,
            agent_no: self.agent_no,
            run: self.run,
            attempts: self.attempts,
            due_at: Timestamp(self.due_at),
            priority: self.priority,
            open: self.open,
        }
    }
}

/// An open row. Only of commands that the reader delivers are the priority and the transport known.
#[derive(QueryableByName)]
pub(in crate::store) struct OpenRow {
    #[diesel(sql_type = BigInt)]
    action_no: i64,
    #[diesel(sql_type = BigInt)]
    agent_no: i64,
    #[diesel(sql_type = Integer)]
    run: i32,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = BigInt)]
    due_at: i64,
    #[diesel(sql_type = Nullable<Integer>)]
    priority: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    transport: Option<String>,
}

/// The page that these rows, up to `limit`, are.
pub(in crate::store) fn due_page(rows: Vec<OpenRow>, limit: usize) -> DuePage {
    let last = rows.last().filter(|_| rows.len() >= limit);
    let through = last.map(|row| (Timestamp(row.due_at), row.action_no, row.agent_no));
    let mut transports = Transports::default();
    let found = rows.into_iter().filter_map(|row| {
        let OpenRow { action_no, agent_no, run, attempts, due_at, .. } = row;
        let (priority, transport) = (row.priority?, row.transport?);
        let due = Due { action_no, agent_no, run, attempts, due_at: Timestamp(due_at), priority, open: true };
        Some((due, transports.share(transport)))
    });
    DuePage { found: found.collect(), through }
}

/// A row that waits for an agent that doesn't connect.
#[derive(QueryableByName)]
pub(in crate::store) struct StrayRow {
    #[diesel(sql_type = Text)]
    pub(in crate::store) transport: String,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) agent_no: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(in crate::store) action_no: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub(in crate::store) run: Option<i32>,
}

/// The page that these rows are: of each of up to `limit` agents one at least.
pub(in crate::store) fn stray_page(rows: Vec<StrayRow>, limit: usize) -> StrayPage {
    let mut agents: Vec<i64> = rows.iter().map(|row| row.agent_no).collect();
    agents.dedup();
    let last = rows.last().filter(|_| agents.len() >= limit);
    let through = last.map(|row| (row.transport.clone(), row.agent_no));
    let commands = rows.into_iter().filter_map(|row| Some((row.action_no?, row.agent_no, row.run?))).collect();
    StrayPage { commands, through }
}

/// A name and a number.
#[derive(QueryableByName)]
pub(in crate::store) struct Named {
    #[diesel(sql_type = Text)]
    pub(in crate::store) name: String,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) number: i64,
}

impl Named {
    /// The id that the name is, and the number.
    pub(in crate::store) fn of_id(self) -> QueryResult<(Uuid, i64)> {
        Ok((self.name.parse().map_err(corrupt)?, self.number))
    }
}

/// Selects the [`CommandKey`]s of overdue commands of actions with this owner, earliest first. Those of other owners are
/// passed over; they are few, since each owner gives its own up within seconds. `index` says which one to use, where the
/// database has to be told.
pub(in crate::store) fn overdue(index: &str, owner: &str, now: Timestamp, limit: usize) -> Sql {
    sql(format!(
        "SELECT action_no, agent_no FROM open_commands o {index} WHERE state = {} AND state <> 0 AND due_at <= ? \
         AND EXISTS (SELECT 1 FROM actions a WHERE a.no = o.action_no AND a.owner = ?) ORDER BY due_at LIMIT ?",
        OpenState::Sent as i16
    ))
    .bind(now.0)
    .bind(owner.to_owned())
    .bind(sql_limit(limit))
}
