//! Actions: accepting, resolving, cancelling, expiring, completing, listing.

use crate::Backend;
use crate::support::{BEGIN, accept, action, agents, in_secs, me, page, resolved, unresolved};
use odoshi::domain::action::ActionState;
use odoshi::domain::command::CommandState;
use odoshi::store::{Accepted, CommandPage, Inserted, Resolution};
use serde_json::json;
use uuid::Uuid;

pub async fn the_same_id_with_the_same_content_is_one_action(backend: &mut impl Backend) {
    let store = backend.store();
    let document = json!({"id": Uuid::now_v7(), "valid_from": "2030-01-01T00:00:00Z"});
    let first = store.action_insert(vec![action(store, document.clone())]).await.unwrap();
    let [Accepted::Stored { id, no, is_new: true }] = first[..] else { panic!("{first:?}") };
    let again = vec![action(store, document.clone()), action(store, json!({})), action(store, document)];
    let answers = store.action_insert(again).await.unwrap();
    let same = Accepted::Stored { id, no, is_new: false };
    assert_eq!([&answers[0], &answers[2]], [&same, &same]);
    assert!(matches!(answers[1], Accepted::Stored { is_new: true, no: other, .. } if other != no));
    assert_eq!(store.action_list(None, None, None, 10).await.unwrap().len(), 2);
    assert_eq!(store.action_no(id).await.unwrap(), Some(no));
}

pub async fn the_same_id_with_other_content_is_a_conflict(backend: &mut impl Backend) {
    let store = backend.store();
    let id = Uuid::now_v7();
    let [one, other] = ["one", "other"].map(|name| action(store, json!({"id": id, "name": name})));
    let answers = store.action_insert(vec![one, other.clone()]).await.unwrap();
    assert!(matches!(answers[..], [Accepted::Stored { is_new: true, .. }, Accepted::Conflict]), "{answers:?}");
    assert_eq!(store.action_insert(vec![other]).await.unwrap(), [Accepted::Conflict]);
    assert_eq!(store.action_view(id).await.unwrap().unwrap().name, "one");
}

pub async fn an_action_is_read_as_it_was_written(backend: &mut impl Backend) {
    let document = json!({"name": "ünï 'quoted'", "target": "labels.a = 'b'", "delay": "10m", "spread": "1m",
        "timeout": "7s", "max_deliveries": 3, "max_runs": 4, "priority": -5, "description": {"a": [1, 1.50, null]}});
    let new = action(backend.store(), document);
    backend.store().action_insert(vec![new.clone()]).await.unwrap();
    backend.reopen().await;
    let store = backend.store();
    let view = store.action_view(new.id).await.unwrap().unwrap();
    let read = store.action_get(view.no).await.unwrap().unwrap();
    assert_eq!((read.id, &read.name, &read.target, read.priority), (new.id, &new.name, &new.target, new.priority));
    assert_eq!((read.valid_from, read.expires_at, read.spread), (new.valid_from, new.expires_at, new.spread.0));
    assert_eq!((read.policy.max_runs, read.policy.max_deliveries, read.policy.timeout), (4, Some(3), new.timeout.0));
    assert_eq!(serde_json::to_string(&read.operations).unwrap(), new.operations);
    assert_eq!((view.name, view.document.get()), (new.name, new.document.as_str()));
    assert_eq!((view.counts, view.status), (Default::default(), ActionState::Scheduled));
    assert!(store.action_view(Uuid::now_v7()).await.unwrap().is_none());
    assert!(store.action_get(view.no + 1).await.unwrap().is_none());
    assert_eq!(store.action_no(Uuid::now_v7()).await.unwrap(), None);
    let mut many: Vec<Uuid> = (0..10_000).map(|_| Uuid::now_v7()).collect();
    assert_eq!(store.action_nos(&many).await.unwrap(), []);
    assert_eq!(store.action_nos(&[]).await.unwrap(), []);
    let accepted = accept(store, json!({})).await;
    many[5_000] = accepted.id;
    assert_eq!(store.action_nos(&many).await.unwrap(), [(accepted.id, accepted.no)]);
}

pub async fn pages_are_written_once_and_in_turn(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 5).await;
    let taken = accept(store, json!({})).await;
    let first = page(taken.no, 0, &fleet[..2], false);
    let second = page(taken.no, fleet[1], &fleet[2..], true);
    assert_eq!(store.command_insert(vec![first.clone()]).await.unwrap(), [Inserted::Written]);
    assert_eq!(store.command_insert(vec![first.clone()]).await.unwrap(), [Inserted::StalePage]);
    assert_eq!(store.command_insert(vec![second.clone()]).await.unwrap(), [Inserted::Written]);
    assert_eq!(store.command_insert(vec![first, second]).await.unwrap(), [Inserted::StalePage, Inserted::StalePage]);
    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.counts.total, view.counts.pending, view.counts.resolved), (5, 5, true));
    assert_eq!(backend.group_by(taken.no).await.total, 5);
}

pub async fn a_page_of_another_time_writes_nothing(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 4).await;
    let taken = accept(store, json!({})).await;
    for (after, unwritten) in [(fleet[0], &fleet[1..]), (fleet[3] + 7, &fleet[..1]), (-1, &fleet[..1])] {
        let answer = store.command_insert(vec![page(taken.no, after, unwritten, true)]).await.unwrap();
        assert_eq!(answer, [Inserted::StalePage]);
    }
    let nobody = page(taken.no + 1, 0, &fleet, true);
    assert_eq!(store.command_insert(vec![nobody]).await.unwrap(), [Inserted::StalePage]);
    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.counts.total, view.counts.resolved), (0, false));
    assert_eq!(backend.group_by(taken.no).await.total, 0);
}

pub async fn pages_of_one_batch_follow_each_other(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 6).await;
    let [one, two] = [accept(store, json!({})).await, accept(store, json!({})).await];
    let due = in_secs(store, 60);
    let spread =
        CommandPage { commands: vec![(fleet[0], Some(due)), (fleet[1], None)], ..page(two.no, 0, &fleet[..2], true) };
    let pages = vec![
        page(one.no, 0, &fleet[..3], false),
        spread,
        page(one.no, fleet[0], &fleet[1..], true),
        page(one.no, fleet[2], &fleet[3..], true),
    ];
    use Inserted::{StalePage, Written};
    assert_eq!(store.command_insert(pages).await.unwrap(), [Written, Written, StalePage, Written]);
    for (action, total) in [(one, 6), (two, 2)] {
        let counts = store.action_view(action.id).await.unwrap().unwrap().counts;
        assert_eq!((counts.total, backend.group_by(action.no).await.total), (total, total));
    }
    let listed = two.list(store).await;
    let valid_from = store.action_get(two.no).await.unwrap().unwrap().valid_from;
    assert_eq!(listed.iter().map(|command| command.due_at).collect::<Vec<_>>(), [due, valid_from]);
}

pub async fn nothing_is_resolved_after_a_cancel(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let taken = accept(store, json!({})).await;
    store.command_insert(vec![page(taken.no, 0, &fleet[..1], false)]).await.unwrap();
    for _ in 0..2 {
        let view = store.action_cancel(taken.id, &me()).await.unwrap().unwrap();
        assert_eq!((view.status, view.counts.total, view.counts.resolved), (ActionState::Cancelled, 1, true));
        let late = page(taken.no, fleet[0], &fleet[1..], true);
        assert_eq!(store.command_insert(vec![late]).await.unwrap(), [Inserted::StalePage]);
    }
    assert!(store.action_get(taken.no).await.unwrap().unwrap().is_cancelled());
    assert!(unresolved(store, in_secs(store, 60), 10).await.is_empty());
    assert!(store.action_resolution(taken.no).await.unwrap().done);
    assert!(!store.action_expire(taken.no).await.unwrap());
    assert!(store.action_cancel(Uuid::now_v7(), &me()).await.unwrap().is_none());
}

pub async fn a_cancel_of_what_has_ended_changes_nothing(backend: &mut impl Backend) {
    let store = backend.store();
    let taken = resolved(store, json!({}), &[]).await;
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    assert_eq!(store.action_cancel(taken.id, &me()).await.unwrap().unwrap().status, ActionState::Completed);
}

pub async fn nothing_is_resolved_after_an_action_expired(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let taken = accept(store, json!({})).await;
    store.command_insert(vec![page(taken.no, 0, &fleet[..1], false)]).await.unwrap();
    assert!(store.action_expire(taken.no).await.unwrap());
    assert!(!store.action_expire(taken.no).await.unwrap());
    let late = page(taken.no, fleet[0], &fleet[1..], true);
    assert_eq!(store.command_insert(vec![late]).await.unwrap(), [Inserted::StalePage]);
    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.status, view.counts.total, view.counts.resolved), (ActionState::Expired, 1, true));
    assert!(store.action_complete(vec![taken.no]).await.unwrap().is_empty());
}

pub async fn what_is_resolved_does_not_expire(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({}), &fleet).await;
    assert!(!store.action_expire(taken.no).await.unwrap());
    assert_eq!(store.action_view(taken.id).await.unwrap().unwrap().status, ActionState::Running);
}

pub async fn expected_agents_are_counted_once(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let taken = accept(store, json!({})).await;
    let begun = store.action_resolution(taken.no).await.unwrap();
    assert_eq!(begun, Resolution { through: 0, written: 0, expected: None, done: false });
    assert_eq!(store.action_view(taken.id).await.unwrap().unwrap().status, ActionState::Scheduled);
    assert_eq!(store.action_expect(taken.no, 3).await.unwrap(), 3);
    assert_eq!(store.action_expect(taken.no, 4).await.unwrap(), 3, "another was faster");
    assert_eq!(store.action_view(taken.id).await.unwrap().unwrap().status, ActionState::Resolving);
    store.command_insert(vec![page(taken.no, 0, &fleet[..2], false)]).await.unwrap();
    let later = store.action_resolution(taken.no).await.unwrap();
    assert_eq!(later, Resolution { through: fleet[1], written: 2, expected: Some(3), done: false });
    // Without a spread nothing is counted: the first page says that it has begun.
    let uncounted = accept(store, json!({})).await;
    store.command_insert(vec![page(uncounted.no, 0, &fleet[..2], false)]).await.unwrap();
    assert_eq!(store.action_view(uncounted.id).await.unwrap().unwrap().status, ActionState::Resolving);
}

pub async fn resolving_goes_on_after_a_restart(backend: &mut impl Backend) {
    backend.store().node_start("again", &[]).await.unwrap();
    let fleet = agents(backend.store(), 4).await;
    let taken = accept(backend.store(), json!({})).await;
    backend.store().command_insert(vec![page(taken.no, 0, &fleet[..3], false)]).await.unwrap();
    backend.reopen().await;
    let store = backend.store();
    store.node_start("again", &[]).await.unwrap();
    assert_eq!(unresolved(store, store.now(), 10).await, [taken.no]);
    let found = store.action_resolution(taken.no).await.unwrap();
    assert_eq!(found, Resolution { through: fleet[2], written: 3, expected: None, done: false });
    let rest: Vec<i64> = store
        .agent_match(&odoshi::domain::target::Target::All, found.through, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|(no, _)| no)
        .collect();
    assert_eq!(rest, fleet[3..]);
    let last = page(taken.no, found.through, &rest, true);
    assert_eq!(store.command_insert(vec![last]).await.unwrap(), [Inserted::Written]);
    // Written by two lanes, one of each process.
    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.counts.total, view.counts.resolved, view.status), (4, true, ActionState::Running));
    assert!(store.action_resolution(taken.no).await.unwrap().done);
}

pub async fn an_action_without_agents_completes(backend: &mut impl Backend) {
    let store = backend.store();
    let taken = accept(store, json!({})).await;
    assert_eq!(store.action_expect(taken.no, 0).await.unwrap(), 0);
    assert!(store.action_complete(vec![taken.no]).await.unwrap().is_empty(), "not resolved yet");
    store.command_insert(vec![page(taken.no, 0, &[], true)]).await.unwrap();
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    let view = store.action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.status, view.counts.total, view.counts.resolved), (ActionState::Completed, 0, true));
}

pub async fn an_action_completes_when_all_its_commands_are_final_and_not_before(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 2).await;
    let taken = accept(backend.store(), json!({})).await;
    backend.store().command_insert(vec![page(taken.no, 0, &fleet[..1], false)]).await.unwrap();
    let complete =
        async |backend: &dyn odoshi::store::Store| backend.action_complete(vec![taken.no, taken.no + 1]).await.unwrap();
    taken.ends(backend.store(), fleet[0], 1, CommandState::Succeeded).await;
    assert!(complete(backend.store()).await.is_empty(), "not resolved");
    backend.store().command_insert(vec![page(taken.no, fleet[0], &fleet[1..], true)]).await.unwrap();
    assert!(complete(backend.store()).await.is_empty(), "one is pending");
    taken.sent(backend.store(), fleet[1], 1, 0).await;
    backend.reopen().await;
    assert!(complete(backend.store()).await.is_empty(), "one is sent");
    // Final, but counted by another lane than the rest.
    taken.ends(backend.store(), fleet[1], 1, CommandState::Failed).await;
    assert_eq!(complete(backend.store()).await, [taken.no]);
    assert!(complete(backend.store()).await.is_empty(), "ended before");
    let view = backend.store().action_view(taken.id).await.unwrap().unwrap();
    assert_eq!((view.status, view.counts.succeeded, view.counts.failed), (ActionState::Completed, 1, 1));
}

pub async fn a_pause_is_of_what_goes_on_alone(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let going = resolved(store, json!({}), &fleet).await;
    let over = resolved(store, json!({}), &[]).await;
    store.action_complete(vec![over.no]).await.unwrap();
    let pause = async |taken: crate::support::Taken, paused| {
        store.action_pause(taken.id, paused, &me()).await.unwrap().unwrap().status
    };
    for _ in 0..2 {
        assert_eq!(pause(going, true).await, ActionState::Paused);
    }
    assert!(store.action_get(going.no).await.unwrap().unwrap().is_paused());
    assert!(store.action_list_open(0, 10).await.unwrap()[0].paused);
    assert!(store.command_backlog(fleet[0], in_secs(store, 60), 10).await.unwrap().is_empty());
    assert_eq!(pause(over, true).await, ActionState::Completed);
    for _ in 0..2 {
        assert_eq!(pause(going, false).await, ActionState::Running);
    }
    assert_eq!(store.command_backlog(fleet[0], in_secs(store, 60), 10).await.unwrap().len(), 1);
    pause(going, true).await;
    store.action_cancel(going.id, &me()).await.unwrap();
    assert_eq!(pause(going, false).await, ActionState::Cancelled);
    assert!(store.action_pause(Uuid::now_v7(), true, &me()).await.unwrap().is_none());
}

pub async fn open_actions_are_listed_until_they_end(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let one = resolved(store, json!({}), &fleet).await;
    let two = accept(store, json!({})).await;
    let three = accept(store, json!({})).await;
    one.ends(store, fleet[0], 1, CommandState::Succeeded).await;
    one.sent(store, fleet[1], 1, 0).await;
    store.action_cancel(three.id, &me()).await.unwrap();
    let open = store.action_list_open(0, 10).await.unwrap();
    assert_eq!(open.iter().map(|action| action.no).collect::<Vec<_>>(), [one.no, two.no, three.no]);
    assert_eq!(open.iter().map(|action| action.unfinished).collect::<Vec<_>>(), [2, 0, 0]);
    assert_eq!((open[0].resolved_through, open[0].dispatched_through), (fleet[2], 0));
    assert_eq!(open.iter().map(|action| action.resolved).collect::<Vec<_>>(), [true, false, true]);
    assert!(open[2].cancelled && !open[0].cancelled && !open[2].expired);
    assert_eq!(store.action_list_open(one.no, 1).await.unwrap(), [open[1].clone()]);
    assert_eq!(store.action_complete(vec![one.no, two.no, three.no]).await.unwrap(), [three.no]);
    assert_eq!(store.action_list_open(0, 10).await.unwrap(), open[..2]);
}

pub async fn unresolved_actions_are_listed_when_their_time_is_near(backend: &mut impl Backend) {
    let store = backend.store();
    let near = accept(store, json!({})).await;
    let far = accept(store, json!({"delay": "10m"})).await;
    resolved(store, json!({}), &[]).await;
    let expired = accept(store, json!({})).await;
    store.action_expire(expired.no).await.unwrap();
    assert_eq!(unresolved(store, in_secs(store, 60), 10).await, [near.no]);
    assert_eq!(unresolved(store, in_secs(store, 601), 10).await, [near.no, far.no]);
    assert_eq!(unresolved(store, in_secs(store, 601), 1).await, [near.no]);
    // Actions of one moment are told apart by their keys.
    let next = accept(store, json!({})).await;
    let list = store.action_list_unresolved(in_secs(store, 601), BEGIN, 2).await.unwrap();
    assert_eq!(list.iter().map(|action| action.no).collect::<Vec<_>>(), [near.no, next.no]);
    let rest = store.action_list_unresolved(in_secs(store, 601), list[1].place(), 2).await.unwrap();
    assert_eq!(rest.iter().map(|action| action.no).collect::<Vec<_>>(), [far.no]);
}

pub async fn lists_show_every_state_newest_first(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let mut expected = Vec::new();
    for _ in 0..2 {
        expected.push((accept(store, json!({})).await.no, ActionState::Scheduled));
        let resolving = accept(store, json!({})).await;
        store.action_expect(resolving.no, 1).await.unwrap();
        expected.push((resolving.no, ActionState::Resolving));
        expected.push((resolved(store, json!({}), &fleet).await.no, ActionState::Running));
        let completed = resolved(store, json!({}), &[]).await;
        store.action_complete(vec![completed.no]).await.unwrap();
        expected.push((completed.no, ActionState::Completed));
        for ended in [false, true] {
            let cancelled = accept(store, json!({})).await;
            store.action_cancel(cancelled.id, &me()).await.unwrap();
            expected.push((cancelled.no, ActionState::Cancelled));
            let expired = accept(store, json!({})).await;
            store.action_expire(expired.no).await.unwrap();
            expected.push((expired.no, ActionState::Expired));
            if ended {
                let both = vec![cancelled.no, expired.no];
                assert_eq!(store.action_complete(both.clone()).await.unwrap(), both);
            }
        }
    }
    expected.reverse();
    use ActionState::{Cancelled, Completed, Expired, Paused, Resolving, Running, Scheduled};
    for state in [
        None,
        Some(Scheduled),
        Some(Resolving),
        Some(Running),
        Some(Paused),
        Some(Completed),
        Some(Cancelled),
        Some(Expired),
    ] {
        let wanted: Vec<_> =
            expected.iter().copied().filter(|(_, is)| state.is_none_or(|state| state == *is)).collect();
        let mut listed = Vec::new();
        loop {
            let before = listed.last().map(|(no, _)| *no);
            let page = store.action_list(state, None, before, 3).await.unwrap();
            assert!(page.len() <= 3);
            listed.extend(page.iter().map(|view| (view.no, view.status)));
            if page.is_empty() {
                break;
            }
        }
        assert_eq!(listed, wanted, "{state:?}");
    }
}
