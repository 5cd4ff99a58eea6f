//! Events for hooks.

use crate::Backend;
use crate::support::{in_secs, resolved};
use futures_util::future::join_all;
use odoshi::domain::action::ActionState;
use odoshi::domain::hook::{HookEvent, Listener};
use odoshi::store::{HookClaim, HookOutcome, HookView, HookWanted, Store};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

/// Hooks with these names and events.
pub fn register(store: &dyn Store, hooks: &[(&str, &[HookEvent])]) {
    let listener = |(name, on): &(&str, &[HookEvent])| Listener { name: (*name).into(), on: on.to_vec() };
    store.hook_register(hooks.iter().map(listener).collect());
}

/// What is due for a hook, for a minute.
pub async fn claim(store: &dyn Store, hook: &str, limit: usize) -> Vec<HookClaim> {
    let wanted = HookWanted { hook: hook.into(), limit, lease: Duration::from_secs(60) };
    store.hook_event_claim(vec![wanted]).await.unwrap()
}

/// Ends an action without agents; answers its id.
async fn end(store: &dyn Store) -> String {
    let taken = resolved(store, json!({}), &[]).await;
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    taken.id.to_string()
}

/// The hook `h` with so many events.
async fn with_events(store: &dyn Store, events: usize) {
    register(store, &[("h", &[HookEvent::ActionEnded])]);
    for _ in 0..events {
        end(store).await;
    }
}

async fn record(store: &dyn Store, claim: &HookClaim, outcome: HookOutcome) {
    store.hook_event_record(vec![(claim.clone(), outcome)]).await.unwrap();
}

fn failed(store: &dyn Store, error: &str, in_: Option<i64>) -> HookOutcome {
    HookOutcome::Failed { error: error.into(), next: in_.map(|secs| in_secs(store, secs)) }
}

async fn view(store: &dyn Store, hook: &str) -> Option<HookView> {
    store.hook_list().await.unwrap().into_iter().find(|view| view.name == hook)
}

pub async fn the_end_of_an_action_is_written_once_for_each_hook_that_listens(backend: &mut impl Backend) {
    let store = backend.store();
    let (both, lost) = ([HookEvent::NodeLost, HookEvent::ActionEnded], [HookEvent::NodeLost]);
    register(store, &[("a", &both[1..]), ("b", &lost), ("c", &both)]);
    let taken = resolved(store, json!({"name": "nightly"}), &[]).await;
    let cancelled = resolved(store, json!({"name": "stopped"}), &[]).await;
    store.action_cancel(cancelled.id, &crate::support::me()).await.unwrap();
    for _ in 0..2 {
        store.action_complete(vec![taken.no, cancelled.no]).await.unwrap();
    }
    let claims = claim(store, "a", 9).await;
    let payloads: Vec<Value> = claims.iter().map(|claim| serde_json::from_str(&claim.payload).unwrap()).collect();
    let told: Vec<(&str, &str)> = payloads
        .iter()
        .map(|payload| (payload["data"]["name"].as_str().unwrap(), payload["data"]["status"].as_str().unwrap()))
        .collect();
    assert_eq!(HashSet::from_iter(told), HashSet::from([("nightly", "completed"), ("stopped", "cancelled")]));
    let nightly = payloads.iter().find(|payload| payload["data"]["name"] == "nightly").unwrap();
    assert_eq!(nightly["type"], "action.ended");
    assert_eq!(nightly["data"]["id"], taken.id.to_string());
    assert_eq!(nightly["data"]["counts"]["total"], 0);
    assert_eq!(nightly["data"]["counts"]["resolved"], true);
    assert_eq!(nightly["data"]["created_by"], "server");
    assert!(nightly["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(claims.iter().all(|claim| claim.attempts == 1 && claim.id.starts_with("msg_") && claim.hook == "a"));
    assert!(claim(store, "b", 9).await.is_empty());
    let ids = |claims: &[HookClaim]| claims.iter().map(|claim| claim.id.clone()).collect::<HashSet<_>>();
    assert_eq!(ids(&claim(store, "c", 9).await), ids(&claims), "the same events");
}

pub async fn an_event_is_written_with_its_change_or_not_at_all(backend: &mut impl Backend) {
    let store = backend.store();
    register(store, &[("h", &[HookEvent::ActionEnded])]);
    let taken = resolved(store, json!({}), &[]).await;
    backend.refuse_hook_events(true).await;
    assert!(store.action_complete(vec![taken.no]).await.is_err());
    let status = store.action_view(taken.id).await.unwrap().unwrap().status;
    assert_eq!(status, ActionState::Running, "the end is rolled back with its event");
    backend.refuse_hook_events(false).await;
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    assert_eq!(claim(store, "h", 9).await.len(), 1);
}

pub async fn without_a_hook_that_listens_nothing_is_written(backend: &mut impl Backend) {
    let store = backend.store();
    end(store).await;
    with_events(store, 0).await;
    assert!(claim(store, "h", 9).await.is_empty());
}

pub async fn claimers_at_the_same_time_get_each_event_once(backend: &mut impl Backend) {
    let store = backend.store();
    with_events(store, 20).await;
    let claims = join_all((0..8).map(|_| claim(store, "h", 4))).await;
    assert!(claims.iter().all(|claims| claims.len() <= 4));
    let mut numbers: Vec<i64> = claims.into_iter().flatten().map(|claim| claim.no).collect();
    numbers.extend(claim(store, "h", 20).await.into_iter().map(|claim| claim.no));
    assert_eq!(numbers.len(), 20);
    assert_eq!(HashSet::<i64>::from_iter(numbers).len(), 20);
}

pub async fn a_claim_that_is_not_recorded_comes_again_after_its_lease(backend: &mut impl Backend) {
    with_events(backend.store(), 1).await;
    let first = claim(backend.store(), "h", 9).await;
    backend.reopen().await;
    assert!(claim(backend.store(), "h", 9).await.is_empty(), "another process holds it");
    backend.set_offset(61_000);
    let again = claim(backend.store(), "h", 9).await;
    assert_eq!((again[0].no, again[0].attempts), (first[0].no, 2));
    assert_eq!((&again[0].id, &again[0].payload), (&first[0].id, &first[0].payload));
}

pub async fn a_failed_event_comes_again_at_its_time(backend: &mut impl Backend) {
    with_events(backend.store(), 2).await;
    let store = backend.store();
    let claims = claim(store, "h", 1).await;
    record(store, &claims[0], failed(store, "nobody there", Some(600))).await;
    let other = claim(store, "h", 9).await;
    assert_eq!(other.len(), 1, "the other one is not held up");
    record(store, &other[0], HookOutcome::Delivered).await;
    let seen = view(store, "h").await.unwrap();
    assert_eq!((seen.pending, seen.given_up, seen.last_error.as_deref()), (1, 0, Some("nobody there")));
    assert!(seen.oldest == Some(claims[0].created_at) && seen.last_failed_at.is_some());
    backend.set_offset(590_000);
    assert!(claim(backend.store(), "h", 9).await.is_empty());
    backend.set_offset(601_000);
    let again = claim(backend.store(), "h", 9).await;
    assert_eq!((again.len(), again[0].no, again[0].attempts), (1, claims[0].no, 2));
}

pub async fn what_was_claimed_again_is_changed_by_its_last_claimer_or_a_delivery(backend: &mut impl Backend) {
    with_events(backend.store(), 1).await;
    let first = claim(backend.store(), "h", 9).await;
    backend.set_offset(61_000);
    let store = backend.store();
    let second = claim(store, "h", 9).await;
    record(store, &first[0], failed(store, "late", None)).await;
    record(store, &first[0], HookOutcome::Released).await;
    let seen = view(store, "h").await.unwrap();
    assert_eq!((seen.pending, seen.last_error), (1, None));
    record(store, &first[0], HookOutcome::Delivered).await;
    record(store, &second[0], failed(store, "later", Some(0))).await;
    let seen = view(store, "h").await.unwrap();
    assert_eq!((seen.pending, seen.given_up, seen.last_error), (0, 0, None));
}

pub async fn a_released_event_is_due_at_once_and_not_counted(backend: &mut impl Backend) {
    let store = backend.store();
    with_events(store, 1).await;
    for _ in 0..3 {
        let claims = claim(store, "h", 9).await;
        assert_eq!(claims.iter().map(|claim| claim.attempts).collect::<Vec<_>>(), [1]);
        record(store, &claims[0], HookOutcome::Released).await;
    }
}

pub async fn what_ended_is_kept_for_its_time(backend: &mut impl Backend) {
    with_events(backend.store(), 3).await;
    let store = backend.store();
    let claims = claim(store, "h", 2).await;
    record(store, &claims[0], HookOutcome::Delivered).await;
    record(store, &claims[1], failed(store, "gone", None)).await;
    let seen = view(store, "h").await.unwrap();
    assert_eq!((seen.pending, seen.given_up, seen.last_error.as_deref()), (1, 1, Some("gone")));
    assert_eq!(store.hook_event_purge(in_secs(store, -60), 9).await.unwrap(), 0);
    backend.set_offset(3_600_000);
    let store = backend.store();
    assert_eq!(store.hook_event_purge(in_secs(store, -60), 1).await.unwrap(), 1);
    assert_eq!(store.hook_event_purge(in_secs(store, -60), 9).await.unwrap(), 1);
    assert_eq!(store.hook_event_purge(in_secs(store, -60), 9).await.unwrap(), 0);
    let seen = view(store, "h").await.unwrap();
    assert_eq!((seen.pending, seen.given_up, seen.last_error), (1, 0, None));
}

pub async fn events_of_hooks_that_are_gone_are_listed_and_given_up(backend: &mut impl Backend) {
    with_events(backend.store(), 3).await;
    backend.set_offset(3_600_000);
    let store = backend.store();
    assert_eq!(store.hook_event_abandon(in_secs(store, -60), 9).await.unwrap(), 0, "it is registered");
    register(store, &[("z", &[HookEvent::ActionEnded]), ("g", &[])]);
    end(store).await;
    let names: Vec<String> = store.hook_list().await.unwrap().into_iter().map(|view| view.name).collect();
    assert_eq!(names, ["z", "g", "h"], "registered ones first");
    assert_eq!(store.hook_event_abandon(in_secs(store, -3_700), 9).await.unwrap(), 0);
    assert_eq!(store.hook_event_abandon(in_secs(store, -60), 2).await.unwrap(), 2);
    assert_eq!(store.hook_event_abandon(in_secs(store, -60), 2).await.unwrap(), 1);
    let seen = view(store, "h").await.unwrap();
    assert_eq!((seen.pending, seen.given_up), (0, 3));
    assert_eq!(seen.last_error.as_deref(), Some("no node has a hook of this name"));
    assert_eq!(view(store, "z").await.unwrap().pending, 1);
}
