use super::*;
use crate::agent::config::AgentConfig;
use crate::agent::journal::{Index, Journal, SharedJournal, State};
use crate::agent::modules::Modules;
use crate::agent::outbox::{Fault, Outbox};
use crate::agent::runner::{Input, Runner};
use crate::agent::server_clock::ServerClock;
use crate::domain::protocol::{RunResult, RunStatus, Stored};
use std::path::Path;
use std::sync::atomic::AtomicI64;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

struct Rig {
    inputs: mpsc::Sender<Input>,
    outbox: Arc<Outbox>,
    journal: SharedJournal,
    clock: Arc<ServerClock>,
    /// The machine's clock, in milliseconds.
    boot: Arc<AtomicI64>,
    at_gate: mpsc::UnboundedReceiver<AtGate>,
    most: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Rig {
    /// A runner that knows the time, which doesn't advance.
    fn start(dir: &Path, capacity: u32) -> Self {
        let rig = Self::start_without_time(dir, capacity);
        rig.clock.set(Timestamp::of_this_machine());
        rig
    }

    /// The same, before the server has sent its time.
    fn start_without_time(dir: &Path, capacity: u32) -> Self {
        let (journal, recovered) = Journal::open(dir, Timestamp::of_this_machine()).expect("a journal");
        let journal = SharedJournal::new(journal);
        let boot = Arc::new(AtomicI64::new(0));
        let read = boot.clone();
        let clock = Arc::new(ServerClock::over(move || read.load(Ordering::SeqCst)));
        let outbox = Arc::new(Outbox::default());
        let (gate, at_gate, most) = Gate::new();
        let modules = Modules::new(&AgentConfig::default()).with("gate", gate);
        let runner = Runner::new(capacity, modules, journal.clone(), recovered, outbox.clone(), clock.clone());
        let (inputs, inbox) = mpsc::channel(2);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(runner.run(inbox, stopped));
        Self { inputs, outbox, journal, clock, boot, at_gate, most, stop, task }
    }

    async fn send(&self, commands: impl IntoIterator<Item = Command>) {
        self.inputs.send(Input::Commands(commands.into_iter().collect())).await.expect("the runner runs");
    }

    async fn cancel(&self, n: u128) {
        self.inputs.send(Input::Cancel(vec![Uuid::from_u128(n)])).await.expect("the runner runs");
    }

    async fn next_at_gate(&mut self) -> AtGate {
        soon(self.at_gate.recv()).await.expect("somebody at the gate")
    }

    /// Waits until this run was reported as received.
    async fn received(&self, run: RunRef) {
        let outbox = &self.outbox;
        soon(async {
            while !outbox.open().received.remove(&run) {
                outbox.news().await;
            }
        })
        .await;
    }

    /// Waits for a result and takes it from the outbox.
    async fn result(&self, run: RunRef) -> RunResult {
        let outbox = &self.outbox;
        soon(async {
            while !outbox.open().results.remove(&run) {
                outbox.news().await;
            }
        })
        .await;
        self.journal.lock().results(&[run], u64::MAX).expect("readable").0.remove(0)
    }

    /// Waits until this run was reported as expired on arrival.
    async fn expired(&self, run: RunRef) {
        let outbox = &self.outbox;
        soon(async {
            while !outbox.open().expired.remove(&run) {
                outbox.news().await;
            }
        })
        .await;
    }

    async fn fault(&self) -> Fault {
        let outbox = &self.outbox;
        soon(async {
            loop {
                if let Some(fault) = outbox.open().fault.take() {
                    return fault;
                }
                outbox.news().await;
            }
        })
        .await
    }

    fn state(&self, n: u128) -> Option<State> {
        self.journal.peek(|journal| journal.state(run_ref(n)))
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        soon(self.task).await.expect("no panic");
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn error(result: &RunResult) -> &str {
    result.results.last().and_then(|last| last.error.as_deref()).unwrap_or_default()
}

#[tokio::test]
async fn what_waits_goes_by_priority_and_then_by_arrival() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1)]).await;
    let first = rig.next_at_gate().await;
    rig.send([(2, 0), (3, 5)].map(|(n, priority)| Command { priority, ..command(n) })).await;
    rig.send([Command { priority: 5, ..command(4) }]).await;
    rig.received(run_ref(4)).await;
    first.end(true);
    for expected in ["3", "4", "2"] {
        let next = rig.next_at_gate().await;
        assert_eq!(next.name, expected);
        next.end(true);
    }
    assert_eq!(rig.result(run_ref(2)).await.status, RunStatus::Succeeded);
    assert_eq!(rig.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn no_more_run_at_a_time_than_the_capacity_says() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 3);
    rig.send((1..=12).map(command)).await;
    for _ in 0..12 {
        rig.next_at_gate().await.end(true);
    }
    for n in 1..=12 {
        rig.result(run_ref(n)).await;
    }
    assert!(rig.most.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn operations_run_in_order_up_to_the_first_that_fails() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    let operation = |name: &str| format!(r#"{{"module":"gate","parameters":"{name}"}}"#);
    rig.send([with_operations(1, &format!("[{},{},{}]", operation("a"), operation("b"), operation("c")))]).await;
    for (name, ok) in [("a", true), ("b", false)] {
        let next = rig.next_at_gate().await;
        assert_eq!(next.name, name);
        next.end(ok);
    }
    let result = rig.result(run_ref(1)).await;
    assert_eq!((result.status, result.results.len(), error(&result)), (RunStatus::Failed, 2, "not well"));
    assert!(result.results[0].ok && !result.results[1].ok);
    assert!(result.started_at.is_some() && result.finished_at >= result.started_at);
}

#[tokio::test]
async fn what_can_not_be_carried_out_is_a_failed_run_that_says_why() {
    let dir = folder();
    let rig = Rig::start(dir.path(), 4);
    let many = format!("[{}]", vec![r#"{"module":"ping"}"#; 65].join(","));
    for (n, operations, why) in [
        (1, r#"[{"module":"weather"}]"#, "no module \"weather\""),
        (2, r#"[{"module":"../gate"}]"#, "a module's name"),
        (3, r#"{"not":"a list"}"#, "operations"),
        (4, many.as_str(), "65 operations"),
        (5, r#"[{"module":"gate","parameters":"panic"}]"#, "panicked"),
    ] {
        rig.send([with_operations(n, operations)]).await;
        let result = rig.result(run_ref(n)).await;
        assert_eq!(result.status, RunStatus::Failed);
        assert!(error(&result).contains(why), "{result:?}");
    }
}

#[tokio::test]
async fn the_timeout_stops_a_run_and_counts_its_waiting_too() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1)]).await;
    let first = rig.next_at_gate().await;
    rig.send([Command { timeout_ms: 50, ..command(2) }]).await;
    let result = rig.result(run_ref(2)).await;
    assert_eq!((result.status, error(&result)), (RunStatus::TimedOut, "timed out before it started"));
    assert_eq!(result.started_at, None);
    first.end(true);
    rig.send([Command { timeout_ms: 15_000, ..command(3) }]).await;
    assert_eq!(rig.next_at_gate().await.name, "3", "the second never started");
    let result = rig.result(run_ref(3)).await;
    assert_eq!((result.status, error(&result)), (RunStatus::TimedOut, "timed out"));
}

#[tokio::test]
async fn a_cancel_stops_what_runs_and_forgets_what_waits() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1), command(2), command(3)]).await;
    let _first = rig.next_at_gate().await;
    rig.cancel(2).await;
    rig.cancel(1).await;
    let result = rig.result(run_ref(1)).await;
    assert_eq!((result.status, error(&result)), (RunStatus::Cancelled, "cancelled"));
    assert_eq!(rig.next_at_gate().await.name, "3");
    assert_eq!(rig.state(2), Some(State::Forgotten));
    // When it is delivered again, it stays forgotten.
    rig.send([command(2), command(3)]).await;
    rig.received(run_ref(3)).await;
    assert_eq!(rig.state(2), Some(State::Forgotten));
}

#[tokio::test]
async fn a_later_run_ends_the_earlier_ones_wherever_they_are() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1), command(2)]).await;
    let _first = rig.next_at_gate().await;
    let again = |n| Command { run: 2, ..command(n) };
    rig.send([again(1), again(2)]).await;
    let result = rig.result(run_ref(1)).await;
    assert_eq!((result.status, error(&result)), (RunStatus::Failed, "superseded"));
    let result = rig.result(run_ref(2)).await;
    assert_eq!((result.status, error(&result)), (RunStatus::Failed, "superseded before it started"));
    for n in [1, 2] {
        let next = rig.next_at_gate().await;
        assert_eq!(next.name, n.to_string());
        next.end(true);
        let result = rig.result(RunRef { run: 2, ..run_ref(n) }).await;
        assert_eq!(result.status, RunStatus::Succeeded);
    }
    // Of a third command, only a later run is known.
    rig.send([Command { run: 3, ..command(3) }, command(3)]).await;
    assert_eq!(error(&rig.result(run_ref(3)).await), "superseded before it started");
    rig.next_at_gate().await.end(true);
    assert_eq!(rig.result(RunRef { run: 3, ..run_ref(3) }).await.status, RunStatus::Succeeded);
}

#[tokio::test]
async fn a_repeat_is_answered_and_not_run_again() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1), command(2)]).await;
    rig.received(run_ref(1)).await;
    rig.received(run_ref(2)).await;
    let first = rig.next_at_gate().await;
    rig.send([command(1), command(2)]).await;
    rig.received(run_ref(1)).await;
    rig.received(run_ref(2)).await;
    first.end(true);
    rig.result(run_ref(1)).await;
    rig.send([command(1)]).await;
    rig.result(run_ref(1)).await;
    rig.inputs.send(Input::Stored(Stored { commands: vec![run_ref(1)], rejected: vec![] })).await.expect("sent");
    rig.send([command(1)]).await;
    assert_eq!(rig.result(run_ref(1)).await.status, RunStatus::Succeeded);
    assert_eq!(rig.state(1), Some(State::Stored));
    let second = rig.next_at_gate().await;
    assert_eq!(second.name, "2", "the first ran once");
}

#[tokio::test]
async fn an_expired_command_is_not_run_and_is_answered_so() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    let now = Timestamp::of_this_machine();
    let soon_over = now.plus(Duration::from_secs(60));
    rig.send([command(1), Command { expires_at: soon_over, ..command(2) }]).await;
    rig.received(run_ref(2)).await;
    let first = rig.next_at_gate().await;
    // The machine slept; its wall clock doesn't matter.
    rig.boot.fetch_add(600_000, Ordering::SeqCst);
    rig.send([Command { expires_at: soon_over, ..command(3) }, command(4)]).await;
    rig.expired(run_ref(3)).await;
    let waited = rig.result(run_ref(2)).await;
    assert_eq!((waited.status, waited.started_at), (RunStatus::Expired, None));
    first.end(true);
    assert_eq!(rig.next_at_gate().await.name, "4");
    assert_eq!(rig.state(3), None);
    // A server where it hasn't expired delivers it again, after the agent has read its clock again.
    rig.clock.set(now);
    rig.send([Command { expires_at: soon_over, ..command(3) }]).await;
    rig.received(run_ref(3)).await;
}

#[tokio::test]
async fn what_waits_is_answered_when_it_expires() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    let soon_over = Timestamp::of_this_machine().plus(Duration::from_millis(300));
    rig.send([command(1), Command { expires_at: soon_over, ..command(2) }]).await;
    rig.received(run_ref(2)).await;
    let _first = rig.next_at_gate().await;
    rig.boot.store(10_000, Ordering::SeqCst);
    assert_eq!(rig.result(run_ref(2)).await.status, RunStatus::Expired);
}

#[tokio::test]
async fn what_the_journal_held_waits_for_the_time() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    let now = Timestamp::of_this_machine();
    let later = |secs| now.plus(Duration::from_secs(secs));
    let short = |n, timeout_ms| Command { timeout_ms, ..command(n) };
    rig.send([command(1), Command { expires_at: later(60), ..command(2) }, short(3, 30_000), short(4, 900_000)]).await;
    rig.received(run_ref(4)).await;
    rig.next_at_gate().await;
    rig.stop().await;

    // Ten minutes later, after a reboot. Whatever this machine's wall clock says, no run starts or
    // ends before the server has sent its time.
    let mut rig = Rig::start_without_time(dir.path(), 1);
    rig.cancel(9).await;
    let (tell, mut settled) = oneshot::channel();
    rig.inputs.send(Input::Settle(tell)).await.expect("the runner runs");
    rig.cancel(9).await;
    assert!(settled.try_recv().is_err() && rig.at_gate.is_empty());
    assert_eq!([2, 3, 4].map(|n| rig.state(n)), [Some(State::Received); 3]);
    rig.clock.set(later(600));
    assert_eq!(rig.result(run_ref(2)).await.status, RunStatus::Expired);
    let late = rig.result(run_ref(3)).await;
    assert_eq!((late.status, error(&late)), (RunStatus::TimedOut, "timed out before it started"));
    let last = rig.next_at_gate().await;
    assert_eq!(last.name, "4");
    last.end(true);
    soon(settled).await.expect("all is done");
}

#[tokio::test]
async fn a_cancel_finds_what_the_journal_held() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1), command(2), command(3)]).await;
    rig.received(run_ref(3)).await;
    rig.next_at_gate().await;
    rig.stop().await;
    let mut rig = Rig::start_without_time(dir.path(), 1);
    rig.clock.set(Timestamp::of_this_machine());
    rig.cancel(2).await;
    // It may have started before the cancel arrived.
    let mut next = rig.next_at_gate().await;
    if next.name == "2" {
        next = rig.next_at_gate().await;
    }
    assert_eq!(next.name, "3");
    if rig.state(2) != Some(State::Forgotten) {
        assert_eq!(rig.result(run_ref(2)).await.status, RunStatus::Cancelled);
    }
}

#[tokio::test]
async fn more_than_four_times_the_capacity_is_refused() {
    let dir = folder();
    let rig = Rig::start(dir.path(), 2);
    rig.send((1..=9).map(command)).await;
    assert_eq!(rig.fault().await, Fault::TooMany);
    rig.received(run_ref(8)).await;
    assert_eq!(rig.state(9), None);
}

#[tokio::test]
async fn nothing_is_acknowledged_while_the_journal_can_not_be_written() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 4);
    rig.send([command(1)]).await;
    rig.received(run_ref(1)).await;
    let first = rig.next_at_gate().await;
    rig.journal.with(Journal::spoil).await.expect("spoilt");
    rig.send([command(2)]).await;
    assert!(matches!(rig.fault().await, Fault::Journal(_)));
    assert!(rig.outbox.open().received.is_empty() && rig.state(2).is_none() && rig.at_gate.is_empty());
    // It is delivered again while a run ends: both are written as soon as possible.
    first.end(true);
    rig.send([command(2)]).await;
    rig.received(run_ref(2)).await;
    assert_eq!(rig.result(run_ref(1)).await.status, RunStatus::Succeeded);
    assert_eq!(rig.next_at_gate().await.name, "2");
}

#[tokio::test]
async fn a_stop_on_a_full_disk_keeps_what_fits_of_a_result() {
    for (room, kept) in [(2_000, "part"), (1, "nothing")] {
        let dir = folder();
        let mut rig = Rig::start(dir.path(), 1);
        let ping = format!(r#"[{{"module":"ping","parameters":"{}"}},{{"module":"gate"}}]"#, "x".repeat(10_000))
            .replace(r#"{"module":"gate"}"#, r#"{"module":"gate","parameters":"1"}"#);
        rig.send([with_operations(1, &ping)]).await;
        rig.received(run_ref(1)).await;
        let gate = rig.next_at_gate().await;
        rig.journal.lock().fill(room);
        gate.end(true);
        assert!(matches!(rig.fault().await, Fault::Journal(_)));
        rig.stop().await;
        let rig = Rig::start(dir.path(), 1);
        assert_eq!(rig.journal.peek(Index::unstored), [run_ref(1)]);
        let results = rig.journal.lock().results(&[run_ref(1)], u64::MAX).expect("readable").0;
        if kept == "part" {
            assert_eq!((results[0].status, results[0].results.len()), (RunStatus::Succeeded, 2));
            assert!(results[0].results[0].truncated && !results[0].results[1].truncated);
        } else {
            assert_eq!(error(&results[0]), "interrupted");
        }
    }
}

#[tokio::test]
async fn a_stop_interrupts_what_runs_and_keeps_what_waits() {
    let dir = folder();
    let mut rig = Rig::start(dir.path(), 1);
    rig.send([command(1), command(2)]).await;
    let _first = rig.next_at_gate().await;
    rig.stop().await;
    let mut rig = Rig::start(dir.path(), 1);
    assert_eq!(rig.next_at_gate().await.name, "2");
    assert_eq!(rig.journal.peek(Index::unstored), [run_ref(1)]);
    let results = rig.journal.lock().results(&[run_ref(1)], u64::MAX).expect("readable").0;
    assert_eq!(error(&results[0]), "interrupted");
}

#[tokio::test]
async fn the_outputs_of_a_run_fit_into_a_frame_together() {
    let dir = folder();
    let rig = Rig::start(dir.path(), 1);
    let ping = format!(r#"{{"module":"ping","parameters":"{}"}}"#, "x".repeat(1_000_000));
    rig.send([with_operations(1, &format!("[{}]", vec![ping; 6].join(",")))]).await;
    let result = rig.result(run_ref(1)).await;
    assert_eq!((result.status, result.results.len()), (RunStatus::Succeeded, 6));
    let cut: Vec<_> = result.results.iter().map(|operation| operation.truncated).collect();
    assert_eq!(cut, [false, false, false, true, true, true]);
    assert!(serde_json::to_string(&result).expect("JSON").len() < crate::domain::protocol::MAX_FRAME - 4096);
}
