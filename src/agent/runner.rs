//! Runs what the server sends: connection → runner → [`Outbox`].
//!
//! The runner works in turns. A turn gathers all there is to write (commands that came, runs that start, runs that
//! ended), writes it to the journal as *one* group, and only then does what it wrote: says `received`, starts, says
//! that results are there. Under load the groups grow by themselves, since all that happens during one write
//! is in the next. When the journal can't be written nothing is acknowledged: commands that came are let go
//! (the server delivers them again), results stay in memory and keep their slots, the connection is closed.

use super::journal::{Record, Recovered, SharedJournal, State, Waiting};
use super::modules::{Modules, Stop, StopReason};
use super::outbox::{Fault, Outbox};
use super::processes::Trace;
use super::run::{only_module, run, without_output};
use super::server_clock::ServerClock;
use super::stop_signal::told_to;
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

/// What the server said: connection → runner.
#[derive(Debug)]
pub(super) enum Input {
    /// To run.
    Commands(Vec<Command>),
    /// These need not be sent again.
    Stored(Stored),
    /// Stop these actions.
    Cancel(Vec<Uuid>),
    /// Answered once all that came before is done: nothing waits, nothing runs, all is written down.
    Settle(oneshot::Sender<()>),
}

/// How many times `capacity` the agent takes before it says that this is too much.
const SLACK: usize = 4;
/// How long to wait before a journal that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// No run is given more time than this; it keeps the arithmetic of times in range.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Higher priority first, then the earlier one.
type QueueKey = (Reverse<i32>, u64);

struct Queued {
    command: Command,
    /// By the server's clock, by which what is left of its time is known after a restart.
    received_at: Timestamp,
    deadline: Instant,
    /// Safe in the journal.
    kept: bool,
    /// What its processes will be known by.
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
    /// What the journal held, until the server's clock is known: nobody knows before what has expired.
    held: Vec<Waiting>,
    waiting: BTreeMap<QueueKey, Queued>,
    running: HashMap<RunRef, Running>,
    tasks: JoinSet<RunResult>,
    /// Ended, and not in the journal yet.
    ended: Vec<Ended>,
    /// Won't run, and the journal doesn't know yet.
    forgotten: BTreeMap<RunRef, Timestamp>,
    /// The journal could not be written; not before this time again.
    retry_at: Option<Instant>,
    /// Want to know when all is done.
    settle: Vec<oneshot::Sender<()>>,
    stopping: bool,
}

impl Runner {
    /// A runner that goes on with what the journal held.
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
            settle: Vec::new(),
            stopping: false,
        }
    }

    /// Queues what the journal held, once it is known how much of its time is left.
    fn release(&mut self) {
        let Some(now) = self.clock.now() else { return };
        for Waiting { command, received_at } in std::mem::take(&mut self.held) {
            self.enqueue(command, received_at, now, true);
        }
    }

    /// Works until `stop` says true; then kills what runs, writes that down, and returns.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut stop: watch::Receiver<bool>) {
        let clock = self.clock.clone();
        loop {
            self.release();
            self.turn().await;
            if self.stopping && self.tasks.is_empty() && (self.ended.is_empty() || self.retry_at.is_some()) {
                return;
            }
            let is_idle = self.waiting.is_empty() && self.running.is_empty() && self.ended.is_empty();
            if is_idle && self.held.is_empty() {
                for waits in self.settle.drain(..) {
                    // Somebody who no longer wants to know needn't.
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

    /// When something is to be done though nothing happens.
    fn wake_at(&self) -> Option<Instant> {
        let (now, server_now) = (Instant::now(), self.clock.now().unwrap_or_default());
        // What waits has expired a millisecond later: times are cut to milliseconds.
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
            Input::Settle(waits) => self.settle.push(waits),
        }
    }

    fn arrive(&mut self, command: Command) {
        let run = command.run_ref();
        if self.running.contains_key(&run) || self.ended.iter().any(|ended| ended.result.run_ref() == run) {
            return self.outbox.post(|pending| _ = pending.received.insert(run));
        }
        if self.waiting.values().any(|queued| queued.command.run_ref() == run) {
            // If it isn't safe yet, this turn makes it so and says it.
            return self.outbox_if_kept(run);
        }
        let (state, newest) = self.journal.peek(|journal| (journal.state(run), journal.newest_run(command.action)));
        match state {
            Some(State::Done | State::Stored) => {
                return self.outbox.post(|pending| _ = pending.results.insert(run));
            }
            // Cancelled while it waited.
            Some(State::Forgotten) => return,
            // Neither waits nor runs nor ended: can't be. Better not run than run twice.
            Some(State::Received | State::Started) => return,
            None => {}
        }
        // The session takes no commands before a server said what time it is.
        let Some(now) = self.clock.now() else { return };
        if command.expires_at <= now {
            log::info!(action:% = run.action, run = run.run, now:%; "a command had expired when it came");
            return self.outbox.post(|pending| _ = pending.expired.insert(run));
        }
        let unfinished = self.waiting.len() + self.running.len() + self.ended.len();
        if unfinished >= SLACK * self.capacity {
            return self.outbox.post(|pending| pending.fault = Some(Fault::TooMany));
        }
        // The arrival of run 2 kills run 1.
        self.supersede(command.action, command.run);
        let is_newest = newest.is_none_or(|newest| newest < run.run)
            && self.waiting.values().all(|queued| queued.command.action != run.action || queued.command.run < run.run);
        if is_newest {
            self.enqueue(command, now, now, false);
        } else {
            // The server went past this run already.
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

    /// The journal has to know only of what it was told of.
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
            // The first reason stays.
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
            // A module that panics is caught in `run`; this is for the code around it.
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

    /// Writes all that there is to write as one group, and then does it.
    async fn turn(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let starting = if self.stopping { Vec::new() } else { self.choose() };
        let records = self.records(&starting);
        if records.is_empty() {
            return;
        }
        // While the server's clock is not known nothing in the journal is over.
        let now = self.clock.now().unwrap_or_default();
        if let Err(error) = self.journal.with(move |journal| journal.commit(&records, now)).await {
            self.waiting.retain(|_, queued| queued.kept);
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
        for place in starting {
            if let Some(queued) = self.waiting.remove(&place) {
                self.start(queued);
            }
        }
    }

    /// Sorts out what waited too long, and says which start now.
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
        log::debug!(action:% = run_ref.action, run = run_ref.run; "a run starts");
        let (module, expires_at) = (only_module(&queued.command), queued.command.expires_at);
        let stop = Stop::new(told, queued.deadline);
        let trace = Trace::new(run_ref, queued.mark, Some(self.journal.clone()));
        let task = self.tasks.spawn(run(queued.command, self.modules.clone(), trace, stop)).id();
        self.running.insert(run_ref, Running { task, module, tell, expires_at });
    }

    fn journal_failed(&mut self, error: &str) {
        log::error!(error; "the journal can't be written; nothing is acknowledged until it can");
        self.retry_at = Some(Instant::now() + RETRY);
        self.outbox.post(|pending| pending.fault = Some(Fault::Journal(error.to_owned())));
    }
}
