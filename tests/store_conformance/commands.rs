//! What the scheduler, the sessions and the reconcilers read of commands.

use crate::Backend;
use crate::support::{accept, agents, connect, in_secs, me, named, page, resolved};
use odoshi::domain::command::{CommandState, Event};
use odoshi::domain::time::Timestamp;
use odoshi::store::{CommandPage, Store, Unfinished};
use serde_json::json;
use std::time::Duration;

pub async fn untouched_commands_are_paged_in_key_order_with_their_due_times(backend: &mut impl Backend) {
    let store = backend.store();
    store.agent_insert(vec![named("hook", "webhook")]).await.unwrap();
    store.agent_insert((0..5).map(|n| named(&format!("agent-{n}"), "stream")).collect()).await.unwrap();
    let fleet: Vec<i64> = crate::support::matching(store, &odoshi::domain::target::Target::All).await;
    let taken = accept(store, json!({})).await;
    let due = in_secs(store, 5);
    let mut commands: Vec<_> = fleet.iter().map(|agent| (*agent, None)).collect();
    commands[5].1 = Some(due);
    let page = CommandPage { commands, ..page(taken.no, 0, &fleet, true) };
    store.command_insert(vec![page]).await.unwrap();
    taken.ends(store, fleet[1], 1, CommandState::Succeeded).await;
    taken.hold(store, fleet[2]).await;
    taken.sent(store, fleet[3], 1, 0).await;
    let valid_from = store.action_get(taken.no).await.unwrap().unwrap().valid_from;
    let mut found = Vec::new();
    let mut after = 0;
    loop {
        let page = store.command_undispatched(taken.no, after, 2).await.unwrap();
        assert!(page.commands.len() <= 2);
        found.extend(page.commands);
        let Some(through) = page.through else { break };
        assert!(through > after);
        after = through;
    }
    let found: Vec<_> = found.iter().map(|(agent, transport, due)| (*agent, &**transport, *due)).collect();
    assert_eq!(found, [(fleet[0], "webhook", valid_from), (fleet[4], "stream", valid_from), (fleet[5], "stream", due)]);
}

pub async fn advancing_never_passes_an_untouched_command_and_gets_to_the_end(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 9).await;
    let taken = accept(store, json!({})).await;
    store.command_insert(vec![page(taken.no, 0, &fleet[..8], false)]).await.unwrap();
    let advance = async |limit| store.action_advance(vec![taken.no], limit).await.unwrap().remove(0);
    assert!(advance(10).await < fleet[0]);
    taken.ends(store, fleet[0], 1, CommandState::Succeeded).await;
    taken.hold(store, fleet[1]).await;
    taken.sent(store, fleet[2], 1, 0).await;
    taken.ends(store, fleet[4], 1, CommandState::Failed).await;
    let passed = |through: i64| fleet.iter().filter(|agent| **agent <= through).count();
    assert_eq!(passed(advance(2).await), 2, "it looks at no more than the limit");
    assert_eq!(passed(advance(10).await), 3);
    assert_eq!(passed(advance(10).await), 3);
    for agent in &fleet[3..8] {
        taken.tell(store, *agent, Event::Cancelled).await;
    }
    for _ in 0..5 {
        advance(1).await;
    }
    assert_eq!(advance(10).await, fleet[7]);
    // A last page may reach beyond its last command, and so does the end.
    let last = CommandPage { through: fleet[8] + 100, ..page(taken.no, fleet[7], &fleet[8..], true) };
    store.command_insert(vec![last]).await.unwrap();
    assert_eq!(passed(advance(10).await), 8);
    taken.hold(store, fleet[8]).await;
    assert_eq!(advance(10).await, fleet[8] + 100);
    let open = store.action_list_open(0, 10).await.unwrap();
    assert_eq!((open[0].dispatched_through, open[0].resolved_through), (fleet[8] + 100, fleet[8] + 100));
}

pub async fn a_backlog_is_ordered_by_priority_and_due_time(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let from = |secs| in_secs(store, secs).to_string();
    let late = resolved(store, json!({"valid_from": from(-10)}), &fleet).await;
    let early = resolved(store, json!({"valid_from": from(-20)}), &fleet).await;
    let low = resolved(store, json!({"valid_from": from(-30), "priority": -1}), &fleet).await;
    let high = resolved(store, json!({"priority": 100}), &fleet).await;
    let held = resolved(store, json!({"valid_from": from(-25)}), &fleet).await;
    held.tell(store, fleet[0], Event::Hold { due_at: in_secs(store, -15) }).await;
    let backlog = store.command_backlog(fleet[0], store.now(), 10).await.unwrap();
    let order: Vec<_> = backlog.iter().map(|due| (due.action_no, due.priority, due.open)).collect();
    let expected =
        [(high.no, 100, false), (early.no, 0, false), (held.no, 0, true), (late.no, 0, false), (low.no, -1, false)];
    assert_eq!(order, expected);
    assert!(backlog.iter().all(|due| (due.agent_no, due.run, due.attempts) == (fleet[0], 1, 0)));
    assert_eq!(store.command_backlog(fleet[0], store.now(), 2).await.unwrap(), backlog[..2]);
    // However urgent, what is due later comes after what is due now.
    let soon = resolved(store, json!({"valid_from": from(30), "priority": 100}), &fleet).await;
    let backlog = store.command_backlog(fleet[0], in_secs(store, 60), 10).await.unwrap();
    assert_eq!((backlog.len(), backlog[5].action_no), (6, soon.no));
}

pub async fn a_backlog_ends_at_the_horizon(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let taken = accept(store, json!({})).await;
    let due = in_secs(store, 30);
    let page =
        CommandPage { commands: vec![(fleet[0], Some(due)), (fleet[1], None)], ..page(taken.no, 0, &fleet, true) };
    store.command_insert(vec![page]).await.unwrap();
    let backlog = async |agent: usize, horizon| store.command_backlog(fleet[agent], horizon, 10).await.unwrap().len();
    assert_eq!(backlog(0, Timestamp(due.0 - 1)).await, 0);
    assert_eq!(backlog(0, due).await, 1);
    assert_eq!(backlog(1, store.now()).await, 1);
    let later = in_secs(store, 50);
    taken.tell(store, fleet[1], Event::Hold { due_at: later }).await;
    assert_eq!(backlog(1, Timestamp(later.0 - 1)).await, 0);
    assert_eq!(backlog(1, later).await, 1);
}

pub async fn a_backlog_leaves_out_what_is_with_the_agent_or_over(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let sent = resolved(store, json!({}), &fleet).await;
    let over = resolved(store, json!({}), &fleet).await;
    let retry = resolved(store, json!({"max_runs": 2}), &fleet).await;
    let failed = resolved(store, json!({}), &fleet).await;
    sent.sent(store, fleet[0], 1, 0).await;
    over.ends(store, fleet[0], 1, CommandState::Failed).await;
    retry.ends(store, fleet[0], 1, CommandState::Failed).await;
    failed.fails(store, fleet[0], 1, 4).await;
    // Its agent asks a broker's sender for what lies there, and the scheduler doesn't send it again.
    let queued = resolved(store, json!({}), &fleet).await;
    let due_at = in_secs(store, -5);
    queued.tell(store, fleet[0], Event::Queued { run: 1, due_at }).await;
    let backlog = store.command_backlog(fleet[0], in_secs(store, 600), 10).await.unwrap();
    let found: Vec<_> = backlog.iter().map(|due| (due.action_no, due.run, due.attempts, due.open)).collect();
    assert_eq!(found, [(queued.no, 1, 0, true), (retry.no, 2, 0, true), (failed.no, 1, 4, true)]);
    assert_eq!(store.command_backlog(fleet[1], store.now(), 10).await.unwrap().len(), 5, "others are not concerned");
}

pub async fn a_backlog_is_of_open_actions_only(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 2).await;
    let mut actions = Vec::new();
    for open in [false, true] {
        let store = backend.store();
        for changes in [json!({}), json!({}), json!({"expires_after": "1m"})] {
            let taken = accept(store, changes).await;
            store.command_insert(vec![page(taken.no, 0, &fleet[..1], false)]).await.unwrap();
            if open {
                taken.hold(store, fleet[0]).await;
            }
            actions.push(taken);
        }
    }
    let backlog = async |store: &dyn Store| {
        let due = store.command_backlog(fleet[0], in_secs(store, 10), 10).await.unwrap();
        due.iter().map(|due| due.action_no).collect::<Vec<_>>()
    };
    assert_eq!(backlog(backend.store()).await.len(), 6);
    for chunk in actions.chunks(3) {
        backend.store().action_cancel(chunk[0].id, &me()).await.unwrap();
        backend.store().action_expire(chunk[1].no).await.unwrap();
    }
    assert_eq!(backlog(backend.store()).await, [actions[2].no, actions[5].no]);
    backend.set_offset(61_000);
    assert!(backlog(backend.store()).await.is_empty(), "their time is over");
}

pub async fn a_backlog_finds_what_lies_beyond_the_advanced_key(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let taken = resolved(store, json!({}), &fleet).await;
    taken.hold(store, fleet[0]).await;
    taken.ends(store, fleet[1], 1, CommandState::Succeeded).await;
    store.action_advance(vec![taken.no], 10).await.unwrap().remove(0);
    for (agent, open) in [(fleet[0], vec![true]), (fleet[1], vec![]), (fleet[2], vec![false])] {
        let backlog = store.command_backlog(agent, in_secs(store, 1), 10).await.unwrap();
        assert_eq!(backlog.iter().map(|due| due.open).collect::<Vec<_>>(), open);
    }
}

/// The agents of the open rows that are due in a range.
async fn due(store: &dyn Store, after: Timestamp, horizon: Timestamp) -> Vec<i64> {
    let page = store.command_due((after, i64::MAX, i64::MAX), horizon, 100).await.unwrap();
    page.found.iter().map(|(due, _)| due.agent_no).collect()
}

pub async fn due_rows_are_those_of_agents_that_this_node_reaches(backend: &mut impl Backend) {
    let agents =
        vec![named("here", "stream"), named("away", "stream"), named("hook", "webhook"), named("has", "webhook")];
    backend.store().node_start("one", &["webhook".into()]).await.unwrap();
    backend.store().agent_insert(agents).await.unwrap();
    let fleet = crate::support::matching(backend.store(), &odoshi::domain::target::Target::All).await;
    let taken = resolved(backend.store(), json!({"priority": 7}), &fleet).await;
    for agent in &fleet[..3] {
        taken.postponed(backend.store(), *agent, backend.store().now()).await;
    }
    taken.sent(backend.store(), fleet[3], 1, 0).await;
    let epochs = connect(backend.store(), &fleet[..1]).await;
    let store = backend.store();
    let horizon = in_secs(store, 3_600);
    let page = store.command_due((Timestamp(0), 0, 0), horizon, 100).await.unwrap();
    assert_eq!(page.through, None);
    let found: Vec<_> = page.found.iter().map(|(due, by)| (due.agent_no, &**by, due.open, due.priority)).collect();
    assert_eq!(found, [(fleet[0], "stream", true, 7), (fleet[2], "webhook", true, 7)]);
    store.session_close(&[(fleet[0], epochs[0])]).await.unwrap();
    assert_eq!(due(store, Timestamp(0), horizon).await, [fleet[2]]);
    // A session that another process held is none of this one's, which takes over what isn't a stream.
    connect(store, &fleet[1..2]).await;
    backend.reopen().await;
    backend.store().node_start("one", &["webhook".into()]).await.unwrap();
    assert_eq!(due(backend.store(), Timestamp(0), horizon).await, [fleet[2]]);
}

pub async fn what_no_node_has_a_sender_for_is_counted_and_is_not_due(backend: &mut impl Backend) {
    let store = backend.store();
    let agents = [("a", "stream"), ("b", "pager"), ("c", "pager"), ("d", "webhook"), ("e", "chat")];
    store.agent_insert(agents.map(|(name, transport)| named(name, transport)).to_vec()).await.unwrap();
    store.node_start("one", &["stream".into(), "webhook".into()]).await.unwrap();
    let fleet = crate::support::matching(store, &odoshi::domain::target::Target::All).await;
    let [taken, paused] = [resolved(store, json!({}), &fleet).await, resolved(store, json!({}), &fleet).await];
    assert_eq!(store.command_unserved(10).await.unwrap(), []);
    taken.hold(store, fleet[0]).await;
    paused.hold(store, fleet[0]).await;
    for agent in &fleet[1..4] {
        taken.postponed(store, *agent, store.now()).await;
        paused.postponed(store, *agent, store.now()).await;
    }
    taken.postponed(store, fleet[4], in_secs(store, 3_600)).await;
    store.action_pause(paused.id, true, &me()).await.unwrap();
    let counts = [("pager".to_owned(), 2)];
    assert_eq!(store.command_unserved(10).await.unwrap(), counts, "not what isn't due, or is paused");
    assert_eq!(store.command_unserved(1).await.unwrap(), [("pager".to_owned(), 1)], "no further than the limit");
    assert_eq!(due(store, Timestamp(0), in_secs(store, 60)).await, [fleet[3]]);
    let with_due =
        async |secs| store.agent_with_due(&[fleet[0], fleet[1], fleet[4], 999], in_secs(store, secs)).await.unwrap();
    assert_eq!(with_due(60).await, [fleet[0], fleet[1]]);
    assert_eq!(with_due(3_660).await, [fleet[0], fleet[1], fleet[4]]);
    taken.sent(store, fleet[1], 1, 0).await;
    assert_eq!(store.command_unserved(10).await.unwrap(), [("pager".to_owned(), 1)]);
}

pub async fn due_rows_lie_after_the_first_and_up_to_the_second_time(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 4).await;
    connect(store, &fleet).await;
    let taken = resolved(store, json!({"max_runs": 2}), &fleet).await;
    // What is postponed to the past is due now.
    let begin = in_secs(store, 10);
    let at = |secs: u64| begin.plus(Duration::from_secs(secs));
    for (agent, secs) in [(fleet[0], 3), (fleet[1], 1), (fleet[2], 2)] {
        taken.postponed(store, agent, at(secs)).await;
    }
    taken.tell(store, fleet[3], Event::Hold { due_at: at(2) }).await;
    assert_eq!(due(store, at(0), at(3)).await, [fleet[1], fleet[2], fleet[0]], "not what waits for its agent");
    assert_eq!(due(store, at(1), at(2)).await, [fleet[2]]);
    taken.ends(store, fleet[3], 1, CommandState::Failed).await;
    let mut all = due(store, Timestamp(0), in_secs(store, 120)).await;
    all.sort_unstable();
    assert_eq!(all, fleet);
}

pub async fn due_rows_of_one_time_are_read_page_by_page(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 5).await;
    // Those of agents that are not connected are passed over, however many there are.
    connect(store, &[fleet[0], fleet[4]]).await;
    let taken = resolved(store, json!({}), &fleet).await;
    let at = in_secs(store, 10);
    for agent in &fleet {
        taken.postponed(store, *agent, at).await;
    }
    let (mut place, mut seen) = ((Timestamp(0), 0, 0), Vec::<Vec<i64>>::new());
    loop {
        let page = store.command_due(place, at, 2).await.unwrap();
        seen.push(page.found.iter().map(|(due, _)| due.agent_no).collect());
        let Some(through) = page.through else { break };
        place = through;
    }
    assert_eq!(seen, [vec![fleet[0]], vec![], vec![fleet[4]]]);
}

pub async fn due_rows_of_a_cancelled_action_are_left_out(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    connect(store, &fleet).await;
    let [kept, cancelled, expired] = [
        resolved(store, json!({}), &fleet).await,
        resolved(store, json!({}), &fleet).await,
        accept(store, json!({})).await,
    ];
    store.command_insert(vec![page(expired.no, 0, &fleet, false)]).await.unwrap();
    for taken in [kept, cancelled, expired] {
        taken.postponed(store, fleet[0], store.now()).await;
    }
    store.action_cancel(cancelled.id, &me()).await.unwrap();
    store.action_expire(expired.no).await.unwrap();
    let page = store.command_due((Timestamp(0), 0, 0), in_secs(store, 60), 10).await.unwrap();
    assert_eq!(page.found.iter().map(|(due, _)| due.action_no).collect::<Vec<_>>(), [kept.no]);
}

pub async fn overdue_commands_are_found_when_the_timeout_and_the_grace_are_over(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let slow = resolved(store, json!({"timeout": "20s"}), &fleet).await;
    let slower = resolved(store, json!({"timeout": "40s"}), &fleet).await;
    slower.sent(store, fleet[0], 1, 0).await;
    slow.sent(store, fleet[1], 1, 0).await;
    slow.hold(store, fleet[2]).await;
    let overdue = async |secs| store.command_overdue(in_secs(store, secs), 10).await.unwrap();
    assert!(overdue(10).await.is_empty());
    assert_eq!(overdue(31).await, [(slow.no, fleet[1])]);
    assert_eq!(overdue(51).await, [(slow.no, fleet[1]), (slower.no, fleet[0])]);
    assert_eq!(store.command_overdue(in_secs(store, 51), 1).await.unwrap().len(), 1);
    slow.ends(store, fleet[1], 1, CommandState::Succeeded).await;
    assert_eq!(overdue(51).await, [(slower.no, fleet[0])]);
}

pub async fn unfinished_commands_are_paged_with_and_without_what_is_with_the_agent(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 6).await;
    let taken = resolved(store, json!({"max_runs": 2}), &fleet).await;
    taken.ends(store, fleet[0], 1, CommandState::Succeeded).await;
    taken.sent(store, fleet[1], 1, 0).await;
    taken.ends(store, fleet[2], 1, CommandState::Failed).await;
    taken.hold(store, fleet[3]).await;
    taken.tell(store, fleet[4], Event::Expired).await;
    let unfinished = async |which, after, limit| store.command_unfinished(taken.no, which, after, limit).await.unwrap();
    assert_eq!(unfinished(Unfinished::All, 0, 10).await, [fleet[1], fleet[2], fleet[3], fleet[5]]);
    assert_eq!(unfinished(Unfinished::Pending, 0, 10).await, [fleet[2], fleet[3], fleet[5]]);
    assert_eq!(unfinished(Unfinished::All, fleet[1], 2).await, [fleet[2], fleet[3]]);
    assert_eq!(unfinished(Unfinished::Pending, fleet[3], 2).await, [fleet[5]]);
}
