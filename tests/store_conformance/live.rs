//! Live membership: agents that join an action after it was resolved.

use crate::Backend;
use crate::support::{accept, agents, in_secs, me, named, page, resolved};
use odoshi::domain::action::ActionState;
use odoshi::domain::command::CommandState;
use odoshi::domain::target::Target;
use odoshi::store::{Inserted, Part, Store};
use serde_json::json;

/// Agents that may join now.
async fn joining(store: &dyn Store, no: i64, among: Option<&[i64]>) -> Vec<i64> {
    let part = Part { after: 0, limit: usize::MAX, searched: usize::MAX };
    let found = store.agent_match_joining(no, &Target::All, among, part).await.unwrap();
    assert_eq!(found.through, None);
    found.agents.into_iter().map(|(agent, _)| agent).collect()
}

pub async fn agents_join_a_live_action_once_and_are_found_by_their_open_row(backend: &mut impl Backend) {
    let store = backend.store();
    let first = agents(store, 2).await;
    let taken = accept(store, json!({ "membership": "live", "priority": 7 })).await;
    assert!(store.action_list_live().await.unwrap().is_empty(), "it is not resolved yet");
    let written = store.command_insert(vec![page(taken.no, 0, &first, true)]).await.unwrap();
    assert_eq!(written, [Inserted::Written]);
    assert_eq!(store.action_list_live().await.unwrap(), [taken.no]);
    assert!(joining(store, taken.no, None).await.is_empty());

    store.agent_insert(vec![named("late", "stream"), named("later", "stream")]).await.unwrap();
    let late = joining(store, taken.no, None).await;
    assert_eq!(late.len(), 2);
    assert_eq!(joining(store, taken.no, Some(&[first[0], late[1]])).await, [late[1]]);
    for (after, found, through) in [(0, None, Some(first[1])), (first[1], Some(late[0]), Some(late[0]))] {
        let part = Part { after, limit: 1, searched: 2 };
        let page = store.agent_match_joining(taken.no, &Target::All, None, part).await.unwrap();
        assert_eq!(page.agents.first().map(|(agent, _)| *agent), found);
        assert_eq!(page.through, through);
    }

    let due = store.command_insert_joining(taken.no, &[first[0], late[0]]).await.unwrap();
    assert_eq!(due.len(), 1, "one has a command already");
    assert_eq!((due[0].agent_no, due[0].run, due[0].priority, due[0].open), (late[0], 1, 7, true));
    assert!(store.command_insert_joining(taken.no, &late[..1]).await.unwrap().is_empty(), "once");
    assert_eq!(backend.open_rows(taken.no).await, late[..1]);
    let backlog = store.command_backlog(late[0], in_secs(store, 1), 10).await.unwrap();
    assert_eq!(backlog.iter().map(|due| due.action_no).collect::<Vec<_>>(), [taken.no]);

    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.counts.total, view.counts.pending, view.counts.resolved), (3, 3, false));
    assert_eq!(view.status, ActionState::Running);
    taken.ends(store, late[0], 1, CommandState::Succeeded).await;
    let counts = store.action_view(taken.id).await.unwrap().unwrap().counts;
    let mut exact = backend.group_by(taken.no).await;
    exact.resolved = counts.resolved;
    assert_eq!(counts, exact);
    assert!(backend.open_rows(taken.no).await.is_empty());
}

pub async fn a_live_action_ends_when_it_expires_and_not_before(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({ "membership": "live", "expires_after": "1h" }), &fleet).await;
    taken.ends(store, fleet[0], 1, CommandState::Succeeded).await;
    assert!(store.action_complete(vec![taken.no]).await.unwrap().is_empty(), "others may join");
    backend.set_offset(3_601_000);
    let store = backend.store();
    assert!(store.action_list_live().await.unwrap().is_empty());
    store.agent_insert(vec![named("late", "stream")]).await.unwrap();
    let late = joining(store, taken.no, None).await;
    assert!(store.command_insert_joining(taken.no, &late).await.unwrap().is_empty(), "it is too late");
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.status, view.counts.resolved, view.counts.total), (ActionState::Completed, true, 1));
}

pub async fn what_is_frozen_cancelled_or_over_is_not_joined(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let frozen = resolved(store, json!({}), &fleet).await;
    let cancelled = resolved(store, json!({ "membership": "live" }), &fleet).await;
    store.action_cancel(cancelled.id, &me()).await.unwrap();
    let view = store.action_view(cancelled.id).await.unwrap().unwrap();
    assert!(view.counts.resolved, "nobody joins it any more");
    store.agent_insert(vec![named("late", "stream")]).await.unwrap();
    let late = joining(store, frozen.no, None).await;
    assert!(store.action_list_live().await.unwrap().is_empty());
    for taken in [frozen, cancelled] {
        assert!(store.command_insert_joining(taken.no, &late).await.unwrap().is_empty());
    }
    cancelled.tell(store, fleet[0], odoshi::domain::command::Event::Cancelled).await;
    assert_eq!(store.action_complete(vec![cancelled.no]).await.unwrap(), [cancelled.no]);
}

pub async fn an_agent_that_joins_before_valid_from_is_due_then(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({ "membership": "live", "delay": "45s" }), &fleet).await;
    let valid_from = store.action_get(taken.no).await.unwrap().unwrap().valid_from;
    assert_eq!(store.action_list_live().await.unwrap(), [taken.no], "agents may join before it is valid");
    store.agent_insert(vec![named("early", "stream"), named("late", "stream")]).await.unwrap();
    let joining = joining(store, taken.no, None).await;
    let due = store.command_insert_joining(taken.no, &joining[..1]).await.unwrap();
    assert_eq!(due.iter().map(|due| (due.agent_no, due.due_at)).collect::<Vec<_>>(), [(joining[0], valid_from)]);
    // Wherever the command is read from: the backlog of its agent, what is due, what users see.
    assert!(store.agent_with_due(&joining, store.now()).await.unwrap().is_empty());
    let backlog = store.command_backlog(joining[0], in_secs(store, 60), 10).await.unwrap();
    assert_eq!(backlog.iter().map(|due| due.due_at).collect::<Vec<_>>(), [valid_from]);
    assert!(store.command_backlog(joining[0], in_secs(store, 1), 10).await.unwrap().is_empty());
    let listed = taken.list(store).await;
    assert!(listed.iter().all(|command| command.due_at >= valid_from), "{listed:?}");
    // From then on agents that join are due at once.
    backend.set_offset(46_000);
    let store = backend.store();
    let due = store.command_insert_joining(taken.no, &joining[1..]).await.unwrap();
    assert!(due[0].due_at > valid_from && due[0].due_at <= store.now(), "{due:?}");
}
