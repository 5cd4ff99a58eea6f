//! A stage: its queue, its workers, and where its results go.

use super::core::{Core, Member};
use super::error::{Cause, StageError, panic_message};
use super::metrics::{Counters, StageSnapshot, Tally};
use super::ordered::Keyed;
use super::queue::{Queue, Refused, lock};
use super::work::Work;
use futures_util::FutureExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinHandle, coop};

/// Maximum number of workers of a stage. Each is a task, of about a kilobyte with its buffers.
pub(super) const MOST_WORKERS: usize = 100_000;

/// A job on its way: as it was submitted, and what the stages have made of it.
pub(super) struct Ticket<Job, In> {
    pub(super) job: Job,
    pub(super) input: In,
}

/// What [`Outcomes`](super::Outcomes) yields.
pub(super) type Outcome<Job, Out, E> = Result<Out, StageError<Job, E>>;

/// Where the results of a stage go.
pub(super) enum Outlet<Job, Out, E> {
    /// To the stage of this name.
    Stage(&'static str, Arc<Queue<Ticket<Job, Out>>>, Arc<Counters>),
    /// To the reader of the outcomes.
    End(Arc<Queue<Outcome<Job, Out, E>>>),
}

/// What a worker is doing, where the pool's end finds it. Who takes the jobs decides their outcome.
struct Desk<Job> {
    jobs: Mutex<Vec<Job>>,
    abort: Mutex<Option<AbortHandle>>,
    tally: Tally,
}

/// A worker's buffers.
struct Hands<Job, In, Out, E> {
    tickets: Vec<Keyed<Ticket<Job, In>>>,
    keys: Vec<u64>,
    inputs: Vec<In>,
    results: Vec<Result<Out, E>>,
    jobs: Vec<Job>,
    leftover: Option<JoinHandle<Result<Out, E>>>,
    /// When the last job ended, if the worker hasn't waited since: reading the clock takes as long as
    /// passing on a job.
    clock: Option<Instant>,
}

enum Ended {
    Returned,
    Panicked(String),
    TimedOut(Duration),
}

pub(super) struct Staged<Job, In, Out, E, W> {
    pub(super) name: &'static str,
    pub(super) queue: Arc<Queue<Ticket<Job, In>>>,
    pub(super) outlet: Outlet<Job, Out, E>,
    pub(super) work: W,
    pub(super) timeout: Option<Duration>,
    pub(super) core: Arc<Core<Job, E>>,
    pub(super) counters: Arc<Counters>,
    concurrency: Mutex<usize>,
    /// A permit for each worker that is to end.
    retire: Semaphore,
    desks: Mutex<Vec<Arc<Desk<Job>>>>,
    /// What workers have counted that have ended.
    former: Tally,
}

impl<Job, In, Out, E, W> Staged<Job, In, Out, E, W>
where
    Job: Clone + Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
    E: Send + 'static,
    W: Work<In, Out, E>,
{
    #[allow(clippy::too_many_arguments, reason = "called in one place, where each has a name")]
    pub(super) fn new(
        name: &'static str,
        queue: Arc<Queue<Ticket<Job, In>>>,
        outlet: Outlet<Job, Out, E>,
        work: W,
        timeout: Option<Duration>,
        core: Arc<Core<Job, E>>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let (concurrency, retire, desks) = (Mutex::new(0), Semaphore::new(0), Mutex::default());
        let former = Tally::default();
        Arc::new(Self { name, queue, outlet, work, timeout, core, counters, concurrency, retire, desks, former })
    }

    fn hire(self: &Arc<Self>) {
        let desk = Arc::new(Desk { jobs: Mutex::default(), abort: Mutex::default(), tally: Tally::default() });
        // The lock keeps `abort_running` from meeting a worker without its handle.
        let mut desks = lock(&self.desks);
        let worker = self.core.runtime.spawn(self.clone().work(desk.clone()));
        *lock(&desk.abort) = Some(worker.abort_handle());
        desks.push(desk);
    }

    /// A worker's life.
    async fn work(self: Arc<Self>, desk: Arc<Desk<Job>>) {
        let mut hands = Hands {
            tickets: Vec::new(),
            keys: Vec::new(),
            inputs: Vec::new(),
            results: Vec::new(),
            jobs: Vec::new(),
            leftover: None,
            clock: None,
        };
        // A panic of the job itself ends in `run`. What is left are values that panic when they are dropped.
        while let Err(panic) = AssertUnwindSafe(self.rounds(&desk, &mut hands)).catch_unwind().await {
            let message = panic_message(&*panic);
            hands.jobs.append(&mut lock(&desk.jobs));
            while let Some(job) = hands.jobs.pop() {
                self.fail(job, Cause::Panicked(message.clone())).await;
            }
            self.release(&mut hands.keys);
        }
        self.leave(&desk);
    }

    /// Leaves the stage, but not its count.
    fn leave(&self, desk: &Arc<Desk<Job>>) {
        let mut desks = lock(&self.desks);
        desks.retain(|other| !Arc::ptr_eq(other, desk));
        self.former.add(&desk.tally);
    }

    async fn rounds(&self, desk: &Desk<Job>, hands: &mut Hands<Job, In, Out, E>) {
        // What a panic has left.
        hands.inputs.clear();
        hands.results.clear();
        loop {
            // A queue that is never empty doesn't make a worker wait.
            coop::consume_budget().await;
            if let Ok(permit) = self.retire.try_acquire() {
                return permit.forget();
            }
            match self.queue.try_pop(self.work.most(), &mut hands.tickets) {
                Some(true) => {}
                Some(false) => return,
                None => {
                    hands.clock = None;
                    self.queue.wait_for_items(|| self.retire.available_permits() > 0).await;
                    continue;
                }
            }
            if self.take_up(desk, hands) {
                self.finish_round(desk, hands).await;
            }
            self.release(&mut hands.keys);
        }
    }

    /// Lays the jobs on the desk. Returns false if there are none to do.
    fn take_up(&self, desk: &Desk<Job>, hands: &mut Hands<Job, In, Out, E>) -> bool {
        let mut jobs = lock(&desk.jobs);
        // Looked at under the lock: an abort sets it before it looks at the desks.
        if self.core.is_aborting() {
            drop(jobs);
            let back = hands.tickets.drain(..).map(|entry| self.not_started(entry.item)).collect();
            self.core.give_back(back);
            return false;
        }
        for Keyed { key, item } in hands.tickets.drain(..) {
            hands.keys.extend(key);
            jobs.push(item.job);
            hands.inputs.push(item.input);
        }
        desk.tally.begun(jobs.len());
        !jobs.is_empty()
    }

    /// Does the jobs, and passes on what has come of them.
    async fn finish_round(&self, desk: &Desk<Job>, hands: &mut Hands<Job, In, Out, E>) {
        let running = Running(&desk.tally, hands.clock.take().unwrap_or_else(Instant::now));
        let ended = self.run(hands).await;
        hands.inputs.clear();
        std::mem::swap(&mut *lock(&desk.jobs), &mut hands.jobs);
        hands.clock = Some(running.end());
        hands.results.truncate(hands.jobs.len());
        let results = hands.results.len();
        let lost = || match &ended {
            Ended::TimedOut(limit) => Cause::TimedOut(*limit),
            Ended::Panicked(message) => Cause::Panicked(message.clone()),
            Ended::Returned => Cause::Panicked(format!("{results} results for a larger batch")),
        };
        hands.jobs.reverse();
        hands.results.reverse();
        // Each job is taken from `jobs` before anything is awaited. It is empty if the pool's end took them.
        while let Some(job) = hands.jobs.pop() {
            let has_waited = match hands.results.pop() {
                Some(Ok(out)) => self.pass_on(desk, job, out).await,
                Some(Err(error)) => self.fail(job, Cause::Failed(error)).await,
                None => self.fail(job, lost()).await,
            };
            if has_waited {
                hands.clock = None;
            }
        }
        // A thread can't be interrupted. It counts as this worker until it returns.
        if let Some(leftover) = hands.leftover.take() {
            leftover.await.ok();
            hands.clock = None;
        }
    }

    async fn run(&self, hands: &mut Hands<Job, In, Out, E>) -> Ended {
        let Hands { inputs, results, leftover, .. } = hands;
        let work = AssertUnwindSafe(self.work.run(inputs, results, leftover)).catch_unwind();
        let ended = match self.timeout {
            None => work.await,
            Some(limit) => match tokio::time::timeout(limit, work).await {
                Ok(ended) => ended,
                Err(_) => return Ended::TimedOut(limit),
            },
        };
        ended.map_or_else(|panic| Ended::Panicked(panic_message(&*panic)), |()| Ended::Returned)
    }

    /// Returns whether it may have waited, as does `fail`.
    async fn pass_on(&self, desk: &Desk<Job>, job: Job, out: Out) -> bool {
        desk.tally.done();
        match &self.outlet {
            Outlet::End(outcomes) => {
                // Nobody may be reading any more: then the outcome is discarded.
                let mut has_waited = false;
                if let Err(Refused::Full(back)) = outcomes.try_push(Keyed { key: None, item: Ok(out) }) {
                    has_waited = true;
                    outcomes.push(back).await.ok();
                }
                self.core.settle(1);
                has_waited
            }
            Outlet::Stage(name, queue, counters) => {
                let ticket = Ticket { job, input: out };
                let key = match catch_unwind(AssertUnwindSafe(|| queue.key_of(&ticket))) {
                    Ok(key) => key,
                    Err(panic) => {
                        counters.panicked.fetch_add(1, Relaxed);
                        let cause = Cause::Panicked(panic_message(&*panic));
                        self.core.fail(StageError::new(name, ticket.job, cause)).await;
                        return true;
                    }
                };
                let (refused, has_waited) = match queue.try_push(Keyed { key, item: ticket }) {
                    Ok(()) => (Ok(()), false),
                    Err(Refused::Closed(back)) => (Err(back), false),
                    Err(Refused::Full(back)) => (queue.push(back).await, true),
                };
                if let Err(Keyed { item, .. }) = refused {
                    counters.add_given_back(1);
                    self.core.give_back(vec![StageError::not_started(name, item.job, item.input)]);
                }
                has_waited
            }
        }
    }

    async fn fail(&self, job: Job, cause: Cause<E>) -> bool {
        let counter = match cause {
            Cause::Panicked(_) => &self.counters.panicked,
            Cause::TimedOut(_) => &self.counters.timed_out,
            _ => &self.counters.failed,
        };
        counter.fetch_add(1, Relaxed);
        self.core.fail(StageError::new(self.name, job, cause)).await;
        true
    }

    fn release(&self, keys: &mut Vec<u64>) {
        for key in keys.drain(..) {
            self.queue.release(key);
        }
    }

    fn not_started(&self, ticket: Ticket<Job, In>) -> StageError<Job, E> {
        self.counters.add_given_back(1);
        StageError::not_started(self.name, ticket.job, ticket.input)
    }
}

impl<Job, In, Out, E, W> Member<Job, E> for Staged<Job, In, Out, E, W>
where
    Job: Clone + Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
    E: Send + 'static,
    W: Work<In, Out, E>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn concurrency(&self) -> usize {
        *lock(&self.concurrency)
    }

    fn set_concurrency(self: Arc<Self>, workers: usize) {
        let workers = workers.clamp(1, MOST_WORKERS);
        let mut concurrency = lock(&self.concurrency);
        for _ in workers..*concurrency {
            self.retire.add_permits(1);
        }
        for _ in *concurrency..workers {
            // One that was to end and hasn't yet stays.
            match self.retire.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => self.hire(),
            }
        }
        *concurrency = workers;
        // Idle ones end as well.
        self.queue.wake_consumers();
    }

    fn snapshot(&self) -> StageSnapshot {
        let workers = Tally::default();
        let desks = lock(&self.desks);
        workers.add(&self.former);
        for desk in desks.iter() {
            workers.add(&desk.tally);
        }
        drop(desks);
        self.counters.snapshot(self.name, self.queue.len(), &workers)
    }

    fn take_waiting(&self) -> Vec<StageError<Job, E>> {
        self.queue.take_waiting().into_iter().map(|entry| self.not_started(entry.item)).collect()
    }

    fn close(&self) -> Vec<StageError<Job, E>> {
        self.queue.close().into_iter().map(|entry| self.not_started(entry.item)).collect()
    }

    fn abort_running(&self) -> Vec<StageError<Job, E>> {
        let mut errors = Vec::new();
        for desk in lock(&self.desks).iter() {
            let jobs = std::mem::take(&mut *lock(&desk.jobs));
            if jobs.is_empty() {
                continue;
            }
            self.counters.add_given_back(jobs.len());
            errors.extend(jobs.into_iter().map(|job| StageError::new(self.name, job, Cause::Cancelled)));
            if let Some(worker) = &*lock(&desk.abort) {
                worker.abort();
            }
        }
        errors
    }
}

/// Counts jobs as running until it is dropped, also by a panic or an abort.
struct Running<'a>(&'a Tally, Instant);

impl Running<'_> {
    /// Returns when it ended.
    fn end(self) -> Instant {
        let now = Instant::now();
        self.0.ended(now - self.1);
        std::mem::forget(self);
        now
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended(self.1.elapsed());
    }
}
