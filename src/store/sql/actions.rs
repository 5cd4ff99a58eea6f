//! Actions: their rows, and statements that are the same for both databases.

use super::schema::actions;
use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::action::{Action, ActionState, Membership, NewAction};
use crate::domain::audit::Author;
use crate::domain::counts::Counts;
use crate::domain::time::{Span, Timestamp};
use crate::store::{Accepted, ActionView, OpenAction, Unresolved};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use serde_json::value::RawValue;
use std::time::Duration;
use uuid::Uuid;

/// An action's row, as far as users see it.
#[derive(Queryable, Selectable, QueryableByName)]
#[diesel(table_name = actions)]
pub(in crate::store) struct ActionViewRow {
    pub(in crate::store) no: i64,
    id: String,
    name: String,
    document: String,
    created_at: i64,
    resolved: bool,
    paused: bool,
    cancelled: bool,
    expired: bool,
    expected_total: Option<i64>,
    resolved_through: i64,
    live: bool,
    ended_at: Option<i64>,
    created_by: Option<String>,
    scheduled_for: Option<i64>,
    retry_of: Option<String>,
}

impl ActionViewRow {
    /// The action's id and state.
    pub(in crate::store) fn standing(&self) -> QueryResult<(Uuid, ActionState)> {
        Ok((Uuid::parse_str(&self.id).map_err(corrupt)?, self.state()))
    }

    pub(in crate::store) fn view(self, sums: Sums) -> QueryResult<ActionView> {
        let status = self.state();
        Ok(ActionView {
            no: self.no,
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            name: self.name,
            status,
            created_at: Timestamp(self.created_at),
            created_by: self.created_by,
            scheduled_for: self.scheduled_for.map(Timestamp),
            retry_of: self.retry_of.as_deref().map(Uuid::parse_str).transpose().map_err(corrupt)?,
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
            Self { expected_total: None, resolved_through: 0, .. } => ActionState::Scheduled,
            _ => ActionState::Resolving,
        }
    }
}

/// Condition: the action is in a state. The mirror of [`ActionViewRow::state`].
pub(in crate::store) fn in_state(state: ActionState) -> &'static str {
    match state {
        ActionState::Cancelled => "cancelled",
        ActionState::Expired => "expired AND NOT cancelled",
        ActionState::Completed => "ended_at IS NOT NULL AND NOT cancelled AND NOT expired",
        ActionState::Paused => "ended_at IS NULL AND NOT cancelled AND NOT expired AND paused",
        ActionState::Running => "ended_at IS NULL AND NOT cancelled AND NOT expired AND NOT paused AND resolved",
        ActionState::Resolving => {
            "ended_at IS NULL AND NOT cancelled AND NOT expired AND NOT paused AND NOT resolved \
             AND (expected_total IS NOT NULL OR resolved_through <> 0)"
        }
        ActionState::Scheduled => {
            "ended_at IS NULL AND NOT cancelled AND NOT expired AND NOT paused AND NOT resolved \
             AND expected_total IS NULL AND resolved_through = 0"
        }
    }
}

/// Selects unresolved actions, of this owner or of all, as [`UnresolvedRow`]s.
pub(in crate::store) fn list_unresolved(
    owner: Option<&str>,
    horizon: Timestamp,
    after: (Timestamp, i64),
    limit: usize,
) -> Sql {
    let list = "SELECT valid_from, no, resolved_through, expected_total FROM actions WHERE ended_at IS NULL AND NOT resolved AND (valid_from, no) > (?, ?) \
                AND valid_from <= ?";
    let list = sql(list).bind(after.0.0).bind(after.1).bind(horizon.0);
    let list = match owner {
        Some(owner) => list.and(" AND owner = ?").bind(owner),
        None => list,
    };
    list.and(" ORDER BY valid_from, no LIMIT ?").bind(sql_limit(limit))
}

/// An unresolved action.
#[derive(QueryableByName)]
pub(in crate::store) struct UnresolvedRow {
    #[diesel(sql_type = BigInt)]
    valid_from: i64,
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    resolved_through: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    expected_total: Option<i64>,
}

impl From<UnresolvedRow> for Unresolved {
    fn from(row: UnresolvedRow) -> Self {
        let UnresolvedRow { valid_from, no, resolved_through: through, expected_total: expected } = row;
        Self { valid_from: Timestamp(valid_from), no, through, expected }
    }
}

/// Stores the number of agents of an action, unless one is stored, and returns the stored one.
pub(in crate::store) fn expect(no: i64, agents: i64) -> Sql {
    sql("UPDATE actions SET expected_total = coalesce(expected_total, ?) WHERE no = ? RETURNING expected_total AS key")
        .bind(agents)
        .bind(no)
}

/// The ids, as texts, that begin so: the first that there may be, and one after the last.
pub(in crate::store) fn ids(beginning: &str) -> (String, String) {
    // Ids are made of 0-9, a-f and dashes.
    (beginning.to_owned(), format!("{beginning}g"))
}

/// The columns of an [`ActionViewRow`] of an action `a` whose document isn't needed. Thousands of
/// actions may end at a time, and documents are large.
pub(in crate::store) const WITHOUT_DOCUMENT: &str = "a.no, a.id, a.name, 'null' AS document, a.created_at, a.resolved, \
     a.paused, a.cancelled, a.expired, a.expected_total, a.resolved_through, a.live, a.ended_at, a.created_by, \
     a.scheduled_for, a.retry_of";

/// An action's counters, summed over the lanes.
#[derive(QueryableByName)]
pub(in crate::store) struct Sums {
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
    pub(in crate::store) fn counts(self, resolved: bool) -> Counts {
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
#[derive(QueryableByName)]
#[diesel(table_name = actions)]
pub(in crate::store) struct ActionRow {
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
    scheduled_for: Option<i64>,
}

impl ActionRow {
    pub(in crate::store) fn action(self) -> QueryResult<Action> {
        let span = |millis: i64| Span(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
        let new = NewAction {
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            idempotency_key: None,
            scheduled_for: self.scheduled_for.map(Timestamp),
            retry_of: None,
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
pub(in crate::store) struct OpenActionRow {
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

/// A stored action that has the same idempotency key or id as a new one.
#[derive(QueryableByName)]
pub(in crate::store) struct Stored {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Binary)]
    digest: Vec<u8>,
}

impl Stored {
    /// The answer for a new action, if it is the same as this one, else `otherwise`.
    pub(in crate::store) fn accept(self, new: &NewAction, otherwise: Accepted) -> QueryResult<Accepted> {
        if self.digest != new.digest {
            return Ok(otherwise);
        }
        Ok(Accepted::Stored { id: Uuid::parse_str(&self.id).map_err(corrupt)?, no: self.no, is_new: false })
    }
}

/// Inserts an action unless one with its id or its idempotency key is stored, and returns its key.
pub(in crate::store) fn insert(new: &NewAction, owner: &str, now: Timestamp) -> Sql {
    sql(
        "INSERT INTO actions (id, idempotency_key, name, target, document, operations, digest, created_at, valid_from, \
         expires_at, spread_ms, timeout_ms, max_deliveries, max_runs, live, priority, owner, created_by, \
         scheduled_for, retry_of) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING no AS key",
    )
    .bind(new.id.to_string())
    .bind(new.idempotency_key.clone())
    .bind(new.name.as_str())
    .bind(new.target.as_str())
    .bind(new.document.as_str())
    .bind(new.operations.as_str())
    .bind(new.digest.clone())
    .bind(now.0)
    .bind(new.valid_from.0)
    .bind(new.expires_at.0)
    .bind(new.spread.as_millis())
    .bind(new.timeout.as_millis())
    .bind(new.max_deliveries)
    .bind(new.max_runs)
    .bind(new.membership == Membership::Live)
    .bind(new.priority)
    .bind(owner)
    .bind(new.author.name.as_str())
    .bind(new.scheduled_for.map(|time| time.0))
    .bind(new.retry_of.map(|id| id.to_string()))
}

/// Selects the [`Stored`] action with this idempotency key.
pub(in crate::store) fn with_key(idempotency_key: Option<&str>) -> Sql {
    sql("SELECT no, id, digest FROM actions WHERE idempotency_key = ?").bind(idempotency_key.map(str::to_owned))
}

/// Selects the [`Stored`] action with this id.
pub(in crate::store) fn with_id(id: Uuid) -> Sql {
    sql("SELECT no, id, digest FROM actions WHERE id = ?").bind(id.to_string())
}

/// Selects the [`ActionRow`] of a key.
pub(in crate::store) fn get(no: i64) -> Sql {
    sql("SELECT * FROM actions WHERE no = ?").bind(no)
}

/// Cancels an action unless it has ended. As it is resolved then, pages that are under way are
/// refused.
pub(in crate::store) fn cancel(id: Uuid) -> Sql {
    sql("UPDATE actions SET cancelled = TRUE, resolved = TRUE WHERE id = ? AND ended_at IS NULL AND NOT cancelled")
        .bind(id.to_string())
}

/// Pauses or resumes an action unless it has ended.
pub(in crate::store) fn pause(id: Uuid, paused: bool) -> Sql {
    sql("UPDATE actions SET paused = ? WHERE id = ? AND paused <> ? AND ended_at IS NULL AND NOT cancelled \
         AND NOT expired")
    .bind(paused)
    .bind(id.to_string())
    .bind(paused)
}

/// Marks an action as expired, unless it is resolved.
pub(in crate::store) fn expire(no: i64) -> Sql {
    sql("UPDATE actions SET expired = TRUE, resolved = TRUE WHERE no = ? AND NOT resolved").bind(no)
}
