use super::*;
use crate::domain::command::CommandState;
use crate::signals::Dirty;
use crate::testing::{TestNode, end};
use serde_json::json;

const ID: Uuid = Uuid::from_u128(5);

fn due(action_no: i64, agent_no: i64) -> Due {
    let due_at = crate::domain::time::Timestamp(0);
    Due { action_no, agent_no, run: 1, attempts: 0, due_at, priority: 0, open: true }
}

fn snapshot() -> Snapshot {
    Snapshot { reading: 7, actions: Vec::new() }
}

/// A signal, who hears what, and whether watchers are woken.
type Case = (fn(&Signals), &'static [&'static str], bool);

#[rustfmt::skip]
const CASES: &[Case] = &[
    (|s| s.actions_submitted(), &["resolver: wake"], false),
    (|s| s.commands_written([(1, 0), (2, 5)]),
        &["peers: [Commands { action_no: 1, after: 0 }, Commands { action_no: 2, after: 5 }]"], true),
    (|s| s.commands_written([]), &[], false),
    (|s| s.action_resolved(1), &["complete: wake"], false),
    (|s| s.commands_joined(vec![due(1, 2)]), &["scheduler: rescheduled [(1, 2, 1)]", "peers: [Backlog(2), Open]"], true),
    (|s| s.due_soon(vec![due(1, 2)]), &["scheduler: rescheduled [(1, 2, 1)]"], false),
    (|s| s.due_soon(vec![]), &[], false),
    (|s| s.commands_unserved(), &["peers: [Open]"], false),
    (|s| s.outcomes_recorded(&[], &[]), &[], false),
    (|s| s.action_cancelled(1, ID),
        &["scheduler: cancelled [1]", "sender 1: cancelled [1]", "sender 2: cancelled [1]",
          "open_actions: wake", "complete: wake", "peers: [Action(1)]"], true),
    (|s| s.action_paused(1), &["peers: [Action(1)]"], true),
    (|s| s.action_resumed(1), &["scheduler: resumed [1]", "backlogs: wake", "peers: [Action(1)]"], true),
    (|s| s.cancel_found(1, ID),
        &["scheduler: cancelled [1]", "sender 1: cancelled [1]", "sender 2: cancelled [1]"], true),
    (|s| s.pause_found(1, true), &[], false),
    (|s| s.pause_found(1, false), &["scheduler: resumed [1]", "backlogs: wake"], true),
    (|s| s.actions_ended(&[1]), &["hooks: wake"], true),
    (|s| s.actions_ended(&[]), &[], false),
    (|s| s.hooks_told(), &["hooks: wake"], false),
    (|s| s.schedules_changed(), &["recur: wake"], false),
    (|s| s.read_open_actions(), &["open_actions: wake"], false),
    (|s| s.open_actions_read(snapshot()),
        &["scheduler: open actions 7", "after 1: wake", "after 2: wake"], false),
    (|s| s.agent_changed(3), &["live_join: wake"], false),
    (|s| s.agent_disabled(3), &["stream: disabled 3", "peers: [Agent(3)]"], false),
    (|s| s.sessions_moved_here([(3, 9)]), &["peers: [Moved { agent_no: 3, epoch: 9 }]"], false),
    (|s| s.sessions_moved_here([]), &[], false),
    (|s| s.backlog_changed(3), &["stream: backlog [3]", "peers: [Backlog(3)]"], false),
    (|s| s.heard_cancelled(1, ID),
        &["scheduler: cancelled [1]", "sender 1: cancelled [1]", "sender 2: cancelled [1]",
          "open_actions: wake"], true),
    (|s| s.heard_disabled(3), &["stream: disabled 3"], false),
    (|s| s.heard_moved(vec![(3, 9)]), &["stream: superseded [(3, 9)]"], false),
    (|s| s.heard_moved(vec![]), &[], false),
    (|s| s.backlogs_found(vec![3, 4]), &["stream: backlog [3, 4]"], false),
    (|s| s.heard_news(PeerNews::default()), &[], false),
    (|s| s.heard_news(PeerNews { open: true, ..PeerNews::default() }),
        &["scheduler: PeerNews { commands: [], open: true, everything: false }"], false),
    (|s| s.heard_backlogs(vec![3, 4]), &["stream: backlog [3, 4]"], false),
    (|s| s.heard_backlogs(vec![]), &[], false),
    (|s| s.sweep_live([3]), &["live_sweep: wake"], false),
    (|s| s.heard_news(PeerNews { everything: true, ..PeerNews::default() }),
        &["scheduler: PeerNews { commands: [], open: false, everything: true }", "open_actions: wake", "backlogs: wake"], true),
    (|s| s.heard_waiting(vec![3]), &[], false),
];

#[actix_rt::test]
async fn each_signal_wakes_exactly_whom_it_concerns() {
    let node = TestNode::new().await;
    for (number, (signal, expected, is_change)) in CASES.iter().enumerate() {
        let progress = node.node.signals.progress().watch(1);
        let changes = progress.subscribe();
        signal(&node.node.signals);
        assert_eq!(node.heard().await, *expected, "case {number}");
        assert_eq!(changes.has_changed().unwrap(), *is_change, "case {number}, {expected:?}: watchers");
    }
}

#[actix_rt::test]
async fn what_a_user_does_with_an_action_is_marked_in_memory_at_once() {
    let node = TestNode::new().await;
    let action = node.submit(json!({})).await;
    let signals = &node.node.signals;
    signals.action_paused(action.no);
    assert!(action.is_paused());
    signals.action_resumed(action.no);
    assert!(!action.is_paused());
    signals.pause_found(action.no, true);
    assert!(action.is_paused());
    signals.action_cancelled(action.no, action.id);
    assert!(action.is_cancelled());
}

/// Reports about agents 1, 2 and so on of action 9, each with its answer, are recorded.
async fn recorded(node: &TestNode, reports: Vec<(Event, Verdict<Answer>)>) -> Vec<String> {
    let action = crate::testing::action(9, json!({}), node.store.now());
    let (events, answers): (Vec<_>, Vec<_>) = reports.into_iter().unzip();
    let events = (1..).zip(events);
    let reports: Vec<_> = events.map(|(agent, event)| crate::senders::report_of(&action, agent, event)).collect();
    node.node.signals.outcomes_recorded(&reports, &answers);
    node.heard().await
}

#[actix_rt::test]
async fn a_stored_outcome_may_complete_its_action() {
    let node = TestNode::new().await;
    let result = Event::Result(Box::new(end(1, CommandState::Succeeded, node.store.now())));
    assert_eq!(recorded(&node, vec![(result, Ok(Answer::Stored))]).await, ["complete: wake"]);
    assert_eq!(node.node.signals.changed_actions().take(), Dirty::Keys([9].into()));
}

#[actix_rt::test]
async fn a_command_that_is_due_again_goes_to_the_scheduler_and_wakes_its_agents_long_poll() {
    let node = TestNode::new().await;
    let poll = node.node.signals.long_pollers().wait(1);
    let again = Answer::Again { run: 2, attempts: 0, due_at: node.store.now() };
    let heard = recorded(&node, vec![(Event::Overdue, Ok(again))]).await;
    assert_eq!(heard, ["scheduler: rescheduled [(9, 1, 2)]", "peers: [Waiting]"]);
    poll.woken().await;
}

#[actix_rt::test]
async fn a_command_that_is_held_wakes_its_agents_long_poll_here_and_elsewhere() {
    let node = TestNode::new().await;
    let poll = node.node.signals.long_pollers().wait(1);
    let hold = Event::Hold { due_at: node.store.now() };
    assert_eq!(recorded(&node, vec![(hold, Ok(Answer::Stored))]).await, ["complete: wake", "peers: [Waiting]"]);
    poll.woken().await;
}

#[actix_rt::test]
async fn reports_that_change_nothing_wake_nobody() {
    let node = TestNode::new().await;
    let answers = [Answer::Decided, Answer::Rejected("no".into())];
    let reports = answers.into_iter().map(|answer| (Event::Cancelled, Ok(answer)));
    assert!(recorded(&node, reports.collect()).await.is_empty());
    assert_eq!(node.node.signals.changed_actions().take(), Dirty::Keys([].into()));
}

#[actix_rt::test]
async fn a_hint_for_a_full_mailbox_is_dropped() {
    let node = TestNode::new().await;
    for _ in 0..10 * crate::testing::MAILBOX {
        node.node.signals.actions_submitted();
    }
    let heard = node.heard().await.len();
    assert!(heard > 0 && heard <= 2 * crate::testing::MAILBOX, "{heard}");
}
