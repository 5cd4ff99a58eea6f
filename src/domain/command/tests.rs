use super::decide::{BACKOFF_MAX, BACKOFF_MIN};
use super::*;
use crate::domain::action::{GRACE, Policy};
use crate::domain::time::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const START: Timestamp = Timestamp(1_750_000_000_000);

fn policy(max_runs: i32, max_deliveries: Option<i32>) -> Policy {
    Policy { max_runs, max_deliveries, timeout: Duration::from_secs(60) }
}

fn result(run: i32, status: CommandState) -> Event {
    Event::Result(Box::new(RunEnd {
        run,
        status,
        attempts: 0,
        sent_at: None,
        started_at: None,
        finished_at: START,
        results: Some("[]".into()),
        error: None,
    }))
}

fn failed_attempt(run: i32, attempts: i32) -> Event {
    Event::AttemptFailed { run, attempts, error: "nobody there".into(), retry_after: None }
}

/// A command with all its rows, as a store would keep them.
#[derive(Default)]
struct Rows {
    known: Known,
    outcomes: Vec<Outcome>,
    late: BTreeMap<i32, RunEnd>,
    /// A run that its agent had from before came back: the report doesn't know the earlier delivery
    /// attempts.
    came_back: bool,
}

impl Rows {
    fn new() -> Self {
        Self { known: Known { exists: true, ..Known::default() }, ..Self::default() }
    }

    /// Applies a decision, and checks the invariants of every single step.
    fn step(&mut self, event: Event, policy: &Policy, now: Timestamp, jitter: f64) -> Answer {
        // The reconciler reports `cancelled` only for actions that a user cancelled.
        self.known.cancelled |= event == Event::Cancelled;
        let before = self.known.clone();
        let found_expired = matches!(event, Event::FoundExpired { .. });
        let change = decide(&before, event.clone(), policy, now, jitter);
        match change.open {
            OpenChange::Keep => {}
            OpenChange::Put(open) => self.known.open = Some(open),
            OpenChange::Delete => self.known.open = None,
        }
        if let Some(outcome) = change.outcome {
            self.known.last = Some((outcome.end.run, outcome.is_final.then_some(outcome.end.status)));
            self.outcomes.push(outcome);
        }
        let wrote_late = change.late.is_some();
        if let Some(late) = change.late {
            let decided =
                self.outcomes.iter().any(|outcome| outcome.end.run == late.run && outcome.end.results.is_some());
            if !decided {
                self.late.entry(late.run).or_insert(late);
            }
        }

        let after = self.known.clone();
        self.came_back |= found_expired && before.state() == CommandState::Sent;
        if before.state().is_final() {
            assert_eq!(before.last, after.last, "an outcome after the final one");
            assert!(after.open.is_none(), "an open row after the final outcome");
        }
        if let (Some(was), Some(is)) = (&before.open, &after.open)
            && was.run == is.run
        {
            assert!(is.attempts >= was.attempts, "attempts went from {} to {}", was.attempts, is.attempts);
        }
        if let Some(open) = &after.open {
            assert_eq!(Some(open.run), after.current_run(), "an open row of another run");
            assert_eq!(open.state == OpenState::Sent, open.sent_at.is_some());
        }
        match &change.answer {
            Answer::Rejected(reason) => assert!(!reason.is_empty() && before == after && !wrote_late),
            Answer::Again { run, attempts, due_at } => {
                let open = after.open.as_ref().expect("an open row says when it goes on");
                assert_eq!((open.run, open.attempts, open.due_at), (*run, *attempts, *due_at));
                assert!(open.state == OpenState::Retry && *due_at >= now);
            }
            Answer::Stored => {}
            Answer::Decided => assert!(before.last == after.last && before.state() == after.state() && !wrote_late),
        }
        change.answer
    }

    /// Checks the invariants of the rows.
    fn check(&self, policy: &Policy) {
        let finals = self.outcomes.iter().filter(|outcome| outcome.is_final).count();
        assert!(finals <= 1 && (finals == 0 || self.outcomes.last().is_some_and(|outcome| outcome.is_final)));
        for (run, outcome) in (1..).zip(&self.outcomes) {
            assert_eq!(outcome.end.run, run, "runs are consecutive from 1");
            assert!(outcome.end.status.is_final());
            let runs_again = matches!(outcome.end.status, CommandState::Failed | CommandState::TimedOut);
            assert!(outcome.is_final || runs_again, "nothing else is tried again");
            if outcome.end.status == CommandState::Undeliverable && outcome.end.error.as_deref() == Some("nobody there")
            {
                assert!(policy.max_deliveries.is_some_and(|most| outcome.end.attempts >= most));
            }
        }
        assert!(i32::try_from(self.outcomes.len()).is_ok_and(|runs| runs <= policy.max_runs));
        let most = policy.max_deliveries.unwrap_or(i32::MAX);
        let is_left = |open: &Open| open.state == OpenState::Sent || open.attempts < most || self.came_back;
        assert!(self.known.open.as_ref().is_none_or(is_left));
        assert!(self.late.keys().all(|run| self.outcomes.iter().any(|outcome| outcome.end.run == *run)));
    }
}

fn event() -> impl Strategy<Value = Event> {
    use CommandState::{Failed, Succeeded, TimedOut};
    let reported = vec![Succeeded, Failed, Failed, TimedOut, CommandState::Cancelled];
    let run = || -1..5i32;
    let at = (0..500i64).prop_map(|secs| Timestamp(START.0 + secs * 1_000));
    prop_oneof![
        6 => (run(), prop::sample::select(reported), 0..3i32).prop_map(|(run, status, attempts)| {
            let Event::Result(end) = result(run, status) else { unreachable!("a result") };
            Event::Result(Box::new(RunEnd { attempts, ..*end }))
        }),
        4 => (run(), 0..3i32, at.clone()).prop_map(|(run, attempts, at)| Event::Sent { run, attempts, at }),
        3 => at.clone().prop_map(|due_at| Event::Hold { due_at }),
        2 => (run(), at.clone()).prop_map(|(run, due_at)| Event::Queued { run, due_at }),
        2 => (run(), at.clone()).prop_map(|(run, until)| Event::Postponed { run, until }),
        6 => (run(), 1..6i32).prop_map(|(run, attempts)| failed_attempt(run, attempts)),
        3 => Just(Event::Overdue),
        1 => Just(Event::Expired),
        2 => (run(), at.clone()).prop_map(|(run, expires_at)| Event::FoundExpired { run, expires_at }),
        1 => Just(Event::Cancelled),
        1 => Just(Event::Undeliverable { error: "removed".into() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("ODOSHI_TEST_LONG").is_some() { 5_000 } else { 500 }))]

    #[test]
    fn whatever_happens_the_rows_make_sense(
        max_runs in 1..4i32,
        max_deliveries in prop::option::of(1..5i32),
        events in prop::collection::vec((event(), 0..200i64, 0.0..1.0f64), 0..40),
    ) {
        let policy = policy(max_runs, max_deliveries);
        let (mut rows, mut now) = (Rows::new(), START);
        for (event, secs, jitter) in events {
            now = Timestamp(now.0 + secs * 1_000);
            rows.step(event, &policy, now, jitter);
            rows.check(&policy);
        }
    }

    #[test]
    fn a_repeated_result_is_answered_stored_and_kept_once(
        max_runs in 1..4i32,
        events in prop::collection::vec(event(), 0..20),
        again in 1..3usize,
    ) {
        let policy = policy(max_runs, Some(4));
        let mut rows = Rows::new();
        for event in events {
            let taken = rows.step(event.clone(), &policy, START, 0.5);
            if !matches!(event, Event::Result(_)) || matches!(taken, Answer::Rejected(_)) {
                continue;
            }
            let before = (rows.known.clone(), rows.outcomes.clone(), rows.late.clone());
            for _ in 0..again {
                prop_assert_eq!(rows.step(event.clone(), &policy, START, 0.5), Answer::Stored);
                prop_assert_eq!(&(rows.known.clone(), rows.outcomes.clone(), rows.late.clone()), &before);
            }
        }
    }

    #[test]
    fn a_command_always_can_be_brought_to_an_end(
        max_runs in 1..4i32,
        events in prop::collection::vec(event(), 0..20),
        last in prop::sample::select(vec![Event::Cancelled, Event::Undeliverable { error: "removed".into() }]),
    ) {
        let policy = policy(max_runs, None);
        let mut rows = Rows::new();
        for event in events {
            rows.step(event, &policy, START, 0.5);
        }
        rows.step(last, &policy, START, 0.5);
        rows.check(&policy);
        prop_assert!(rows.known.state().is_final() && rows.known.open.is_none());
    }

    #[test]
    fn waits_double_and_are_capped(failed in 0..1_000_000i32, jitter in 0.0..1.0f64) {
        let wait = backoff(failed, jitter);
        prop_assert!(wait >= BACKOFF_MIN / 2 && wait <= BACKOFF_MAX);
        prop_assert!(backoff(failed, 1.0) <= wait && wait <= backoff(failed, 0.0));
        prop_assert!(backoff(failed + 1, 0.0) >= backoff(failed, 0.0));
    }
}

#[test]
fn what_does_not_exist_is_rejected() {
    for event in [result(1, CommandState::Succeeded), Event::Cancelled, Event::Hold { due_at: START }] {
        let change = decide(&Known::default(), event, &policy(1, None), START, 0.0);
        assert!(matches!(change.answer, Answer::Rejected(_)));
        assert_eq!((change.outcome, change.open, change.late), (None, OpenChange::Keep, None));
    }
}

#[test]
fn the_last_failed_delivery_is_the_one_at_the_limit() {
    let policy = policy(1, Some(3));
    let mut rows = Rows::new();
    for attempts in 1..3 {
        let answer = rows.step(failed_attempt(1, attempts), &policy, START, 0.0);
        assert!(matches!(answer, Answer::Again { run: 1, .. }), "{answer:?}");
    }
    assert_eq!(rows.step(failed_attempt(1, 3), &policy, START, 0.0), Answer::Stored);
    assert_eq!((rows.known.state(), rows.outcomes[0].end.attempts), (CommandState::Undeliverable, 3));
}

#[test]
fn hand_overs_are_counted_anew_for_each_run() {
    let policy = policy(2, Some(2));
    let mut rows = Rows::new();
    rows.step(failed_attempt(1, 1), &policy, START, 0.0);
    let answer = rows.step(result(1, CommandState::Failed), &policy, START, 0.0);
    assert!(matches!(answer, Answer::Again { run: 2, attempts: 0, .. }), "{answer:?}");
    assert_eq!(rows.outcomes[0].end.attempts, 1, "what was known of the run is kept with it");
    let answer = rows.step(failed_attempt(2, 1), &policy, START, 0.0);
    assert!(matches!(answer, Answer::Again { run: 2, attempts: 1, .. }), "{answer:?}");
}

#[test]
fn what_lies_at_a_broker_is_pending_until_its_agent_has_it() {
    let policy = policy(1, Some(1));
    let (queued, later) = (Event::Queued { run: 1, due_at: START }, Timestamp(START.0 + 60_000));
    let mut rows = Rows::new();
    assert_eq!(rows.step(queued.clone(), &policy, START, 0.0), Answer::Stored);
    assert_eq!(rows.step(failed_attempt(1, 1), &policy, START, 0.0), Answer::Decided, "no attempt was made");
    assert_eq!(rows.step(Event::Postponed { run: 1, until: later }, &policy, START, 0.0), Answer::Decided);
    assert_eq!(rows.known.open.as_ref().map(|open| (open.state, open.attempts)), Some((OpenState::Queued, 0)));
    assert_eq!(rows.known.state(), CommandState::Pending);
    rows.step(Event::Sent { run: 1, attempts: 0, at: START }, &policy, START, 0.0);
    assert_eq!(rows.step(queued, &policy, START, 0.0), Answer::Stored, "the agent was faster than the confirmation");
    assert_eq!(rows.known.state(), CommandState::Sent);
}

#[test]
fn a_postponed_command_comes_again_and_no_attempt_is_counted() {
    let (policy, later) = (policy(1, Some(1)), Timestamp(START.0 + 60_000));
    let mut rows = Rows::new();
    for _ in 0..5 {
        let answer = rows.step(Event::Postponed { run: 1, until: later }, &policy, START, 0.0);
        assert_eq!(answer, Answer::Again { run: 1, attempts: 0, due_at: later });
    }
    let mut rows = of_a_cancelled_action();
    rows.step(Event::Postponed { run: 1, until: later }, &policy, START, 0.0);
    assert_eq!(rows.known.state(), CommandState::Cancelled);
}

#[test]
fn a_server_that_says_when_to_come_back_is_heard() {
    let wait = Duration::from_secs(3_600);
    for (retry_after, least) in [(Some(wait), wait), (Some(Duration::ZERO), BACKOFF_MIN), (None, BACKOFF_MIN)] {
        let event = Event::AttemptFailed { run: 1, attempts: 1, error: "busy".into(), retry_after };
        let answer = Rows::new().step(event, &policy(1, None), START, 0.0);
        assert_eq!(answer, Answer::Again { run: 1, attempts: 1, due_at: START.plus(least) });
    }
}

#[test]
fn silence_is_a_time_out_only_after_the_timeout_and_the_grace() {
    let policy = policy(1, None);
    let mut rows = Rows::new();
    let gives_up = START.plus(policy.timeout).plus(GRACE);
    assert_eq!(rows.step(Event::Overdue, &policy, gives_up, 0.0), Answer::Decided, "the agent doesn't have it");
    rows.step(Event::Sent { run: 1, attempts: 0, at: START }, &policy, START, 0.0);
    assert_eq!(rows.step(Event::Overdue, &policy, Timestamp(gives_up.0 - 1), 0.0), Answer::Decided);
    assert_eq!(rows.step(Event::Overdue, &policy, gives_up, 0.0), Answer::Stored);
    assert_eq!((rows.known.state(), rows.outcomes[0].end.sent_at), (CommandState::TimedOut, Some(START)));
    assert_eq!(rows.step(result(1, CommandState::Succeeded), &policy, gives_up, 0.0), Answer::Stored);
    assert_eq!((rows.known.state(), rows.late.len()), (CommandState::TimedOut, 1));
}

#[test]
fn what_is_with_the_agent_does_not_expire_and_can_be_cancelled() {
    let policy = policy(1, None);
    let mut rows = Rows::new();
    rows.step(Event::Sent { run: 1, attempts: 0, at: START }, &policy, START, 0.0);
    assert_eq!(rows.step(Event::Expired, &policy, START, 0.0), Answer::Decided);
    assert_eq!(rows.step(failed_attempt(1, 1), &policy, START, 0.0), Answer::Decided);
    assert_eq!(rows.known.state(), CommandState::Sent);
    assert_eq!(rows.step(Event::Cancelled, &policy, START, 0.0), Answer::Stored);
    assert_eq!(rows.known.state(), CommandState::Cancelled);
}

/// A command of an action that a user has cancelled, before the reconciler's report.
fn of_a_cancelled_action() -> Rows {
    let mut rows = Rows::new();
    rows.known.cancelled = true;
    rows
}

#[test]
fn a_run_that_a_cancel_killed_is_cancelled_and_no_run_follows_a_cancel() {
    use CommandState::{Cancelled, Failed, Succeeded, TimedOut};
    for (said, max_runs, counted) in [
        (Cancelled, 1, Cancelled),
        (Cancelled, 3, Cancelled),
        (Failed, 1, Failed),
        (Failed, 3, Cancelled),
        (TimedOut, 3, Cancelled),
        (Succeeded, 3, Succeeded),
    ] {
        let mut rows = of_a_cancelled_action();
        rows.step(Event::Sent { run: 1, attempts: 0, at: START }, &policy(max_runs, None), START, 0.0);
        assert_eq!(rows.step(result(1, said), &policy(max_runs, None), START, 0.0), Answer::Stored);
        assert_eq!(rows.known.state(), counted, "{said:?} with up to {max_runs} runs");
        assert_eq!(rows.outcomes.len(), 1);
        assert!(rows.outcomes[0].end.results.is_some() && rows.known.open.is_none());
        // The reconciler's report comes too late, and a repeat changes nothing.
        assert_eq!(rows.step(Event::Cancelled, &policy(max_runs, None), START, 0.0), Answer::Decided);
        assert_eq!(rows.step(result(1, said), &policy(max_runs, None), START, 0.0), Answer::Stored);
        assert_eq!(rows.known.state(), counted);
    }
}

#[test]
fn a_cancelled_result_of_what_nobody_cancelled_has_failed() {
    let mut rows = Rows::new();
    let answer = rows.step(result(1, CommandState::Cancelled), &policy(2, None), START, 0.0);
    assert!(matches!(answer, Answer::Again { run: 2, .. }), "{answer:?}");
    assert_eq!(rows.outcomes[0].end.status, CommandState::Failed);
    rows.step(result(2, CommandState::Cancelled), &policy(2, None), START, 0.0);
    assert_eq!(rows.known.state(), CommandState::Failed);
    // The same for a result that comes too late to decide anything.
    let mut rows = Rows::new();
    rows.step(Event::Expired, &policy(1, None), START, 0.0);
    rows.step(result(1, CommandState::Cancelled), &policy(1, None), START, 0.0);
    assert_eq!(rows.late[&1].status, CommandState::Failed);
}

#[test]
fn a_cancelled_command_is_not_delivered_again() {
    let mut rows = of_a_cancelled_action();
    assert_eq!(rows.step(failed_attempt(1, 1), &policy(1, None), START, 0.0), Answer::Stored);
    assert_eq!(rows.known.state(), CommandState::Cancelled);
}

#[test]
fn an_agent_is_believed_that_a_command_has_expired_only_when_it_has() {
    let (policy, later) = (policy(3, Some(1)), Timestamp(START.0 + 60_000));
    let found = |run| Event::FoundExpired { run, expires_at: later };
    for received in [false, true] {
        let mut rows = Rows::new();
        if received {
            rows.step(Event::Sent { run: 1, attempts: 0, at: START }, &policy, START, 0.0);
        }
        for _ in 0..3 {
            let answer = rows.step(found(1), &policy, START, 0.0);
            let Answer::Again { run: 1, attempts: 0, due_at } = answer else { panic!("{answer:?}") };
            assert!(due_at > START, "not at once");
        }
        assert!(matches!(rows.step(found(2), &policy, later, 0.0), Answer::Rejected(_)));
        assert_eq!(rows.step(found(1), &policy, later, 0.0), Answer::Stored);
        assert_eq!((rows.known.state(), rows.outcomes.len()), (CommandState::Expired, 1), "and no other run follows");
        assert_eq!(rows.step(found(1), &policy, later, 0.0), Answer::Decided);
    }
}
