//! Events for hooks.

use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::hook::Listener;
use crate::domain::time::Timestamp;
use crate::store::sql::hooks::{self as statements, ClaimRow, NameRow, NewEvent, StateRow};
use crate::store::sql::sql;
use crate::store::{HookClaim, HookOutcome, HookView, HookWanted, Hooks, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;

#[async_trait]
impl Hooks for PostgresStore {
    fn hook_register(&self, listeners: Vec<Listener>) {
        self.inner.hooks.set(listeners);
    }

    async fn hook_event_claim(&self, wanted: Vec<HookWanted>) -> StoreResult<Vec<HookClaim>> {
        let (wanted, now) = (Arc::new(wanted), self.now());
        let claim = body!([wanted] conn => claim(conn, &wanted, now));
        self.write(Caller::Pipeline, "hook_event_claim", claim).await
    }

    async fn hook_event_record(&self, outcomes: Vec<(HookClaim, HookOutcome)>) -> StoreResult<()> {
        let (outcomes, now) = (Arc::new(outcomes), self.now());
        let record = body!([outcomes] conn => record(conn, &outcomes, now));
        self.write(Caller::Pipeline, "hook_event_record", record).await
    }

    async fn hook_list(&self) -> StoreResult<Vec<HookView>> {
        let listeners = self.inner.hooks.get();
        self.read(Caller::People, "hook_list", body!([listeners] conn => list(conn, &listeners))).await
    }

    async fn hook_event_abandon(&self, due_before: Timestamp, limit: usize) -> StoreResult<usize> {
        let (listeners, now) = (self.inner.hooks.get(), self.now());
        let abandon = body!([listeners] conn => abandon(conn, &listeners, due_before, now, limit));
        self.write(Caller::Pipeline, "hook_event_abandon", abandon).await
    }

    async fn hook_event_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<usize> {
        let purge = body!([] conn => statements::purge(ended_before, limit).execute(conn));
        self.write(Caller::Pipeline, "hook_event_purge", purge).await
    }
}

/// Inserts events, in the transaction of the change. One statement whatever their number: thousands
/// of actions may end at a time, and their rows are locked.
pub(super) async fn insert(conn: &mut AsyncPgConnection, events: Vec<NewEvent>) -> QueryResult<()> {
    if events.is_empty() {
        return Ok(());
    }
    let times: Vec<i64> = events.iter().map(|event| event.at.0).collect();
    let (mut ids, mut hooks, mut kinds, mut payloads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for NewEvent { id, hook, event, payload, at: _ } in events {
        ids.push(id);
        hooks.push(hook);
        kinds.push(event.to_owned());
        payloads.push(payload);
    }
    sql("INSERT INTO hook_events (id, hook, event, payload, created_at, due_at) \
         SELECT id, hook, event, payload, at, at FROM UNNEST(?, ?, ?, ?, ?) AS e (id, hook, event, payload, at)")
    .bind(ids)
    .bind(hooks)
    .bind(kinds)
    .bind(payloads)
    .bind(times)
    .execute(conn)
    .await
    .map(|_| ())
}

/// As an array, the keys are selected once. As a subquery they might be selected again for each row,
/// and then pass over what is locked by this very statement.
fn among(keys: &str) -> String {
    format!("= ANY(ARRAY({keys} FOR UPDATE SKIP LOCKED))")
}

async fn claim(conn: &mut AsyncPgConnection, wanted: &[HookWanted], now: Timestamp) -> QueryResult<Vec<HookClaim>> {
    let mut claims: Vec<HookClaim> = Vec::new();
    for wanted in wanted {
        let rows: Vec<ClaimRow> = statements::claim(wanted, now, among).load(conn).await?;
        claims.extend(rows.into_iter().map(HookClaim::from));
    }
    claims.sort_by_key(|claim| claim.no);
    Ok(claims)
}

async fn record(
    conn: &mut AsyncPgConnection,
    outcomes: &[(HookClaim, HookOutcome)],
    now: Timestamp,
) -> QueryResult<()> {
    for (claim, outcome) in outcomes {
        statements::record(claim, outcome, now).execute(conn).await?;
    }
    Ok(())
}

async fn list(conn: &mut AsyncPgConnection, listeners: &[Listener]) -> QueryResult<Vec<HookView>> {
    let found: Vec<NameRow> = statements::names().load(conn).await?;
    let mut views = Vec::new();
    for name in statements::all_names(listeners, found) {
        views.push(statements::state(&name).get_result::<StateRow>(conn).await?.view(name));
    }
    Ok(views)
}

async fn abandon(
    conn: &mut AsyncPgConnection,
    listeners: &[Listener],
    due_before: Timestamp,
    now: Timestamp,
    limit: usize,
) -> QueryResult<usize> {
    let found: Vec<NameRow> = statements::names().load(conn).await?;
    let mut abandoned = 0;
    for hook in statements::unregistered(listeners, found) {
        abandoned += statements::abandon(&hook, due_before, now, limit - abandoned).execute(conn).await?;
        if abandoned >= limit {
            break;
        }
    }
    Ok(abandoned)
}
