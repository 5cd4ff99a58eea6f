//! Runs the commands from the server: connection → runner → [`Outbox`].
//!
//! The runner works in turns. A turn collects all that is to be written (commands that arrived,
//! runs that start, runs that ended), writes it to the journal as *one* group, and only then acts
//! on it: reports `received`, starts runs, offers results. Under load the groups grow, since all
//! events during one write go into the next. If the journal can't be written, nothing is
//! acknowledged: new commands are dropped (the server delivers them again), results stay in memory
//! and keep their slots, and the connection is closed.

use super::journal::{Kept, Record, Recovered, SharedJournal, State, Waiting};
use super::modules::{Modules, Stop, StopReason};
use super::outbox::{Fault, Outbox};
use super::processes::Trace;
use super::run::{only_module, run, without_output};
use super::server_clock::ServerClock;
use super::stop_signal::told_to;
use crate::domain::command::CommandState;
use crate::domain::protocol::{Command, RunRef, RunResult, RunStatus, Stored};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

/// Messages from the server: connection → runner.
#[derive(Debug)]
pub(super) enum Input {
    /// Commands to run.
    Commands(Vec<Command>),
    /// These results need not be sent again.
    Stored(Stored),
    /// Stop the runs of these actions.
    Cancel(Vec<Uuid>),
    /// Answered once all that came before is written to the journal; dropped if it can't be written.
    Written(oneshot::Sender<()>),
    /// Answered once all earlier work is done: nothing waits, nothing runs, everything is written.
    Settle(oneshot::Sender<()>),
}

/// The agent accepts this many times `capacity` before it reports too many commands.
const SLACK: usize = 4;
/// How long to wait before a journal that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum timeout of a run; it keeps the arithmetic of times in range.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Order in the queue: higher priority first, then the earlier arrival.
type QueueKey = (Reverse<i32>, u64);

struct Queued {
    command: Command,
    /// By the server's clock, so that the remaining time is known after a restart.
    received_at: Timestamp,
    deadline: Instant,
    /// It is on disk in the journal.
    kept: bool,
    /// The mark of its processes.
    mark: Uuid,
}

struct Running {
    task: tokio::task::Id,
    module: String,
    tell: watch::Sender<Option<StopReason>>,
    expires_at: Timestamp,
}

struct Ended {
    expires_at: Timestamp,
    result: RunResult,
}

/// Runs commands, at most `capacity` at a time.
pub(super) struct Runner {
    capacity: usize,
    modules: Modules,
    journal: SharedJournal,
    outbox: Arc<Outbox>,
    clock: Arc<ServerClock>,
    sequence: u64,
    /// Commands from the journal. They wait until the server's clock is known, because only then
    /// expiry can be checked.
    held: Vec<Waiting>,
    waiting: BTreeMap<QueueKey, Queued>,
    running: HashMap<RunRef, Running>,
    tasks: JoinSet<RunResult>,
    /// Ended runs that are not in the journal yet.
    ended: Vec<Ended>,
    /// Runs that won't start. The journal doesn't know it yet.
    forgotten: BTreeMap<RunRef, Timestamp>,
    /// The journal could not be written: no attempt before this time.
    retry_at: Option<Instant>,
    /// Callers that wait until what they sent is written.
    marks: Vec<oneshot::Sender<()>>,
    /// Callers that wait until all is done.
    settle: Vec<oneshot::Sender<()>>,
    stopping: bool,
}

impl Runner {
    /// A runner that continues with the content of the journal.
    pub(super) fn new(
        capacity: u32,
        modules: Modules,
        journal: SharedJournal,
        recovered: Recovered,
        outbox: Arc<Outbox>,
        clock: Arc<ServerClock>,
    ) -> Self {
        Self {
            capacity: capacity as usize,
            modules,
            journal,
            outbox,
            clock,
            sequence: 0,
            held: recovered.waiting,
            waiting: BTreeMap::new(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            ended: Vec::new(),
            forgotten: BTreeMap::new(),
            retry_at: None,
            marks: Vec::new(),
            settle: Vec::new(),
            stopping: false,
        }
    }

    /// Queues the commands from the journal, once their remaining time is known.
    fn release(&mut self) {
        let Some(now) = self.clock.now() else { return };
        for Waiting { command, received_at } in std::mem::take(&mut self.held) {
            self.enqueue(command, received_at, now, true);
        }
    }

    /// Runs until `stop` is true. Then kills the runs, records that, and returns.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut stop: watch::Receiver<bool>) {
        let clock = self.clock.clone();
        loop {
            self.release();
            self.outbox.set_load(self.waiting.len() + self.running.len());
            self.turn().await;
            if self.stopping && self.tasks.is_empty() && (self.ended.is_empty() || self.retry_at.is_some()) {
                return self.salvage().await;
            }
            let is_idle = self.waiting.is_empty() && self.running.is_empty() && self.ended.is_empty();
            if is_idle && self.held.is_empty() {
                for waits in self.settle.drain(..) {
                    // The caller may no longer wait.
                    let _ = waits.send(());
                }
            }
            let wake_at = self.wake_at();
            tokio::select! {
                () = told_to(&mut stop), if !self.stopping => {
                    self.stopping = true;
                    self.tell(|_| true, StopReason::Interrupted);
                }
                Some(done) = self.tasks.join_next() => {
                    self.end(done);
                    while let Some(done) = self.tasks.try_join_next() {
                        self.end(done);
                    }
                }
                Some(input) = inputs.recv(), if !self.stopping => {
                    self.take(input).await;
                    while let Ok(input) = inputs.try_recv() {
                        self.take(input).await;
                    }
                }
                () = clock.known(), if !self.held.is_empty() && !self.stopping => {}
                () = async { tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)).await },
                    if wake_at.is_some() => {}
            }
        }
    }

    /// When to wake up without an event.
    fn wake_at(&self) -> Option<Instant> {
        let (now, server_now) = (Instant::now(), self.clock.now().unwrap_or_default());
        // One millisecond more, because times are truncated to milliseconds.
        let expiry = |queued: &Queued| now + queued.command.expires_at.since(server_now) + Duration::from_millis(1);
        let timeout = self.waiting.values().map(|queued| queued.deadline.min(expiry(queued))).min();
        match self.retry_at {
            Some(retry) => Some(retry),
            None if self.stopping => None,
            None => timeout,
        }
    }

    async fn take(&mut self, input: Input) {
        self.release();
        match input {
            Input::Commands(commands) => {
                for command in commands {
                    self.arrive(command);
                }
            }
            Input::Cancel(actions) => {
                for action in actions {
                    self.cancel(action);
                }
            }
            Input::Stored(stored) => self.stored(stored).await,
            Input::Written(waits) => self.marks.push(waits),
            Input::Settle(waits) => self.settle.push(waits),
        }
    }

    fn arrive(&mut self, command: Command) {
        let run = command.run_ref();
        if self.running.contains_key(&run) || self.ended.iter().any(|ended| ended.result.run_ref() == run) {
            return self.outbox.post(|pending| _ = pending.received.insert(run));
        }
        if self.waiting.values().any(|queued| queued.command.run_ref() == run) {
            // If it isn't on disk yet, this turn writes and reports it.
            return self.outbox_if_kept(run);
        }
        let (state, newest) = self.journal.peek(|journal| (journal.state(run), journal.newest_run(command.action)));
        match state {
            Some(State::Done | State::Stored) => {
                return self.outbox.post(|pending| _ = pending.results.insert(run));
            }
            // It was cancelled while it waited.
            Some(State::Forgotten) => return,
            // It neither waits nor runs nor ended, which can't happen. Not running it is better
            // than running it twice.
            Some(State::Received | State::Started) => return,
            None => {}
        }
        // The session accepts no commands before the server has sent its time.
        let Some(now) = self.clock.now() else { return };
        if command.expires_at <= now {
            log::info!(action:% = run.action, run = run.run, now:%; "a command had expired when it came");
            return self.outbox.post(|pending| _ = pending.expired.insert(run));
        }
        let unfinished = self.waiting.len() + self.running.len() + self.ended.len();
        if unfinished >= SLACK * self.capacity {
            return self.outbox.post(|pending| pending.fault = Some(Fault::TooMany));
        }
        // A new run kills the older one of the same command.
        self.supersede(command.action, command.run);
        let is_newest = newest.is_none_or(|newest| newest < run.run)
            && self.waiting.values().all(|queued| queued.command.action != run.action || queued.command.run < run.run);
        if is_newest {
            self.enqueue(command, now, now, false);
        } else {
            // The server has already moved past this run.
            self.end_unstarted(&command, RunStatus::Failed, StopReason::Superseded);
        }
    }

    fn outbox_if_kept(&self, run: RunRef) {
        if self.waiting.values().any(|queued| queued.kept && queued.command.run_ref() == run) {
            self.outbox.post(|pending| _ = pending.received.insert(run));
        }
    }

    fn enqueue(&mut self, command: Command, received_at: Timestamp, now: Timestamp, kept: bool) {
        let timeout = Duration::from_millis(u64::try_from(command.timeout_ms).unwrap_or(0)).min(LONGEST);
        let left = timeout.saturating_sub(now.since(received_at));
        self.sequence += 1;
        let (place, mark) = ((Reverse(command.priority), self.sequence), Uuid::new_v4());
        self.waiting.insert(place, Queued { command, received_at, deadline: Instant::now() + left, kept, mark });
    }

    fn supersede(&mut self, action: Uuid, by: i32) {
        self.tell(|run| run.action == action && run.run < by, StopReason::Superseded);
        let older = self.take_waiting(|queued| queued.command.action == action && queued.command.run < by);
        for queued in older {
            self.end_unstarted(&queued.command, RunStatus::Failed, StopReason::Superseded);
        }
    }

    fn cancel(&mut self, action: Uuid) {
        self.tell(|run| run.action == action, StopReason::Cancelled);
        for queued in self.take_waiting(|queued| queued.command.action == action) {
            self.forget(&queued);
        }
    }

    /// The journal only needs records about runs that it contains.
    fn forget(&mut self, queued: &Queued) {
        if queued.kept {
            self.forgotten.insert(queued.command.run_ref(), queued.command.expires_at);
        }
    }

    fn take_waiting(&mut self, which: impl Fn(&Queued) -> bool) -> Vec<Queued> {
        let places: Vec<_> = self.waiting.iter().filter(|(_, queued)| which(queued)).map(|(place, _)| *place).collect();
        places.iter().filter_map(|place| self.waiting.remove(place)).collect()
    }

    fn tell(&self, which: impl Fn(&RunRef) -> bool, reason: StopReason) {
        for (_, running) in self.running.iter().filter(|(run, _)| which(run)) {
            // The first reason is kept.
            running.tell.send_if_modified(|told| told.is_none() && told.replace(reason).is_none());
        }
    }

    fn end_unstarted(&mut self, command: &Command, status: RunStatus, reason: impl std::fmt::Display) {
        let result = RunResult {
            action: command.action,
            run: command.run,
            status,
            results: vec![without_output(only_module(command), format!("{reason} before it started"))],
            started_at: None,
            finished_at: Some(Timestamp::of_this_machine()),
        };
        self.ended.push(Ended { expires_at: command.expires_at, result });
    }

    fn end(&mut self, done: Result<RunResult, tokio::task::JoinError>) {
        let run_ref = match &done {
            Ok(result) => Some(result.run_ref()),
            // A panicking module is caught in `run`; this is for the code around it.
            Err(error) => self.running.iter().find(|(_, run)| run.task == error.id()).map(|(run_ref, _)| *run_ref),
        };
        let Some((run_ref, running)) = run_ref.and_then(|run| self.running.remove_entry(&run)) else { return };
        let result = done.unwrap_or_else(|error| {
            log::error!(action:% = run_ref.action, run = run_ref.run, error:%; "a run's task panicked");
            let results = vec![without_output(running.module, "the agent failed to carry it out".into())];
            let finished_at = Some(Timestamp::of_this_machine());
            let RunRef { action, run } = run_ref;
            RunResult { action, run, status: RunStatus::Failed, results, started_at: None, finished_at }
        });
        let took = result.started_at.zip(result.finished_at).map_or(Duration::ZERO, |(from, to)| to.since(from));
        log::info!(action:% = run_ref.action, run = run_ref.run, status = CommandState::from(result.status).as_str(), took_ms = took.as_millis() as u64; "a run has ended");
        self.ended.push(Ended { expires_at: running.expires_at, result });
    }

    async fn stored(&mut self, stored: Stored) {
        for rejected in &stored.rejected {
            log::warn!(action:% = rejected.action, run = rejected.run, reason = rejected.reason.as_str();
                "the server rejected a result");
        }
        let rejected = stored.rejected.iter().map(|rejected| RunRef { action: rejected.action, run: rejected.run });
        let runs: Vec<_> = stored.commands.iter().copied().chain(rejected).collect();
        let now = self.clock.now().unwrap_or_default();
        let written = self
            .journal
            .with(move |journal| {
                let records: Vec<_> = runs
                    .into_iter()
                    .filter(|run| journal.state(*run) == Some(State::Done))
                    .map(|run| Record::Stored { run })
                    .collect();
                journal.commit(&records, now)
            })
            .await;
        if let Err(error) = written {
            self.journal_failed(&error.chain().to_string());
        }
    }

    /// Writes all pending records as one group, and then acts on them.
    async fn turn(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let starting = if self.stopping { Vec::new() } else { self.choose() };
        let records = self.records(&starting);
        if records.is_empty() {
            return self.answer_marks();
        }
        // While the server's clock is unknown, no entry counts as expired.
        let now = self.clock.now().unwrap_or_default();
        if let Err(error) = self.journal.with(move |journal| journal.commit(&records, now)).await {
            self.waiting.retain(|_, queued| queued.kept);
            self.marks.clear();
            return self.journal_failed(&error.chain().to_string());
        }
        self.forgotten.clear();
        let (waiting, ended) = (&mut self.waiting, &mut self.ended);
        self.outbox.post(|pending| {
            for queued in waiting.values_mut().filter(|queued| !queued.kept) {
                queued.kept = true;
                pending.received.insert(queued.command.run_ref());
            }
            pending.results.extend(ended.drain(..).map(|ended| ended.result.run_ref()));
        });
        self.answer_marks();
        for place in starting {
            if let Some(queued) = self.waiting.remove(&place) {
                self.start(queued);
            }
        }
    }

    fn answer_marks(&mut self) {
        for waits in self.marks.drain(..) {
            // The connection may have ended.
            let _ = waits.send(());
        }
    }

    /// Ends commands that waited too long, and returns those to start now.
    fn choose(&mut self) -> Vec<QueueKey> {
        let (now, server_now) = (Instant::now(), self.clock.now().unwrap_or_default());
        for queued in self.take_waiting(|queued| queued.command.expires_at <= server_now) {
            self.end_unstarted(&queued.command, RunStatus::Expired, "expired");
        }
        for queued in self.take_waiting(|queued| queued.deadline <= now) {
            self.end_unstarted(&queued.command, RunStatus::TimedOut, StopReason::TimedOut);
        }
        let free = self.capacity.saturating_sub(self.running.len());
        // A run waits until the one that it superseded is dead.
        let busy = |action| self.running.keys().any(|run| run.action == action);
        let places = self.waiting.iter().filter(|(_, queued)| !busy(queued.command.action));
        places.take(free).map(|(place, _)| *place).collect()
    }

    fn records(&self, starting: &[QueueKey]) -> Vec<Record> {
        let mut arrived: Vec<_> = self.waiting.iter().filter(|(_, queued)| !queued.kept).collect();
        // The journal keeps the order of arrival.
        arrived.sort_by_key(|((_, sequence), _)| *sequence);
        let at = Timestamp::of_this_machine();
        let received = arrived.into_iter().map(|(_, queued)| Record::Received {
            command: queued.command.clone(),
            at,
            clock_ms: queued.received_at.0.saturating_sub(at.0),
        });
        let ended = self
            .ended
            .iter()
            .map(|ended| Record::Result { expires_at: ended.expires_at, result: ended.result.clone() });
        let forgotten = self.forgotten.iter().map(|(run, at)| Record::Forgotten { run: *run, expires_at: *at });
        let started = starting.iter().filter_map(|place| self.waiting.get(place)).map(|queued| Record::Started {
            run: queued.command.run_ref(),
            expires_at: queued.command.expires_at,
            module: only_module(&queued.command),
            at: Timestamp::of_this_machine(),
            mark: Some(queued.mark),
        });
        received.chain(ended).chain(forgotten).chain(started).collect()
    }

    fn start(&mut self, queued: Queued) {
        let (tell, told) = watch::channel(None);
        let run_ref = queued.command.run_ref();
        log::info!(action:% = run_ref.action, run = run_ref.run, name = queued.command.name.as_str(); "a run starts");
        let (module, expires_at) = (only_module(&queued.command), queued.command.expires_at);
        let stop = Stop::new(told, queued.deadline);
        let trace = Trace::new(run_ref, queued.mark, Some(self.journal.clone()));
        let task = self.tasks.spawn(run(queued.command, self.modules.clone(), trace, stop)).id();
        self.running.insert(run_ref, Running { task, module, tell, expires_at });
    }

    /// The agent ends with results that the journal could not take.
    async fn salvage(&mut self) {
        for Ended { expires_at, result } in std::mem::take(&mut self.ended) {
            let (run, status) = (result.run_ref(), CommandState::from(result.status).as_str());
            match self.journal.with(move |journal| Ok(journal.salvage(expires_at, result))).await {
                Ok(Kept::Whole) => {}
                Ok(Kept::Part) => log::error!(action:% = run.action, run = run.run, status;
                    "there was no room in the journal for all of a result: its output is cut"),
                Ok(Kept::Nothing) | Err(_) => log::error!(action:% = run.action, run = run.run, status;
                    "a result is lost, since the journal can't be written: the next start reports the run as interrupted"),
            }
        }
    }

    fn journal_failed(&mut self, error: &str) {
        log::error!(error; "the journal can't be written; nothing is acknowledged until it can");
        self.retry_at = Some(Instant::now() + RETRY);
        self.outbox.post(|pending| pending.fault = Some(Fault::Journal(error.to_owned())));
    }
}
