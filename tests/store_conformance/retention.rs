//! Actions that are kept no longer.

use crate::Backend;
use crate::support::{accept, agents, in_secs, matching, me, named, page, resolved};
use odoshi::domain::agent::Secret;
use odoshi::domain::command::{Answer, CommandState, Event};
use odoshi::domain::target::Target;
use odoshi::store::{Enrolled, Store};
use serde_json::json;

/// An action that has ended, with something in every table.
async fn ended(backend: &impl Backend, fleet: &[i64]) -> crate::support::Taken {
    let store = backend.store();
    let taken = resolved(store, json!({"max_runs": 2}), fleet).await;
    taken.ends(store, fleet[0], 1, CommandState::Failed).await;
    taken.tell(store, fleet[0], Event::Cancelled).await;
    taken.ends(store, fleet[0], 2, CommandState::Succeeded).await;
    for agent in &fleet[1..] {
        taken.ends(store, *agent, 1, CommandState::Succeeded).await;
    }
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    taken
}

pub async fn what_is_kept_no_longer_goes_in_small_batches_and_is_out_of_sight_at_once(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 7).await;
    let old = ended(backend, &fleet).await;
    backend.set_offset(60_000);
    let store = backend.store();
    let young = ended(backend, &fleet).await;
    let open = resolved(store, json!({}), &fleet).await;
    let unresolved = accept(store, json!({})).await;
    store.command_insert(vec![page(unresolved.no, 0, &fleet[..2], false)]).await.unwrap();
    assert_eq!(store.action_purge(in_secs(store, -90), 100).await.unwrap(), None);

    let (before, rows) = (in_secs(store, -30), backend.rows_of(old.no).await);
    let first = store.action_purge(before, 3).await.unwrap();
    assert_eq!(first, Some(3));
    assert!(store.action_view(old.id).await.unwrap().is_none());
    assert_eq!(store.action_no(old.id).await.unwrap(), None);
    assert_eq!(store.action_list(None, None, None, 10).await.unwrap().len(), 3);
    assert!(old.list(store).await.is_empty());
    // What was begun goes on, also when it is asked for what is older.
    backend.reopen().await;
    backend.set_offset(60_000);
    let store = backend.store();
    let mut left = backend.rows_of(old.no).await;
    assert!(left > 0 && left < rows, "{left} of {rows}");
    while let Some(deleted) = store.action_purge(in_secs(store, -90), 4).await.unwrap() {
        assert!(deleted <= 4);
        let now = backend.rows_of(old.no).await;
        assert!(now < left, "no progress at {now}");
        left = now;
    }
    assert_eq!(left, 0);
    assert_eq!(store.action_purge(before, 100).await.unwrap(), None);

    for (taken, total) in [(young, 7), (open, 7), (unresolved, 2)] {
        let view = store.action_view(taken.id).await.unwrap().unwrap();
        assert_eq!((view.counts.total, backend.group_by(taken.no).await.total), (total, total));
    }
    assert_eq!(young.list(store).await.len(), 7);
    // The id can be used again.
    let again = crate::support::action(store, json!({"id": old.id}));
    assert!(matches!(
        store.action_insert(vec![again]).await.unwrap()[..],
        [odoshi::store::Accepted::Stored { is_new: true, .. }]
    ));
}

pub async fn what_goes_takes_no_late_results(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 3).await;
    let old = ended(backend, &fleet).await;
    backend.set_offset(60_000);
    let store = backend.store();
    // All its commands, and nothing else yet.
    assert_eq!(store.action_purge(store.now(), 3).await.unwrap(), Some(3));
    for agent in &fleet {
        let answer = old.ends(store, *agent, 1, CommandState::Failed).await;
        assert!(matches!(answer, Answer::Rejected(_)), "{answer:?}");
    }
    while store.action_purge(store.now(), 3).await.unwrap().is_some() {}
    assert_eq!(backend.rows_of(old.no).await, 0);
}

pub async fn rows_without_their_action_are_found_and_deleted(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 5).await;
    let lost = ended(backend, &fleet).await;
    let kept = ended(backend, &fleet).await;
    let lost_too = resolved(backend.store(), json!({}), &fleet).await;
    let open = resolved(backend.store(), json!({}), &fleet).await;
    let before = (backend.rows_of(kept.no).await, backend.rows_of(open.no).await);
    for taken in [lost, lost_too] {
        backend.orphan(taken.no).await;
    }
    let store = backend.store();
    assert_eq!(store.action_purge(in_secs(store, -90), 4).await.unwrap(), None);
    let (mut after, mut steps) = (0, 0);
    while let Some(next) = store.action_sweep(after, 2).await.unwrap() {
        assert!(next > after);
        (after, steps) = (next, steps + 1);
    }
    assert_eq!(steps, 2, "four actions have rows, and two are looked at in a step");
    while let Some(deleted) = store.action_purge(in_secs(store, -90), 4).await.unwrap() {
        assert!(deleted <= 4);
    }
    for taken in [lost, lost_too] {
        assert_eq!(backend.rows_of(taken.no).await, 0);
    }
    assert_eq!((backend.rows_of(kept.no).await, backend.rows_of(open.no).await), before);
    // There is nothing left to be found.
    assert!(store.action_sweep(0, 100).await.unwrap().is_some_and(|last| last >= kept.no));
    assert_eq!(store.action_purge(in_secs(store, -90), 4).await.unwrap(), None);
}

pub async fn removed_agents_go_after_the_actions_of_their_time_and_tokens_before_them(backend: &mut impl Backend) {
    const DAY: i64 = 24 * 3_600;
    let store = backend.store();
    let mut fleet = Vec::new();
    for name in ["leaves", "stays"] {
        let enrolled = store.agent_enroll(&named(name, "stream"), Secret::random().hash(), &me()).await.unwrap();
        let Enrolled::New(agent) = enrolled else { panic!("{enrolled:?}") };
        fleet.push(agent.no);
    }
    let old = ended(backend, &fleet).await;
    let store = backend.store();
    store.agent_remove("leaves", &me()).await.unwrap();
    let soon = async |store: &dyn Store| store.identity_purge(in_secs(store, 60), 10).await.unwrap();
    assert_eq!(soon(store).await, 1, "its token alone: its commands are not closed yet");
    store.agent_left(fleet[0], in_secs(store, 60)).await.unwrap();
    assert_eq!(soon(store).await, 0, "an action names it");
    // A younger action doesn't.
    backend.set_offset(2 * DAY * 1_000);
    let store = backend.store();
    ended(backend, &fleet[1..]).await;
    while store.action_purge(in_secs(store, -DAY), 100).await.unwrap().is_some() {}
    assert!(store.action_view(old.id).await.unwrap().is_none());
    assert_eq!(store.identity_purge(in_secs(store, -3 * DAY), 10).await.unwrap(), 0, "it is kept for a while");
    assert_eq!((soon(store).await, soon(store).await), (1, 0));
    assert_eq!(matching(store, &Target::All).await, fleet[1..]);
}
