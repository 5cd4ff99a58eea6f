//! Events for hooks: their rows, and statements that are the same for both databases.

use super::statement::{Sql, sql};
use super::values::sql_limit;
use crate::domain::hook::{self, ActionEnded, HookEvent, Listener, NodeLost, ScheduleMissed};
use crate::domain::time::Timestamp;
use crate::store::hooks::COUNTED;
use crate::store::{ActionView, HookClaim, HookOutcome, HookView, HookWanted};
use diesel::prelude::*;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use serde::Serialize;
use std::sync::{Arc, PoisonError, RwLock};

/// The error of an event whose hook no node has any more.
const NO_HOOK: &str = "no node has a hook of this name";

/// The hooks that are registered at a store.
#[derive(Default)]
pub(in crate::store) struct Registered(RwLock<Arc<Vec<Listener>>>);

impl Registered {
    pub(in crate::store) fn set(&self, listeners: Vec<Listener>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(listeners);
    }

    pub(in crate::store) fn get(&self) -> Arc<Vec<Listener>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether some hook listens to an event.
pub(in crate::store) fn is_heard(listeners: &[Listener], event: HookEvent) -> bool {
    listeners.iter().any(|listener| listener.on.contains(&event))
}

/// A row to be written.
pub(in crate::store) struct NewEvent {
    pub(in crate::store) id: String,
    pub(in crate::store) hook: String,
    pub(in crate::store) event: &'static str,
    pub(in crate::store) payload: String,
    pub(in crate::store) at: Timestamp,
}

/// A row for each hook that listens to the event. They share the id: a receiver with two hooks
/// can tell that both say the same.
fn rows(
    listeners: &[Listener],
    event: HookEvent,
    at: Timestamp,
    data: &impl Serialize,
    rows: &mut Vec<NewEvent>,
) -> QueryResult<()> {
    let payload = hook::payload(event, at, data).map_err(|error| Error::SerializationError(error.into()))?;
    let id = hook::new_id();
    let listening = listeners.iter().filter(|listener| listener.on.contains(&event));
    rows.extend(listening.map(|listener| NewEvent {
        id: id.clone(),
        hook: listener.name.clone(),
        event: event.as_str(),
        payload: payload.clone(),
        at,
    }));
    Ok(())
}

/// The rows that tell of the end of actions.
pub(in crate::store) fn actions_ended(
    listeners: &[Listener],
    ended: Vec<ActionView>,
    at: Timestamp,
) -> QueryResult<Vec<NewEvent>> {
    let mut all = Vec::new();
    for view in ended {
        let ActionView { id, name, status, created_by, counts, .. } = view;
        let data = ActionEnded { id, name, status, counts, created_by };
        rows(listeners, HookEvent::ActionEnded, at, &data, &mut all)?;
    }
    Ok(all)
}

/// The rows that tell of lost nodes.
pub(in crate::store) fn nodes_lost(
    listeners: &[Listener],
    lost: &[NodeLost],
    at: Timestamp,
) -> QueryResult<Vec<NewEvent>> {
    let mut all = Vec::new();
    for data in lost {
        rows(listeners, HookEvent::NodeLost, at, data, &mut all)?;
    }
    Ok(all)
}

/// The rows that tell of missed occurrences.
pub(in crate::store) fn occurrences_missed(
    listeners: &[Listener],
    missed: &[ScheduleMissed],
    at: Timestamp,
) -> QueryResult<Vec<NewEvent>> {
    let mut all = Vec::new();
    for data in missed {
        rows(listeners, HookEvent::ScheduleMissed, at, data, &mut all)?;
    }
    Ok(all)
}

/// Inserts a row.
pub(in crate::store) fn insert(new: &NewEvent) -> Sql {
    sql("INSERT INTO hook_events (id, hook, event, payload, created_at, due_at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(new.id.as_str())
        .bind(new.hook.as_str())
        .bind(new.event)
        .bind(new.payload.as_str())
        .bind(new.at.0)
        .bind(new.at.0)
}

/// A claimed row.
#[derive(QueryableByName)]
pub(in crate::store) struct ClaimRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = Text)]
    hook: String,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    payload: String,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Integer)]
    attempts: i32,
}

impl From<ClaimRow> for HookClaim {
    fn from(row: ClaimRow) -> Self {
        let ClaimRow { no, hook, id, payload, created_at, attempts } = row;
        Self { no, hook, id, payload, created_at: Timestamp(created_at), attempts }
    }
}

/// Claims due rows of a hook. `among` makes a condition from the query for their keys.
pub(in crate::store) fn claim(wanted: &HookWanted, now: Timestamp, among: fn(&str) -> String) -> Sql {
    let keys = among(
        "SELECT no FROM hook_events WHERE hook = ? AND ended_at IS NULL AND due_at <= ? ORDER BY due_at, no LIMIT ?",
    );
    sql(format!(
        "UPDATE hook_events SET due_at = ?, attempts = attempts + 1 WHERE no {keys} \
         RETURNING no, hook, id, payload, created_at, attempts"
    ))
    .bind(now.plus(wanted.lease).0)
    .bind(wanted.hook.as_str())
    .bind(now.0)
    .bind(sql_limit(wanted.limit))
}

/// Records the outcome of a claim.
pub(in crate::store) fn record(claim: &HookClaim, outcome: &HookOutcome, now: Timestamp) -> Sql {
    match outcome {
        HookOutcome::Delivered => {
            sql("UPDATE hook_events SET ended_at = ? WHERE no = ? AND ended_at IS NULL").bind(now.0).bind(claim.no)
        }
        HookOutcome::Failed { error, next: Some(next) } => {
            sql("UPDATE hook_events SET due_at = ?, failed_at = ?, last_error = ? \
             WHERE no = ? AND attempts = ? AND ended_at IS NULL")
            .bind(next.0)
            .bind(now.0)
            .bind(error.as_str())
            .bind(claim.no)
            .bind(claim.attempts)
        }
        HookOutcome::Failed { error, next: None } => {
            sql("UPDATE hook_events SET ended_at = ?, given_up = TRUE, failed_at = ?, last_error = ? \
             WHERE no = ? AND attempts = ? AND ended_at IS NULL")
            .bind(now.0)
            .bind(now.0)
            .bind(error.as_str())
            .bind(claim.no)
            .bind(claim.attempts)
        }
        HookOutcome::Released => sql("UPDATE hook_events SET due_at = ?, attempts = attempts - 1 \
             WHERE no = ? AND attempts = ? AND ended_at IS NULL")
        .bind(now.0)
        .bind(claim.no)
        .bind(claim.attempts),
    }
}

/// A hook's name.
#[derive(QueryableByName)]
pub(in crate::store) struct NameRow {
    #[diesel(sql_type = Text)]
    hook: String,
}

/// Selects the names of hooks with events that are pending or given up: one step in an index for
/// each name.
pub(in crate::store) fn names() -> Sql {
    let walk = |name: &str, condition: &str| {
        format!(
            "{name} (hook) AS (SELECT min(hook) FROM hook_events WHERE {condition} UNION ALL \
             SELECT (SELECT min(e.hook) FROM hook_events e WHERE {condition} AND e.hook > {name}.hook) FROM {name} \
             WHERE {name}.hook IS NOT NULL)"
        )
    };
    sql(format!(
        "WITH RECURSIVE {}, {} SELECT hook FROM pending WHERE hook IS NOT NULL \
         UNION SELECT hook FROM abandoned WHERE hook IS NOT NULL ORDER BY hook",
        walk("pending", "ended_at IS NULL"),
        walk("abandoned", "given_up"),
    ))
}

/// The registered hooks in their order, and then the others.
pub(in crate::store) fn all_names(listeners: &[Listener], found: Vec<NameRow>) -> Vec<String> {
    let registered = listeners.iter().map(|listener| listener.name.clone());
    let others = unregistered(listeners, found);
    registered.chain(others).collect()
}

/// The names that are not registered.
pub(in crate::store) fn unregistered(listeners: &[Listener], found: Vec<NameRow>) -> Vec<String> {
    let is_known = |name: &str| listeners.iter().any(|listener| listener.name == name);
    found.into_iter().map(|row| row.hook).filter(|name| !is_known(name)).collect()
}

/// The state of a hook's events.
#[derive(QueryableByName)]
pub(in crate::store) struct StateRow {
    #[diesel(sql_type = BigInt)]
    pending: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    oldest: Option<i64>,
    #[diesel(sql_type = BigInt)]
    abandoned: i64,
    #[diesel(sql_type = Nullable<Text>)]
    last_error: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    failed_at: Option<i64>,
}

impl StateRow {
    pub(in crate::store) fn view(self, name: String) -> HookView {
        HookView {
            name,
            pending: self.pending,
            oldest: self.oldest.map(Timestamp),
            given_up: self.abandoned,
            last_error: self.last_error,
            last_failed_at: self.failed_at.map(Timestamp),
        }
    }
}

/// Selects the [`StateRow`] of a hook.
pub(in crate::store) fn state(hook: &str) -> Sql {
    sql("SELECT p.pending, p.oldest, g.abandoned, f.last_error, f.failed_at FROM \
         (SELECT count(*) AS pending, min(created_at) AS oldest FROM (SELECT created_at FROM hook_events \
           WHERE hook = ? AND ended_at IS NULL ORDER BY due_at LIMIT ?) x) p \
         CROSS JOIN (SELECT count(*) AS abandoned FROM (SELECT no FROM hook_events WHERE hook = ? AND given_up \
           LIMIT ?) x) g \
         LEFT JOIN (SELECT last_error, failed_at FROM hook_events WHERE hook = ? AND failed_at IS NOT NULL \
           ORDER BY failed_at DESC LIMIT 1) f ON TRUE")
    .bind(hook)
    .bind(sql_limit(COUNTED))
    .bind(hook)
    .bind(sql_limit(COUNTED))
    .bind(hook)
}

/// Gives up rows of a hook that no node has claimed.
pub(in crate::store) fn abandon(hook: &str, due_before: Timestamp, now: Timestamp, limit: usize) -> Sql {
    sql("UPDATE hook_events SET ended_at = ?, given_up = TRUE, failed_at = ?, last_error = ? WHERE ended_at IS NULL \
         AND due_at < ? AND no IN (SELECT no FROM hook_events WHERE hook = ? AND ended_at IS NULL AND due_at < ? \
         ORDER BY due_at LIMIT ?)")
    .bind(now.0)
    .bind(now.0)
    .bind(NO_HOOK)
    .bind(due_before.0)
    .bind(hook)
    .bind(due_before.0)
    .bind(sql_limit(limit))
}

/// Deletes rows that ended before a time.
pub(in crate::store) fn purge(ended_before: Timestamp, limit: usize) -> Sql {
    sql("DELETE FROM hook_events WHERE no IN (SELECT no FROM hook_events WHERE ended_at < ? ORDER BY ended_at LIMIT ?)")
        .bind(ended_before.0)
        .bind(sql_limit(limit))
}
