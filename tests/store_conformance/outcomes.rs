//! What happened to commands: who is first, what is late, what is wrong, and what survives.

use crate::Backend;
use crate::support::{accept, agents, end, page, resolved};
use odoshi::domain::command::{Answer, CommandState, Event, RunEnd};
use odoshi::domain::counts::Counts;
use odoshi::domain::time::Timestamp;
use odoshi::store::{Accepted, CommandView, Inserted, Report};
use serde_json::json;
use uuid::Uuid;

use CommandState::{Cancelled, Expired, Failed, Pending, Sent, Succeeded, TimedOut, Undeliverable};

/// The counts that users see, which are those of the rows.
async fn counts(backend: &impl Backend, id: Uuid) -> Counts {
    let view = backend.store().action_view(id).await.unwrap().unwrap();
    let counted = Counts { resolved: view.counts.resolved, ..backend.group_by(view.no).await };
    assert_eq!(view.counts, counted);
    view.counts
}

fn rejected(answer: &Answer) -> bool {
    matches!(answer, Answer::Rejected(reason) if !reason.is_empty())
}

pub async fn the_first_outcome_of_a_run_wins_and_stays(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({}), &fleet).await;
    assert_eq!(taken.ends(store, fleet[0], 1, Failed).await, Answer::Stored);
    let first = serde_json::to_value(&taken.list(store).await[0]).unwrap();
    assert_eq!(taken.ends(store, fleet[0], 1, Succeeded).await, Answer::Stored);
    assert_eq!(taken.sent(store, fleet[0], 1, 3).await, Answer::Decided);
    assert_eq!(taken.fails(store, fleet[0], 1, 9).await, Answer::Decided);
    for event in [Event::Cancelled, Event::Expired, Event::Overdue, Event::Undeliverable { error: "gone".into() }] {
        assert_eq!(taken.tell(store, fleet[0], event).await, Answer::Decided);
    }
    assert_eq!(taken.hold(store, fleet[0]).await, Answer::Decided);
    assert_eq!(serde_json::to_value(&taken.list(store).await[0]).unwrap(), first);
    assert_eq!(counts(backend, taken.id).await.failed, 1);
    assert!(backend.open_rows(taken.no).await.is_empty());
}

pub async fn a_repeated_result_is_stored_once(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({"max_runs": 2}), &fleet).await;
    assert!(matches!(taken.ends(store, fleet[0], 1, Failed).await, Answer::Again { run: 2, attempts: 0, .. }));
    assert_eq!(taken.ends(store, fleet[0], 1, Failed).await, Answer::Stored);
    assert_eq!(taken.ends(store, fleet[0], 2, Succeeded).await, Answer::Stored);
    for run in [1, 2, 2, 1] {
        assert_eq!(taken.ends(store, fleet[0], run, Failed).await, Answer::Stored);
    }
    assert!(backend.late_runs(taken.no, fleet[0]).await.is_empty());
    assert_eq!(counts(backend, taken.id).await.succeeded, 1);
}

pub async fn a_late_result_is_kept_and_changes_nothing(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 3).await;
    let taken = resolved(backend.store(), json!({"timeout": "1s", "max_runs": 2}), &fleet).await;
    taken.sent(backend.store(), fleet[0], 1, 0).await;
    taken.tell(backend.store(), fleet[1], Event::Cancelled).await;
    backend.set_offset(12_000);
    let store = backend.store();
    assert!(matches!(taken.tell(store, fleet[0], Event::Overdue).await, Answer::Again { run: 2, .. }));
    taken.hold(store, fleet[2]).await;
    let before = serde_json::to_value(taken.list(store).await).unwrap();
    for _ in 0..2 {
        assert_eq!(taken.ends(store, fleet[0], 1, Succeeded).await, Answer::Stored);
        assert_eq!(taken.ends(store, fleet[1], 1, Succeeded).await, Answer::Stored);
    }
    assert_eq!(serde_json::to_value(taken.list(store).await).unwrap(), before);
    assert_eq!(backend.late_runs(taken.no, fleet[0]).await, [1]);
    assert_eq!(backend.late_runs(taken.no, fleet[1]).await, [1]);
    assert_eq!(backend.open_rows(taken.no).await, [fleet[0], fleet[2]]);
    let counts = counts(backend, taken.id).await;
    assert_eq!((counts.pending, counts.cancelled, counts.timed_out), (2, 1, 0));
}

pub async fn a_result_of_another_agent_is_rejected(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 3).await;
    let taken = accept(store, json!({})).await;
    store.command_insert(vec![page(taken.no, 0, &fleet[..2], true)]).await.unwrap();
    assert!(rejected(&taken.ends(store, fleet[2], 1, Succeeded).await));
    assert!(rejected(&taken.hold(store, fleet[2]).await));
    // One that is wrong doesn't keep the others from being stored, even if its reporter says that nobody needs to look.
    let result = Event::Result(Box::new(end(1, Succeeded, store.now())));
    let batch: Vec<Report> =
        fleet.iter().map(|agent| Report { skip_lookup: true, ..taken.report(*agent, result.clone()) }).collect();
    let answers = store.outcome_record(&batch).await.unwrap();
    assert!(answers[0] == Answer::Stored && answers[1] == Answer::Stored && rejected(&answers[2]), "{answers:?}");
    assert_eq!(counts(backend, taken.id).await.succeeded, 2);
}

pub async fn a_result_of_a_run_that_is_not_due_is_rejected(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({"max_runs": 3}), &fleet).await;
    for run in [0, -1, 2, 7] {
        assert!(rejected(&taken.ends(store, fleet[0], run, Succeeded).await), "{run}");
    }
    taken.ends(store, fleet[0], 1, Failed).await;
    assert!(rejected(&taken.ends(store, fleet[0], 3, Succeeded).await));
    taken.ends(store, fleet[0], 2, Succeeded).await;
    assert!(rejected(&taken.ends(store, fleet[0], 3, Succeeded).await));
    assert!(backend.late_runs(taken.no, fleet[0]).await.is_empty());
}

pub async fn a_failed_run_is_followed_by_another_one(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({"max_runs": 3}), &fleet).await;
    for (run, status) in [(1, Failed), (2, TimedOut)] {
        taken.sent(store, fleet[0], run, 0).await;
        assert_eq!(counts(backend, taken.id).await.sent, 1);
        let before = store.now();
        let answer = taken.ends(store, fleet[0], run, status).await;
        let Answer::Again { run: next, attempts: 0, due_at } = answer else { panic!("{answer:?}") };
        assert!(next == run + 1 && due_at > before);
        assert_eq!(counts(backend, taken.id).await.pending, 1);
        let backlog = store.command_backlog(fleet[0], due_at, 10).await.unwrap();
        assert_eq!((backlog[0].run, backlog[0].due_at, backlog[0].attempts), (next, due_at, 0));
        assert!(store.action_complete(vec![taken.no]).await.unwrap().is_empty());
    }
    assert_eq!(taken.ends(store, fleet[0], 3, Failed).await, Answer::Stored);
    assert_eq!(counts(backend, taken.id).await.failed, 1);
    assert_eq!(store.action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
}

pub async fn a_run_that_a_cancel_killed_is_cancelled_whoever_is_first(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 4).await;
    let taken = resolved(store, json!({"max_runs": 3}), &fleet).await;
    // Nobody has cancelled it yet, also where the reporter says that nobody needs to look.
    let said = Event::Result(Box::new(end(1, Cancelled, store.now())));
    let report = Report { skip_lookup: true, ..taken.report(fleet[3], said) };
    let answer = store.outcome_record(&[report]).await.unwrap().remove(0);
    assert!(matches!(answer, Answer::Again { run: 2, .. }), "{answer:?}");
    store.action_cancel(taken.id, &crate::support::me()).await.unwrap();

    // The agent is first, the reconciler is first, and an agent whose run failed by itself.
    assert_eq!(taken.ends(store, fleet[0], 1, Cancelled).await, Answer::Stored);
    assert_eq!(taken.tell(store, fleet[1], Event::Cancelled).await, Answer::Stored);
    assert_eq!(taken.ends(store, fleet[1], 1, Cancelled).await, Answer::Stored);
    assert_eq!(taken.ends(store, fleet[2], 1, Failed).await, Answer::Stored);
    for agent in &fleet[..3] {
        assert_eq!(taken.tell(store, *agent, Event::Cancelled).await, Answer::Decided);
    }
    assert_eq!(taken.tell(store, fleet[3], Event::Cancelled).await, Answer::Stored);
    assert!(taken.list(store).await.iter().all(|command| command.status == Cancelled));
    let counts = counts(backend, taken.id).await;
    assert_eq!((counts.cancelled, counts.failed, counts.pending), (4, 0, 0));
    assert!(backend.open_rows(taken.no).await.is_empty());
    // As a first result that needs no look.
    let one = resolved(store, json!({}), &fleet[..1]).await;
    store.action_cancel(one.id, &crate::support::me()).await.unwrap();
    let said = Event::Result(Box::new(end(1, Cancelled, store.now())));
    store.outcome_record(&[Report { skip_lookup: true, ..one.report(fleet[0], said) }]).await.unwrap();
    assert_eq!(one.list(store).await[0].status, Cancelled);
}

pub async fn an_agent_ends_a_command_as_expired_only_when_it_has(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 1).await;
    let taken = resolved(backend.store(), json!({"max_deliveries": 1, "max_runs": 2}), &fleet).await;
    let found = Event::FoundExpired { run: 1, expires_at: crate::support::in_secs(backend.store(), 3_600) };
    taken.sent(backend.store(), fleet[0], 1, 0).await;
    let answer = taken.tell(backend.store(), fleet[0], found.clone()).await;
    assert!(matches!(answer, Answer::Again { run: 1, attempts: 0, .. }), "{answer:?}");
    assert_eq!(counts(backend, taken.id).await.pending, 1);
    backend.set_offset(3_700_000);
    taken.sent(backend.store(), fleet[0], 1, 0).await;
    assert_eq!(taken.tell(backend.store(), fleet[0], found).await, Answer::Stored);
    assert_eq!(counts(backend, taken.id).await.expired, 1);
}

pub async fn failed_hand_overs_make_a_command_undeliverable_at_the_limit(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({"max_deliveries": 3}), &fleet).await;
    for attempts in 1..3 {
        let answer = taken.fails(store, fleet[0], 1, attempts).await;
        assert!(matches!(answer, Answer::Again { run: 1, attempts: n, .. } if n == attempts), "{answer:?}");
        assert_eq!(counts(backend, taken.id).await.pending, 1);
    }
    assert_eq!(taken.fails(store, fleet[0], 1, 3).await, Answer::Stored);
    assert_eq!(counts(backend, taken.id).await.undeliverable, 1);
    let view = &taken.list(store).await[0];
    assert_eq!((view.status, view.attempts, view.runs), (Undeliverable, 3, 0));
    assert_eq!(view.error.as_deref(), Some("nobody there"));
}

pub async fn attempts_never_decrease_whoever_reports(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 1).await;
    let taken = resolved(store, json!({}), &fleet).await;
    taken.fails(store, fleet[0], 1, 4).await;
    let answer = taken.fails(store, fleet[0], 1, 2).await;
    assert!(matches!(answer, Answer::Again { attempts: 4, .. }), "{answer:?}");
    taken.sent(store, fleet[0], 1, 0).await;
    assert_eq!(taken.list(store).await[0].attempts, 5, "four that failed, and the one that worked");
    taken.ends(store, fleet[0], 1, Succeeded).await;
    assert_eq!(taken.list(store).await[0].attempts, 5);
}

pub async fn a_report_that_was_wrongly_fresh_is_looked_at(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 6).await;
    let taken = resolved(store, json!({}), &fleet).await;
    taken.sent(store, fleet[0], 1, 2).await;
    taken.hold(store, fleet[1]).await;
    taken.ends(store, fleet[2], 1, Failed).await;
    taken.tell(store, fleet[3], Event::Cancelled).await;
    let fresh = |agent: i64| {
        let end = RunEnd { sent_at: None, ..end(1, Succeeded, store.now()) };
        Report { skip_lookup: true, ..taken.report(agent, Event::Result(Box::new(end))) }
    };
    // Each by itself, so that none is looked at for another's sake.
    for agent in &fleet[..5] {
        assert_eq!(store.outcome_record(&[fresh(*agent)]).await.unwrap(), [Answer::Stored]);
        counts(backend, taken.id).await;
    }
    let twice = [fresh(fleet[5]), fresh(fleet[5])];
    assert_eq!(store.outcome_record(&twice).await.unwrap(), [Answer::Stored, Answer::Stored]);
    let counts = counts(backend, taken.id).await;
    assert_eq!((counts.succeeded, counts.failed, counts.cancelled, counts.sent), (4, 1, 1, 0));
    assert!(backend.open_rows(taken.no).await.is_empty());
    let first = &taken.list(store).await[0];
    assert!(first.attempts == 3 && first.sent_at.is_some(), "what was known of it is kept: {first:?}");
    assert_eq!(backend.late_runs(taken.no, fleet[3]).await, [1]);
}

pub async fn fresh_reports_and_others_are_recorded_together(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 8).await;
    let taken = resolved(store, json!({}), &fleet).await;
    taken.hold(store, fleet[0]).await;
    taken.ends(store, fleet[1], 1, Failed).await;
    let result = |agent: i64, skip_lookup| {
        let end = RunEnd { sent_at: None, ..end(1, Succeeded, store.now()) };
        Report { skip_lookup, ..taken.report(agent, Event::Result(Box::new(end))) }
    };
    let at = store.now();
    // Of the first two their reporters are wrong. The key of the second one is a duplicate.
    let batch = [
        result(fleet[0], true),
        result(fleet[1], true),
        result(fleet[2], true),
        taken.report(fleet[3], Event::Sent { run: 1, attempts: 1, at }),
        result(fleet[4], false),
        result(fleet[5], true),
        taken.report(fleet[5], Event::Cancelled),
        result(fleet[6], true),
        result(fleet[7] + 1_000, true),
    ];
    let answers = store.outcome_record(&batch).await.unwrap();
    assert_eq!(answers[..8].iter().filter(|answer| **answer == Answer::Stored).count(), 7, "{answers:?}");
    assert_eq!(answers[6], Answer::Decided);
    assert!(matches!(answers[8], Answer::Rejected(_)), "{:?}", answers[8]);
    let counts = counts(backend, taken.id).await;
    assert_eq!((counts.succeeded, counts.failed, counts.sent, counts.pending), (5, 1, 1, 1));
    assert_eq!(backend.open_rows(taken.no).await, [fleet[3]]);
}

pub async fn the_reason_of_a_failed_attempt_shows_until_the_command_is_delivered(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 4).await;
    let taken = resolved(store, json!({}), &fleet).await;
    for agent_no in &fleet[..3] {
        taken.fails(store, *agent_no, 1, 1).await;
    }
    let until = store.now();
    assert!(matches!(taken.tell(store, fleet[1], Event::Postponed { run: 1, until }).await, Answer::Again { .. }));
    let error = "no\0 route".repeat(1_000);
    let long = Event::AttemptFailed { run: 1, attempts: 2, error, retry_after: None };
    taken.tell(store, fleet[2], long).await;
    let errors = |list: Vec<CommandView>| list.into_iter().map(|view| (view.status, view.error)).collect::<Vec<_>>();
    let list = errors(taken.list(store).await);
    let reason = Some("nobody there".to_owned());
    assert_eq!(list[..2], [(Pending, reason.clone()), (Pending, reason)]);
    let kept = list[2].1.clone().expect("a reason");
    assert!(kept.starts_with("no\u{FFFD} route") && kept.len() < 2_000, "{} bytes: {kept}", kept.len());
    assert_eq!(list[3], (Pending, None));

    taken.sent(store, fleet[0], 1, 1).await;
    for agent_no in &fleet[1..] {
        taken.tell(store, *agent_no, Event::Expired).await;
    }
    let list = errors(taken.list(store).await);
    let last = Some("the last attempt failed: nobody there".to_owned());
    assert_eq!([&list[0], &list[1], &list[3]], [&(Sent, None), &(Expired, last), &(Expired, None)]);
}

pub async fn one_batch_may_tell_the_whole_life_of_a_command(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let taken = resolved(store, json!({"max_runs": 2}), &fleet).await;
    let result = |run, status| Event::Result(Box::new(end(run, status, store.now())));
    let failed = Event::AttemptFailed { run: 1, attempts: 1, error: "away".into(), retry_after: None };
    let sent = |run| Event::Sent { run, attempts: 1, at: store.now() };
    let life = [
        Event::Hold { due_at: store.now() },
        failed,
        sent(1),
        result(1, Failed),
        result(1, Failed),
        sent(2),
        result(2, Succeeded),
        Event::Cancelled,
        result(1, Succeeded),
    ];
    let batch: Vec<Report> = life.into_iter().map(|event| taken.report(fleet[0], event)).collect();
    let answers = store.outcome_record(&batch).await.unwrap();
    assert!(matches!(answers[3], Answer::Again { run: 2, .. }) && answers[7] == Answer::Decided, "{answers:?}");
    let view = &taken.list(store).await[0];
    assert_eq!((view.status, view.runs, view.attempts), (Succeeded, 2, 2));
    assert_eq!((backend.open_rows(taken.no).await, backend.late_runs(taken.no, fleet[0]).await), (vec![], vec![]));
    let counts = counts(backend, taken.id).await;
    assert_eq!((counts.total, counts.pending, counts.succeeded), (2, 1, 1));
    assert!(store.outcome_record(&[]).await.unwrap().is_empty());
}

pub async fn one_batch_may_be_about_thousands_of_actions(backend: &mut impl Backend) {
    const ACTIONS: usize = 4_000;
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let mut accepted = Vec::new();
    for _ in 0..ACTIONS / 200 {
        let new = (0..200).map(|_| crate::support::action(store, json!({}))).collect();
        accepted.extend(store.action_insert(new).await.unwrap());
    }
    let no = |accepted: &Accepted| match accepted {
        Accepted::Stored { no, .. } => *no,
        other => panic!("{other:?}"),
    };
    let nos: Vec<i64> = accepted.iter().map(no).collect();
    let pages = nos.iter().map(|no| page(*no, 0, &fleet, true)).collect();
    assert_eq!(store.command_insert(pages).await.unwrap(), vec![Inserted::Written; ACTIONS]);
    let policy = store.action_get(nos[0]).await.unwrap().unwrap().policy;
    for (agent, fresh) in [(fleet[0], true), (fleet[1], false)] {
        let event = || Event::Result(Box::new(end(1, Succeeded, store.now())));
        let report = |no: &i64| Report { action_no: *no, agent_no: agent, policy, event: event(), skip_lookup: fresh };
        let reports: Vec<Report> = nos.iter().map(report).collect();
        assert_eq!(store.outcome_record(&reports).await.unwrap(), vec![Answer::Stored; ACTIONS]);
    }
    assert_eq!(store.action_complete(nos.clone()).await.unwrap(), nos);
}

pub async fn what_a_result_says_comes_back_to_the_letter(backend: &mut impl Backend) {
    let store = backend.store();
    let fleet = agents(store, 2).await;
    let taken = resolved(store, json!({}), &fleet).await;
    let odd = "\u{0}\u{1}\"\\ \u{1F38B} 'x' \u{FFFF} \n";
    let output = r#"{"big":18446744073709551615,"exact":1.10,"nested":[[],{"a":null}]}"#;
    let text = serde_json::to_string(odd).unwrap();
    let results = format!(r#"[{{"module":"exec","ok":false,"output":{output},"error":{text},"truncated":true}}]"#);
    for (agent, fresh) in [(fleet[0], true), (fleet[1], false)] {
        let end = RunEnd {
            results: Some(results.clone()),
            error: Some(odd.into()),
            sent_at: Some(Timestamp(-5)),
            ..end(1, Failed, store.now())
        };
        let report = Report { skip_lookup: fresh, ..taken.report(agent, Event::Result(Box::new(end))) };
        assert_eq!(store.outcome_record(&[report]).await.unwrap(), [Answer::Stored]);
    }
    for view in taken.list(store).await {
        // Its one line, which isn't JSON, has no NUL.
        let line = odd.replace('\0', "\u{FFFD}");
        assert_eq!((view.error, view.sent_at), (Some(line), Some(Timestamp(-5))));
        let results = view.results.unwrap();
        assert_eq!(results[0].output.as_ref().unwrap().get(), output);
        assert_eq!((results[0].error.as_deref(), results[0].truncated), (Some(odd), true));
    }
}

pub async fn outcomes_survive_a_restart(backend: &mut impl Backend) {
    let fleet = agents(backend.store(), 5).await;
    let taken = resolved(backend.store(), json!({"max_runs": 2}), &fleet).await;
    let store = backend.store();
    taken.ends(store, fleet[0], 1, Succeeded).await;
    taken.ends(store, fleet[1], 1, Failed).await;
    taken.sent(store, fleet[2], 1, 3).await;
    taken.fails(store, fleet[3], 1, 2).await;
    taken.tell(store, fleet[4], Event::Cancelled).await;
    let before = (serde_json::to_value(taken.list(store).await).unwrap(), counts(backend, taken.id).await);
    for _ in 0..2 {
        backend.reopen().await;
        let after = (serde_json::to_value(taken.list(backend.store()).await).unwrap(), counts(backend, taken.id).await);
        assert_eq!(after, before);
    }
    let store = backend.store();
    assert_eq!(taken.ends(store, fleet[1], 1, Failed).await, Answer::Stored);
    assert_eq!(taken.ends(store, fleet[1], 2, Failed).await, Answer::Stored);
    assert_eq!(taken.ends(store, fleet[2], 1, Succeeded).await, Answer::Stored);
    let states: Vec<_> = taken.list(store).await.iter().map(|view| view.status).collect();
    assert_eq!(states, [Succeeded, Failed, Succeeded, Pending, Cancelled]);
    counts(backend, taken.id).await;
}
