//! SQL that both databases share: how a statement is made, the tables, targets as conditions, and
//! for each aggregate the rows that statements return, with those statements that are the same for
//! both.

pub(super) mod actions;
pub(super) mod agents;
pub(super) mod audit;
pub(super) mod commands;
pub(super) mod dispatch;
pub(super) mod filter;
pub(super) mod hooks;
pub(super) mod live;
pub(super) mod metadata;
pub(super) mod nodes;
pub(super) mod outcomes;
pub(super) mod schedules;
pub(super) mod schema;
pub(super) mod search;
pub(super) mod sessions;
mod statement;
pub(super) mod tokens;
mod values;

pub(super) use statement::{Sql, Statement, sql};
pub(super) use values::{Key, Transports, corrupt, sql_limit};
