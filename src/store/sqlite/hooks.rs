//! Events for hooks.

use super::store::SqliteStore;
use crate::domain::hook::Listener;
use crate::domain::time::Timestamp;
use crate::store::sql::hooks::{self as statements, ClaimRow, NameRow, NewEvent, StateRow};
use crate::store::{HookClaim, HookOutcome, HookView, HookWanted, Hooks, Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;

#[async_trait]
impl Hooks for SqliteStore {
    fn hook_register(&self, listeners: Vec<Listener>) {
        self.hooks.set(listeners);
    }

    async fn hook_event_claim(&self, wanted: Vec<HookWanted>) -> StoreResult<Vec<HookClaim>> {
        let now = self.now();
        self.write("hook_event_claim", move |conn| claim(conn, &wanted, now)).await
    }

    async fn hook_event_record(&self, outcomes: Vec<(HookClaim, HookOutcome)>) -> StoreResult<()> {
        let now = self.now();
        self.write("hook_event_record", move |conn| {
            let record = |(claim, outcome)| statements::record(claim, outcome, now).execute(conn).map(|_| ());
            outcomes.iter().map(|(claim, outcome)| (claim, outcome)).try_for_each(record)
        })
        .await
    }

    async fn hook_list(&self) -> StoreResult<Vec<HookView>> {
        let listeners = self.hooks.get();
        self.read("hook_list", move |conn| list(conn, &listeners)).await
    }

    async fn hook_event_abandon(&self, due_before: Timestamp, limit: usize) -> StoreResult<usize> {
        let (listeners, now) = (self.hooks.get(), self.now());
        self.write("hook_event_abandon", move |conn| abandon(conn, &listeners, due_before, now, limit)).await
    }

    async fn hook_event_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("hook_event_purge", move |conn| statements::purge(ended_before, limit).execute(conn)).await
    }
}

/// Inserts events, in the transaction of the change.
pub(super) fn insert(conn: &mut SqliteConnection, events: &[NewEvent]) -> QueryResult<()> {
    events.iter().try_for_each(|event| statements::insert(event).execute(conn).map(|_| ()))
}

fn claim(conn: &mut SqliteConnection, wanted: &[HookWanted], now: Timestamp) -> QueryResult<Vec<HookClaim>> {
    let mut claims: Vec<HookClaim> = Vec::new();
    for wanted in wanted {
        let rows: Vec<ClaimRow> = statements::claim(wanted, now, |keys| format!("IN ({keys})")).load(conn)?;
        claims.extend(rows.into_iter().map(HookClaim::from));
    }
    claims.sort_by_key(|claim| claim.no);
    Ok(claims)
}

fn list(conn: &mut SqliteConnection, listeners: &[Listener]) -> QueryResult<Vec<HookView>> {
    let found: Vec<NameRow> = statements::names().load(conn)?;
    let names = statements::all_names(listeners, found).into_iter();
    names.map(|name| Ok(statements::state(&name).get_result::<StateRow>(conn)?.view(name))).collect()
}

fn abandon(
    conn: &mut SqliteConnection,
    listeners: &[Listener],
    due_before: Timestamp,
    now: Timestamp,
    limit: usize,
) -> QueryResult<usize> {
    let found: Vec<NameRow> = statements::names().load(conn)?;
    let mut abandoned = 0;
    for hook in statements::unregistered(listeners, found) {
        abandoned += statements::abandon(&hook, due_before, now, limit - abandoned).execute(conn)?;
        if abandoned >= limit {
            break;
        }
    }
    Ok(abandoned)
}
