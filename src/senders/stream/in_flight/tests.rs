use super::*;
use crate::domain::action::NewAction;
use crate::domain::protocol::RunStatus;
use crate::store::Due;

/// A command of action `no`, whose due time follows from its number.
fn delivery(no: i64, priority: i32) -> DueCommand {
    let document =
        format!(r#"{{"name":"n","target":"TRUE","operations":[{{"module":"ping"}}],"priority":{priority}}}"#);
    let new = NewAction::from_json(document.as_bytes(), uuid::Uuid::now_v7(), Timestamp(0)).expect("valid");
    let action = Arc::new(Action::from_new(no, &new, false, false).expect("valid"));
    let due = Due { action_no: no, agent_no: 1, run: 1, attempts: 0, due_at: Timestamp(no), priority, open: true };
    DueCommand { due, action }
}

fn back(offered: Offered) -> Option<i64> {
    match offered {
        Offered::Back(delivery) => Some(delivery.action.no),
        Offered::Queued | Offered::Known => None,
    }
}

#[test]
fn what_goes_first_displaces_what_goes_last_from_a_full_queue() {
    let (mut in_flight, now) = (InFlight::new(1, 1), Instant::now());
    let full = QUEUE as i64;
    assert!((1..=full).all(|no| back(in_flight.offer(delivery(no, 0), false, now)).is_none()));
    assert_eq!(back(in_flight.offer(delivery(full + 1, 0), false, now)), Some(full + 1));
    assert_eq!(back(in_flight.offer(delivery(full + 2, 1), false, now)), Some(full));
    assert_eq!(in_flight.queued(), QUEUE);
    assert_eq!(back(in_flight.offer(delivery(1, 0), false, now)), None, "it is known");
}

#[test]
fn what_has_just_ended_is_not_delivered_again() {
    let (mut in_flight, now) = (InFlight::new(1, 1), Instant::now());
    in_flight.offer(delivery(1, 0), false, now);
    let command = in_flight.deliver(Timestamp(1), now).remove(0);
    in_flight.finish(command.run_ref(), now);
    assert!(matches!(in_flight.offer(delivery(1, 0), false, now), Offered::Known), "a read that began before");
    assert!(in_flight.deliver(Timestamp(1), now).is_empty());
    in_flight.offer(delivery(1, 0), false, now + STALE);
    assert!(in_flight.deliver(Timestamp(1), now).is_empty(), "at least for so long");
}

#[test]
fn what_is_early_is_put_back_and_read_again_when_it_is_due() {
    let (mut in_flight, clock) = (InFlight::new(1, 8), Instant::now());
    let mut skip_lookup = delivery(2_000, 0);
    skip_lookup.due.open = false;
    in_flight.offer(skip_lookup, false, clock);
    in_flight.offer(delivery(9_000, 0), false, clock);
    in_flight.offer(delivery(1, 0), false, clock);
    // The row says that the command is due, but the action isn't valid yet.
    let mut invalid = delivery(5, 0);
    Arc::get_mut(&mut invalid.action).expect("nobody else has it").valid_from = Timestamp(8_000);
    in_flight.offer(invalid, false, clock);
    let handed: Vec<_> = in_flight.deliver(Timestamp(1_000), clock);
    assert_eq!((handed.len(), in_flight.flying(), in_flight.queued()), (1, 1, 0), "one of them is due");
    let [Report { event: Event::Hold { due_at }, .. }] = &in_flight.take_put_back()[..] else {
        panic!("one is skip_lookup")
    };
    assert_eq!(*due_at, Timestamp(2_000));
    let due = clock + Duration::from_millis(1_001);
    assert!(in_flight.next_deadline() <= Some(due) && !in_flight.take_early(clock));
    assert!(in_flight.take_early(due) && !in_flight.take_early(due), "once");
    in_flight.offer(delivery(2_000, 0), false, due);
    assert_eq!(in_flight.deliver(Timestamp(2_001), due).len(), 1, "it wasn't forgotten as known");
}

#[test]
fn while_the_store_has_more_only_what_goes_before_the_last_one_is_taken() {
    let (mut in_flight, now) = (InFlight::new(1, 1), Instant::now());
    assert_eq!(back(in_flight.offer(delivery(5, 0), true, now)), Some(5), "nothing is known of the store's order");
    assert_eq!(back(in_flight.offer(delivery(5, 0), false, now)), None);
    assert_eq!(back(in_flight.offer(delivery(6, 0), true, now)), Some(6));
    assert_eq!(back(in_flight.offer(delivery(4, 0), true, now)), None);
    assert_eq!(back(in_flight.offer(delivery(7, 9), true, now)), None);
}

/// One that nothing is written about.
fn skip_lookup(no: i64) -> DueCommand {
    let mut delivery = delivery(no, 0);
    delivery.due.open = false;
    delivery
}

/// Hands over a command of each of these actions; answers their runs.
fn flying(in_flight: &mut InFlight, deliveries: Vec<DueCommand>, clock: Instant) -> Vec<RunRef> {
    deliveries.into_iter().for_each(|delivery| drop(in_flight.offer(delivery, false, clock)));
    in_flight.deliver(Timestamp(1_000), clock).iter().map(Command::run_ref).collect()
}

/// The events of reports, in the order of their actions, in words.
fn words(reports: impl IntoIterator<Item = Report>) -> Vec<(i64, &'static str)> {
    let word = |event: &Event| match event {
        Event::Sent { .. } => "sent",
        Event::Hold { .. } => "hold",
        Event::AttemptFailed { .. } => "failed",
        _ => "other",
    };
    let mut words: Vec<_> = reports.into_iter().map(|report| (report.action_no, word(&report.event))).collect();
    words.sort_unstable();
    words
}

fn at_clock(in_flight: &mut InFlight, clock: Instant) -> Vec<(i64, &'static str)> {
    words(in_flight.look_at_clock(clock).into_iter().map(|(_, report)| report))
}

fn result(run: RunRef, status: RunStatus) -> RunResult {
    RunResult { action: run.action, run: run.run, status, results: Vec::new(), started_at: None, finished_at: None }
}

#[test]
fn no_more_fly_than_the_agent_has_room_for_and_the_highest_priority_goes_first() {
    let (mut in_flight, clock) = (InFlight::new(1, 2), Instant::now());
    for (no, priority) in [(1, 0), (2, 5), (3, 9)] {
        in_flight.offer(delivery(no, priority), false, clock);
    }
    let commands = in_flight.deliver(Timestamp(1_000), clock);
    assert_eq!(commands.iter().map(|command| command.priority).collect::<Vec<_>>(), [9, 5]);
    assert!(in_flight.deliver(Timestamp(1_000), clock).is_empty());
    in_flight.finish(commands[0].run_ref(), clock);
    assert_eq!(in_flight.deliver(Timestamp(1_000), clock).len(), 1);
    assert_eq!(InFlight::new(1, u32::MAX).capacity, MAX_CAPACITY, "whatever it says");
}

#[test]
fn bytes_that_the_agent_has_not_received_are_bounded() {
    let (mut in_flight, clock) = (InFlight::new(1, 8), Instant::now());
    for no in 1..=4 {
        let mut large = delivery(no, 0);
        let operations = format!(r#"[{{"module":"x","parameters":"{}"}}]"#, "y".repeat(FREE));
        let action = Arc::get_mut(&mut large.action).expect("nobody else has it");
        action.operations = crate::domain::protocol::Operations::from_json(operations).expect("JSON");
        in_flight.offer(large, false, clock);
    }
    assert!(in_flight.deliver(Timestamp(1_000), clock).is_empty());
    let wanted = in_flight.wants_room().expect("it needs some");
    assert!((FREE..FREE + 1_000).contains(&wanted), "{wanted}");
    in_flight.set_room(wanted);
    let commands = in_flight.deliver(Timestamp(1_000), clock);
    assert_eq!((commands.len(), in_flight.in_transit(), in_flight.wants_room()), (1, wanted, None));
    let slow = RECEIVED_TIMEOUT + Duration::from_secs((wanted / SLOW) as u64);
    assert!(!in_flight.is_unread(clock + slow - Duration::from_millis(1)) && in_flight.is_unread(clock + slow));
    in_flight.is_not_read(clock + slow);
    assert!(!in_flight.is_unread(clock + slow), "what it says lies in the socket");
    assert!(
        in_flight
            .look_at_clock(clock + slow)
            .iter()
            .all(|(_, report)| !matches!(report.event, Event::AttemptFailed { .. }))
    );
    assert!(in_flight.next_deadline().is_some_and(|deadline| deadline > clock + slow));
    in_flight.offer(delivery(5, 9), false, clock);
    let small = in_flight.deliver(Timestamp(1_000), clock);
    assert_eq!(small.iter().map(|command| command.priority).collect::<Vec<_>>(), [9], "there is always room for this");
    for run in [&commands[0], &small[0]] {
        assert!(in_flight.received(run.run_ref(), Timestamp(1_000), clock));
    }
    assert_eq!(in_flight.in_transit(), 0);
    in_flight.set_room(0);
    assert!(in_flight.deliver(Timestamp(1_000), clock).is_empty());
    assert_eq!(in_flight.wants_room(), Some(wanted));
}

#[test]
fn what_is_here_for_longer_than_the_window_gets_an_open_row_once() {
    let (mut in_flight, clock) = (InFlight::new(1, 2), Instant::now());
    let runs = flying(&mut in_flight, vec![skip_lookup(1), skip_lookup(2), skip_lookup(3), delivery(4, 0)], clock);
    assert_eq!((runs.len(), in_flight.queued()), (2, 2));
    in_flight.received(runs[0], Timestamp(1_000), clock);
    assert_eq!(in_flight.next_deadline(), Some(clock + OPEN_ROW_AFTER));
    assert!(at_clock(&mut in_flight, clock + OPEN_ROW_AFTER - Duration::from_millis(1)).is_empty());
    let expected = [(1, "sent"), (2, "hold"), (3, "hold")];
    assert_eq!(at_clock(&mut in_flight, clock + OPEN_ROW_AFTER), expected, "the fourth has a row");
    assert!(at_clock(&mut in_flight, clock + OPEN_ROW_AFTER).is_empty());
}

#[test]
fn received_after_the_window_is_written_then_and_not_before() {
    let (mut in_flight, clock) = (InFlight::new(1, 2), Instant::now());
    let run = flying(&mut in_flight, vec![skip_lookup(1)], clock)[0];
    assert!(in_flight.late_received(run).is_none());
    at_clock(&mut in_flight, clock + OPEN_ROW_AFTER);
    assert!(in_flight.late_received(run).is_none(), "it was not received");
    in_flight.received(run, Timestamp(2_500), clock + OPEN_ROW_AFTER);
    let report = in_flight.late_received(run).expect("its row says waiting");
    assert_eq!(report.event, Event::Sent { run: 1, attempts: 0, at: Timestamp(2_500) });
    let unknown = RunRef { run: 9, ..run };
    assert!(!in_flight.received(unknown, Timestamp(2_500), clock) && in_flight.late_received(unknown).is_none());
}

#[test]
fn an_attempt_has_failed_when_received_does_not_come_and_takes_up_room_until_that_is_stored() {
    let (mut in_flight, clock) = (InFlight::new(1, 1), Instant::now());
    let run = flying(&mut in_flight, vec![delivery(1, 0), delivery(2, 0)], clock)[0];
    at_clock(&mut in_flight, clock + OPEN_ROW_AFTER);
    let late = clock + RECEIVED_TIMEOUT;
    assert_eq!(in_flight.next_deadline(), Some(late));
    let reports = in_flight.look_at_clock(late);
    let [(Some(about), Report { event: Event::AttemptFailed { attempts: 1, .. }, .. })] = &reports[..] else {
        panic!("{reports:?}")
    };
    assert_eq!(*about, run);
    assert!(in_flight.look_at_clock(late).is_empty() && in_flight.deliver(Timestamp(1_000), late).is_empty());
    in_flight.settled(run);
    assert_eq!(in_flight.deliver(Timestamp(1_000), late).len(), 1);
}

#[test]
fn nobody_waits_for_a_result_after_the_timeout_and_the_grace() {
    let (mut in_flight, clock) = (InFlight::new(1, 1), Instant::now());
    let run = flying(&mut in_flight, vec![skip_lookup(1)], clock)[0];
    in_flight.received(run, Timestamp(1_000), clock);
    at_clock(&mut in_flight, clock + OPEN_ROW_AFTER);
    let over = clock + Duration::from_secs(300) + GRACE + Duration::from_secs(1);
    assert_eq!(in_flight.next_deadline(), Some(over));
    at_clock(&mut in_flight, over - Duration::from_millis(1));
    assert_eq!(in_flight.flying(), 1);
    assert!(at_clock(&mut in_flight, over).is_empty(), "the housekeeper has decided it");
    assert_eq!(in_flight.flying(), 0);
}

#[test]
fn a_result_is_fresh_while_nothing_is_written_about_its_command() {
    let (mut in_flight, clock) = (InFlight::new(1, 3), Instant::now());
    let runs = flying(&mut in_flight, vec![skip_lookup(1), skip_lookup(2), delivery(3, 0)], clock);
    let is_fresh = |in_flight: &mut InFlight, run: RunRef| {
        in_flight.ended(&result(run, RunStatus::Succeeded), Timestamp(1_500)).expect("it flies").skip_lookup
    };
    assert!(is_fresh(&mut in_flight, runs[0]) && !is_fresh(&mut in_flight, runs[2]));
    at_clock(&mut in_flight, clock + OPEN_ROW_AFTER);
    assert!(!is_fresh(&mut in_flight, runs[1]), "its row was written");
    let unknown = RunRef { run: 2, ..runs[0] };
    assert!(in_flight.ended(&result(unknown, RunStatus::Succeeded), Timestamp(1_500)).is_none());
}

#[test]
fn a_cancel_removes_what_waits_and_names_what_the_agent_has_unless_it_has_ended() {
    let (mut in_flight, clock) = (InFlight::new(1, 2), Instant::now());
    let runs = flying(&mut in_flight, vec![skip_lookup(1), skip_lookup(2), skip_lookup(3), skip_lookup(4)], clock);
    in_flight.ended(&result(runs[1], RunStatus::Succeeded), Timestamp(1_500));
    assert_eq!(in_flight.cancel(&[1, 2, 3]), [runs[0].action]);
    assert_eq!((in_flight.flying(), in_flight.queued()), (1, 1), "a result is on its way, and the fourth waits");
    assert!(!in_flight.has(runs[0].action) && in_flight.has(runs[1].action));
}

#[test]
fn what_was_cancelled_or_has_expired_meanwhile_is_not_delivered() {
    let (mut in_flight, clock) = (InFlight::new(1, 9), Instant::now());
    let (cancelled, mut expired, paused) = (skip_lookup(1), skip_lookup(2), skip_lookup(3));
    cancelled.action.set_cancelled();
    Arc::get_mut(&mut expired.action).expect("nobody else has it").expires_at = Timestamp(1_000);
    paused.action.set_paused(true);
    assert!(flying(&mut in_flight, vec![cancelled, expired, paused], clock).is_empty());
    assert_eq!(words(in_flight.take_put_back()), [(3, "hold")], "what is paused goes back to the store");
    assert!(in_flight.take_put_back().is_empty());
}

#[test]
fn what_is_unfinished_when_the_connection_closes_is_left_to_the_store() {
    let (mut in_flight, clock) = (InFlight::new(1, 3), Instant::now());
    let runs = flying(
        &mut in_flight,
        vec![skip_lookup(1), skip_lookup(2), skip_lookup(3), skip_lookup(4), delivery(5, 0)],
        clock,
    );
    in_flight.received(runs[0], Timestamp(1_000), clock);
    in_flight.ended(&result(runs[2], RunStatus::Failed), Timestamp(1_500));
    let expected = [(1, "sent"), (2, "hold"), (4, "hold")];
    assert_eq!(words(in_flight.close()), expected, "the third has its result, the fifth its row");
    assert_eq!((in_flight.flying(), in_flight.queued()), (0, 0));
}

#[test]
fn a_run_that_the_agent_has_from_before_is_taken_in_unless_a_newer_one_is_here() {
    let (mut in_flight, clock) = (InFlight::new(1, 2), Instant::now());
    let mut second = delivery(1, 0);
    second.due.run = 2;
    let action = second.action.clone();
    let first = RunRef { action: action.id, run: 1 };
    in_flight.adopt(action.clone(), 1, Timestamp(1_000), clock);
    assert!(in_flight.has(action.id) && in_flight.received(first, Timestamp(1_000), clock));
    assert!(matches!(in_flight.offer(delivery(1, 0), false, clock), Offered::Known));
    // The next run takes its place.
    assert_eq!(flying(&mut in_flight, vec![second], clock), [RunRef { action: action.id, run: 2 }]);
    in_flight.adopt(action, 1, Timestamp(1_000), clock);
    assert!(in_flight.ended(&result(first, RunStatus::Succeeded), Timestamp(1_500)).is_none());
    assert_eq!(in_flight.flying(), 1);
}

#[test]
fn a_report_says_which_operation_failed_and_an_expired_run_is_told_as_such() {
    let action = delivery(1, 0).action;
    let run = RunRef { action: action.id, run: 1 };
    let failed = |error: Option<&str>| crate::domain::protocol::OperationResult {
        module: "exec".into(),
        ok: false,
        output: None,
        error: error.map(str::to_owned),
        truncated: false,
        lossy: false,
    };
    let error = |operation| {
        let result = RunResult { results: vec![operation], ..result(run, RunStatus::Failed) };
        let report = result_report(&action, 1, &result, 0, None, true, Timestamp(5));
        let Event::Result(end) = report.event else { panic!("{:?}", report.event) };
        end.error.expect("it says why")
    };
    assert_eq!(error(failed(Some("no such file"))), "exec: no such file");
    assert_eq!(error(failed(None)), "exec: it failed without saying why");
    let report = result_report(&action, 1, &result(run, RunStatus::Expired), 0, None, true, Timestamp(5));
    assert_eq!(report.event, Event::FoundExpired { run: 1, expires_at: action.expires_at });
    assert!(!report.skip_lookup);
    // The agent's clock is another one, and its result came late.
    let (start, end) = (Some(Timestamp(50_000)), Some(Timestamp(56_000)));
    let took = RunResult { started_at: start, finished_at: end, ..result(run, RunStatus::Succeeded) };
    let report = result_report(&action, 1, &took, 0, None, true, Timestamp(1_000_000));
    let Event::Result(end) = report.event else { panic!("{:?}", report.event) };
    assert_eq!((end.started_at, end.finished_at), (Some(Timestamp(994_000)), Timestamp(1_000_000)));
}
