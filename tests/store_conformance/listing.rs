//! Commands as users see them.

use crate::Backend;
use crate::support::{Taken, agents, in_secs, named, page, resolved};
use odoshi::domain::command::{CommandState, Event};
use odoshi::domain::target::Target;
use odoshi::store::{AgentNames, CommandView, Store};
use serde_json::json;
use uuid::Uuid;

use CommandState::{Cancelled, Expired, Failed, Pending, Sent, Succeeded, TimedOut, Undeliverable};

pub async fn commands_are_paged_by_name(backend: &mut impl Backend) {
    let store = backend.store();
    // In an order that is neither that of their keys nor that of a dictionary.
    let names = ["b", "a-1", "Z", "a", "a_", "10", "9", "a.b", "B", "not-of-it"];
    store.agent_insert(names.iter().map(|name| named(name, "stream")).collect()).await.unwrap();
    let fleet = crate::support::matching(store, &Target::All).await;
    let taken = resolved(store, json!({}), &fleet[..9]).await;
    let mut expected = names[..9].to_vec();
    expected.sort_unstable();
    for limit in [1, 2, 9, 100] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().map(String::as_str);
            let page =
                store.command_list(taken.id, None, AgentNames::After(after.unwrap_or_default()), limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            found.extend(page.into_iter().map(|view| view.agent));
        }
        assert_eq!(found, expected);
    }
}

/// An action with a command in every state, each of an agent of its own, in the order of [`CommandState::ALL`], and a
/// last one between two runs.
async fn one_of_each(backend: &impl Backend) -> Taken {
    let store = backend.store();
    let fleet = agents(store, 9).await;
    let taken = resolved(store, json!({"timeout": "1s", "max_deliveries": 2, "max_runs": 2}), &fleet).await;
    taken.fails(store, fleet[1], 1, 1).await;
    taken.sent(store, fleet[1], 1, 1).await;
    taken.ends(store, fleet[2], 1, Succeeded).await;
    taken.sent(store, fleet[4], 1, 0).await;
    for (agent, run) in [(3, 1), (3, 2), (8, 1)] {
        taken.ends(store, fleet[agent], run, Failed).await;
    }
    backend.set_offset(12_000);
    taken.tell(store, fleet[4], Event::Overdue).await;
    taken.sent(store, fleet[4], 2, 1).await;
    backend.set_offset(24_000);
    taken.tell(store, fleet[4], Event::Overdue).await;
    taken.fails(store, fleet[5], 1, 1).await;
    taken.fails(store, fleet[5], 1, 2).await;
    taken.hold(store, fleet[6]).await;
    taken.tell(store, fleet[6], Event::Expired).await;
    taken.fails(store, fleet[7], 1, 1).await;
    taken.tell(store, fleet[7], Event::Cancelled).await;
    taken
}

pub async fn commands_are_filtered_by_each_state(backend: &mut impl Backend) {
    let taken = one_of_each(backend).await;
    let store = backend.store();
    let filtered = async |state, after: Option<&str>, limit| {
        let page =
            store.command_list(taken.id, state, AgentNames::After(after.unwrap_or_default()), limit).await.unwrap();
        page.into_iter().map(|view: CommandView| (view.agent, view.status)).collect::<Vec<_>>()
    };
    let all = filtered(None, None, 100).await;
    let states = [Pending, Sent, Succeeded, Failed, TimedOut, Undeliverable, Expired, Cancelled, Pending];
    assert_eq!(all.iter().map(|(_, state)| *state).collect::<Vec<_>>(), states);
    for state in CommandState::ALL {
        let wanted: Vec<_> = all.iter().filter(|(_, is)| *is == state).cloned().collect();
        assert_eq!(filtered(Some(state), None, 100).await, wanted);
        assert_eq!(filtered(Some(state), None, 1).await, wanted[..1]);
        assert_eq!(filtered(Some(state), Some(&wanted[0].0), 100).await, wanted[1..]);
    }
}

pub async fn a_command_shows_what_was_done_about_it(backend: &mut impl Backend) {
    let taken = one_of_each(backend).await;
    let store = backend.store();
    let action = store.action_get(taken.no).await.unwrap().unwrap();
    let views = taken.list(store).await;
    // State, delivery attempts of the run, runs begun; whether there is sent_at, finished_at, results; the error.
    let expected = [
        (Pending, 0, 0, false, false, false, None),
        (Sent, 2, 1, true, false, false, None),
        (Succeeded, 1, 1, true, true, true, None),
        (Failed, 1, 2, true, true, true, Some("run 2 went wrong")),
        (TimedOut, 2, 2, true, true, false, Some("no result came within the timeout")),
        (Undeliverable, 2, 0, false, true, false, Some("nobody there")),
        (Expired, 0, 0, false, true, false, None),
        (Cancelled, 1, 0, false, true, false, None),
        (Pending, 0, 1, false, false, true, Some("run 1 went wrong")),
    ];
    for (view, expected) in views.iter().zip(expected) {
        let shown = (
            view.status,
            view.attempts,
            view.runs,
            view.sent_at.is_some(),
            view.finished_at.is_some(),
            view.results.is_some(),
            view.error.as_deref(),
        );
        assert_eq!(shown, expected, "{view:?}");
        let between_runs = view.agent == "agent-008";
        assert_eq!(view.due_at == action.valid_from, !between_runs, "{view:?}");
        assert!(view.due_at >= action.valid_from);
    }
    assert_eq!(views[3].results.as_ref().unwrap()[0].output.as_ref().unwrap().get(), "2", "those of the last run");
}

pub async fn a_command_cancelled_between_runs_shows_one_run(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let taken = resolved(store, json!({"max_runs": 3}), &fleet).await;
    for agent in &fleet {
        taken.ends(store, *agent, 1, Failed).await;
    }
    taken.fails(store, fleet[1], 2, 3).await;
    taken.sent(store, fleet[2], 2, 0).await;
    for end in [false, true] {
        if end {
            for agent in &fleet {
                taken.tell(store, *agent, Event::Cancelled).await;
            }
        }
        let shown: Vec<_> = taken.list(store).await.iter().map(|view| (view.runs, view.attempts)).collect();
        assert_eq!(shown, [(1, 0), (1, 3), (2, 1)], "cancelled: {end}");
    }
}

pub async fn commands_of_an_unknown_action_are_none(backend: &mut impl Backend) {
    let store: &dyn Store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = crate::support::accept(store, json!({})).await;
    assert!(taken.list(store).await.is_empty(), "nothing is resolved yet");
    let due = in_secs(store, -86_400 * 365 * 80);
    let commands = vec![(fleet[0], Some(due))];
    let page = odoshi::store::CommandPage { commands, ..page(taken.no, 0, &fleet, true) };
    store.command_insert(vec![page]).await.unwrap();
    assert_eq!(taken.list(store).await[0].due_at, due, "before 1970");
    assert!(store.command_list(Uuid::now_v7(), None, AgentNames::ALL, 10).await.unwrap().is_empty());
}
