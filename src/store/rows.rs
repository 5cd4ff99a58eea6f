//! Rows as the databases answer them, and how they become what the store's methods answer. The same for both halves.

mod agents;

pub(super) use agents::{AgentViewRow, AuditRow, NODES, Named, NodeRow, TokenRow, agent_view};

use super::models::{ActionView, CommandView, Due, OpenAction};
use super::schema::actions;
use crate::domain::action::{Action, ActionState, Membership, NewAction};
use crate::domain::audit::Author;
use crate::domain::command::{CommandState, Known, Open, OpenState};
use crate::domain::counts::Counts;
use crate::domain::time::{Span, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, SmallInt, Text};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Turns what a row holds into an error that says so.
pub(super) fn corrupt(what: impl std::fmt::Display) -> diesel::result::Error {
    diesel::result::Error::DeserializationError(what.to_string().into())
}

/// A limit as SQL takes it.
pub(super) fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// One key.
#[derive(QueryableByName)]
pub(super) struct Key {
    #[diesel(sql_type = BigInt)]
    pub(super) key: i64,
}

/// The key of a command.
#[derive(QueryableByName)]
pub(super) struct CommandKey {
    #[diesel(sql_type = BigInt)]
    pub(super) action_no: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) agent_no: i64,
}

/// An action's row, as far as users see it.
#[derive(Queryable, Selectable, QueryableByName)]
#[diesel(table_name = actions)]
pub(super) struct ActionViewRow {
    pub(super) no: i64,
    id: String,
    name: String,
    document: String,
    created_at: i64,
    resolved: bool,
    paused: bool,
    cancelled: bool,
    expired: bool,
    expected_total: Option<i64>,
    live: bool,
    ended_at: Option<i64>,
}

impl ActionViewRow {
    pub(super) fn view(self, sums: Sums) -> QueryResult<ActionView> {
        let status = self.state();
        Ok(ActionView {
            no: self.no,
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            name: self.name,
            status,
            created_at: Timestamp(self.created_at),
            // Agents may join a live action until its end.
            counts: sums.counts(self.resolved && (!self.live || self.cancelled || self.ended_at.is_some())),
            document: RawValue::from_string(self.document).map_err(corrupt)?,
        })
    }

    /// The state that users see.
    fn state(&self) -> ActionState {
        match self {
            Self { cancelled: true, .. } => ActionState::Cancelled,
            Self { expired: true, .. } => ActionState::Expired,
            Self { ended_at: Some(_), .. } => ActionState::Completed,
            Self { paused: true, .. } => ActionState::Paused,
            Self { resolved: true, .. } => ActionState::Running,
            Self { expected_total: Some(_), .. } => ActionState::Resolving,
            _ => ActionState::Scheduled,
        }
    }
}

/// The mirror of [`ActionViewRow::state`]: the rows that are in a state.
pub(super) fn in_state(state: ActionState) -> &'static str {
    match state {
        ActionState::Cancelled => "cancelled",
        ActionState::Expired => "expired AND NOT cancelled",
        ActionState::Completed => "ended_at IS NOT NULL AND NOT cancelled AND NOT expired",
        ActionState::Paused => "ended_at IS NULL AND NOT cancelled AND NOT expired AND paused",
        ActionState::Running => "ended_at IS NULL AND NOT cancelled AND NOT expired AND NOT paused AND resolved",
        ActionState::Resolving => {
            "ended_at IS NULL AND NOT cancelled AND NOT expired AND NOT paused AND NOT resolved \
             AND expected_total IS NOT NULL"
        }
        ActionState::Scheduled => {
            "ended_at IS NULL AND NOT cancelled AND NOT expired AND NOT paused AND NOT resolved AND expected_total IS NULL"
        }
    }
}

/// An action's counters, summed over the lanes.
#[derive(QueryableByName)]
pub(super) struct Sums {
    #[diesel(sql_type = BigInt)]
    n_total: i64,
    #[diesel(sql_type = BigInt)]
    n_sent: i64,
    #[diesel(sql_type = BigInt)]
    n_succeeded: i64,
    #[diesel(sql_type = BigInt)]
    n_failed: i64,
    #[diesel(sql_type = BigInt)]
    n_timed_out: i64,
    #[diesel(sql_type = BigInt)]
    n_undeliverable: i64,
    #[diesel(sql_type = BigInt)]
    n_expired: i64,
    #[diesel(sql_type = BigInt)]
    n_cancelled: i64,
}

impl Sums {
    pub(super) fn counts(self, resolved: bool) -> Counts {
        let mut counts = Counts {
            total: self.n_total,
            resolved,
            pending: 0,
            sent: self.n_sent,
            succeeded: self.n_succeeded,
            failed: self.n_failed,
            timed_out: self.n_timed_out,
            undeliverable: self.n_undeliverable,
            expired: self.n_expired,
            cancelled: self.n_cancelled,
        };
        counts.pending = counts.total - counts.sent - counts.finished();
        counts
    }
}

/// An action's row, as the pipeline needs it.
#[derive(Queryable, Selectable, QueryableByName)]
#[diesel(table_name = actions)]
pub(super) struct ActionRow {
    no: i64,
    id: String,
    name: String,
    target: String,
    document: String,
    operations: String,
    digest: Vec<u8>,
    valid_from: i64,
    expires_at: i64,
    spread_ms: i64,
    timeout_ms: i64,
    max_deliveries: Option<i32>,
    max_runs: i32,
    live: bool,
    priority: i32,
    cancelled: bool,
    paused: bool,
}

impl ActionRow {
    pub(super) fn action(self) -> QueryResult<Action> {
        let span = |millis: i64| Span(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
        let new = NewAction {
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            idempotency_key: None,
            author: Author::server("server"),
            document: self.document,
            digest: self.digest,
            operations: self.operations,
            name: self.name,
            target: self.target,
            valid_from: Timestamp(self.valid_from),
            expires_at: Timestamp(self.expires_at),
            spread: span(self.spread_ms),
            timeout: span(self.timeout_ms),
            max_deliveries: self.max_deliveries,
            max_runs: self.max_runs,
            membership: if self.live { Membership::Live } else { Membership::Frozen },
            priority: self.priority,
        };
        Action::from_new(self.no, &new, self.cancelled, self.paused).map_err(corrupt)
    }
}

/// An action as the reconcilers see it.
#[derive(QueryableByName)]
pub(super) struct OpenActionRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    valid_from: i64,
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
    #[diesel(sql_type = Bool)]
    live: bool,
    #[diesel(sql_type = Bool)]
    owned: bool,
    #[diesel(sql_type = Bool)]
    resolved: bool,
    #[diesel(sql_type = Bool)]
    cancelled: bool,
    #[diesel(sql_type = Bool)]
    paused: bool,
    #[diesel(sql_type = Bool)]
    expired: bool,
    #[diesel(sql_type = BigInt)]
    resolved_through: i64,
    #[diesel(sql_type = BigInt)]
    dispatched_through: i64,
    #[diesel(sql_type = BigInt)]
    unfinished: i64,
    #[diesel(sql_type = BigInt)]
    sent: i64,
}

impl From<OpenActionRow> for OpenAction {
    fn from(row: OpenActionRow) -> Self {
        Self {
            no: row.no,
            valid_from: Timestamp(row.valid_from),
            expires_at: Timestamp(row.expires_at),
            live: row.live,
            owned: row.owned,
            resolved: row.resolved,
            cancelled: row.cancelled,
            paused: row.paused,
            expired: row.expired,
            resolved_through: row.resolved_through,
            dispatched_through: row.dispatched_through,
            unfinished: row.unfinished,
            sent: row.sent,
        }
    }
}

/// A command that may have been touched, in key order.
#[derive(QueryableByName)]
pub(super) struct UntouchedRow {
    #[diesel(sql_type = BigInt)]
    pub(super) agent_no: i64,
    #[diesel(sql_type = Text)]
    pub(super) transport: String,
    #[diesel(sql_type = BigInt)]
    pub(super) due_at: i64,
    #[diesel(sql_type = Bool)]
    pub(super) untouched: bool,
}

/// A command that is to be delivered.
#[derive(QueryableByName)]
pub(super) struct DueRow {
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
    #[diesel(sql_type = Text)]
    pub(super) transport: String,
}

impl DueRow {
    pub(super) fn due(&self) -> Due {
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

/// A fleet has few transports: one string each, not one per command.
#[derive(Default)]
pub(super) struct Transports(HashMap<String, Arc<str>>);

impl Transports {
    pub(super) fn share(&mut self, transport: String) -> Arc<str> {
        self.0.entry(transport).or_insert_with_key(|transport| transport.as_str().into()).clone()
    }
}

/// A command as users see it.
#[derive(QueryableByName)]
pub(super) struct CommandViewRow {
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
    finished_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    results: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    error: Option<String>,
}

impl CommandViewRow {
    pub(super) fn view(self) -> QueryResult<CommandView> {
        Ok(CommandView {
            agent: self.agent,
            status: state(self.status)?,
            attempts: self.attempts,
            runs: self.runs,
            due_at: Timestamp(self.due_at),
            sent_at: self.sent_at.map(Timestamp),
            finished_at: self.finished_at.map(Timestamp),
            results: self.results.map(|json| serde_json::from_str(&json)).transpose().map_err(corrupt)?,
            error: self.error,
        })
    }
}

fn state(code: i16) -> QueryResult<CommandState> {
    CommandState::from_code(code).ok_or_else(|| corrupt(format!("an unknown state, {code}")))
}

/// What the store holds of one command.
#[derive(QueryableByName)]
pub(super) struct KnownRow {
    #[diesel(sql_type = BigInt)]
    pub(super) action_no: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) agent_no: i64,
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
}

impl KnownRow {
    pub(super) fn known(&self) -> QueryResult<Known> {
        let open = match (self.open_state, self.open_run, self.open_attempts, self.open_due_at) {
            (Some(state), Some(run), Some(attempts), Some(due_at)) => Some(Open {
                state: OpenState::from_code(state).ok_or_else(|| corrupt(format!("an unknown open state, {state}")))?,
                run,
                attempts,
                due_at: Timestamp(due_at),
                sent_at: self.open_sent_at.map(Timestamp),
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
