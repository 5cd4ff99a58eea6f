//! What a pool's owner holds: where jobs go in, and where outcomes come out.

use super::core::{Core, Member};
use super::error::{StageError, SubmitError};
use super::metrics::{PoolCollector, StageSnapshot};
use super::ordered::Keyed;
use super::queue::{Queue, Refused};
use super::stage::{Outcome, Ticket};
use futures_util::Stream;
use futures_util::stream::unfold;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::coop;

/// Bounded workers in chained stages, for jobs of type `Job` that may fail with an `E`. See
/// [the module](super). Clones are the same pool.
pub struct Pool<Job, E>(Arc<Owner<Job, E>>);

/// Closes the pool when its last handle goes.
struct Owner<Job, E> {
    core: Arc<Core<Job, E>>,
    stages: Arc<[Arc<dyn Member<Job, E>>]>,
    intake: Arc<Queue<Ticket<Job, Job>>>,
}

impl<Job, E> Owner<Job, E> {
    fn close(&self) {
        self.core.close();
        self.intake.close_intake();
    }
}

impl<Job, E> Drop for Owner<Job, E> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<Job, E> Pool<Job, E>
where
    Job: Clone + Send + 'static,
    E: Send + 'static,
{
    pub(super) fn new(
        core: Arc<Core<Job, E>>,
        stages: Arc<[Arc<dyn Member<Job, E>>]>,
        intake: Arc<Queue<Ticket<Job, Job>>>,
    ) -> Self {
        Self(Arc::new(Owner { core, stages, intake }))
    }

    /// Submits a job; waits while the first queue is full. A job whose future is dropped before it is
    /// ready was not taken.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Closed`] with the job, if the pool takes no more.
    pub async fn submit(&self, job: Job) -> Result<(), SubmitError<Job>> {
        // A submitter that always finds room must not keep its thread.
        coop::consume_budget().await;
        let mut entry = self.entry(job);
        loop {
            match self.put(entry) {
                Err(Refused::Full(back)) => entry = back,
                Err(Refused::Closed(back)) => return Err(SubmitError::Closed(back.item.job)),
                Ok(()) => return Ok(()),
            }
            self.0.intake.wait_for_room().await;
        }
    }

    /// Submits a job if there is room.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] with the job.
    pub fn try_submit(&self, job: Job) -> Result<(), SubmitError<Job>> {
        if self.0.intake.is_full() {
            return Err(SubmitError::Full(job));
        }
        self.put(self.entry(job)).map_err(|refused| match refused {
            Refused::Full(back) => SubmitError::Full(back.item.job),
            Refused::Closed(back) => SubmitError::Closed(back.item.job),
        })
    }

    fn entry(&self, job: Job) -> Keyed<Ticket<Job, Job>> {
        let ticket = Ticket { input: job.clone(), job };
        Keyed { key: self.0.intake.key_of(&ticket), item: ticket }
    }

    fn put(&self, entry: Keyed<Ticket<Job, Job>>) -> Result<(), Refused<Ticket<Job, Job>>> {
        if !self.0.core.admit() {
            return Err(Refused::Closed(entry));
        }
        self.0.intake.try_push(entry).inspect_err(|_| self.0.core.settle(1))
    }

    /// Takes no more jobs. Those that were taken go on; [`Outcomes`] ends after the last one.
    pub fn close(&self) {
        self.0.close();
    }

    /// Waits until every job has its outcome, after an end was begun.
    pub async fn finished(&self) {
        self.0.core.finished().await;
    }

    /// Takes no more jobs, and waits until all are done. Somebody must read the [`Outcomes`] meanwhile,
    /// or have dropped them: there is room for a limited number.
    pub async fn drain(&self) {
        self.close();
        self.finished().await;
    }

    /// Takes no more jobs, and gives back at once those that no worker has begun
    /// ([`NotStarted`](super::Cause::NotStarted)). The others go through all stages;
    /// [`finished`](Self::finished) waits for them.
    pub fn stop(&self) -> Vec<StageError<Job, E>> {
        self.close();
        let waiting = self.0.stages.first().map(|stage| stage.take_waiting()).unwrap_or_default();
        self.0.core.settle(waiting.len());
        waiting
    }

    /// Ends the pool: takes no more jobs, begins none, and cancels the jobs' token
    /// ([`Builder::cancel_token`](super::Builder::cancel_token)). Jobs that end within `grace` have their usual outcome, the others are
    /// aborted. Returns everything undone once each job has its outcome.
    ///
    /// Results go to the [`Outcomes`], whose bound is lifted for them: at most one for each job under
    /// way. If this future is dropped, another call goes on with it; of two calls at the same time each
    /// returns a part.
    pub async fn cancel(&self, grace: Duration) -> Vec<StageError<Job, E>> {
        let core = &self.0.core;
        self.close();
        core.token.cancel();
        core.failures.lift_bound();
        for stage in core.stages() {
            core.give_back(stage.close());
        }
        if !grace.is_zero() && !core.is_finished() {
            tokio::time::timeout(grace, core.finished()).await.ok();
        }
        core.set_aborting();
        for stage in core.stages() {
            core.give_back(stage.abort_running());
        }
        // What is neither on a desk nor in a queue is on its way to one of them, and waits for nothing.
        core.finished().await;
        core.take_given_back()
    }

    /// Jobs that were taken and have no outcome yet.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.core.open()
    }

    /// Whether the pool takes jobs no more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.core.is_closed()
    }

    /// The stage of this name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<Stage<Job, E>> {
        let stage = self.0.stages.iter().find(|stage| stage.name() == name)?;
        Some(Stage(stage.clone()))
    }

    /// What the stages have done so far, in their order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<StageSnapshot> {
        self.0.stages.iter().map(|stage| stage.snapshot()).collect()
    }

    /// The pool's metrics, for a `prometheus_client` registry. `pool` is the value of their label.
    #[must_use]
    pub fn collector(&self, pool: &'static str) -> PoolCollector {
        let stages = self.0.stages.clone();
        PoolCollector::new(pool, move || stages.iter().map(|stage| stage.snapshot()).collect())
    }
}

impl<Job, E> Clone for Pool<Job, E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Job, E> fmt::Debug for Pool<Job, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.0.stages.iter().map(|stage| stage.snapshot()).collect();
        f.debug_struct("Pool").field("open", &self.0.core.open()).field("stages", &stages).finish()
    }
}

/// One stage of a running pool.
pub struct Stage<Job, E>(Arc<dyn Member<Job, E>>);

impl<Job, E> Clone for Stage<Job, E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Job, E> Stage<Job, E> {
    /// Changes the number of workers: at least 1, at most 100,000. Of a lower number, workers that are
    /// busy end with their job.
    pub fn set_concurrency(&self, workers: usize) {
        self.0.clone().set_concurrency(workers);
    }

    /// The number of workers.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.0.concurrency()
    }

    /// What the stage has done so far.
    #[must_use]
    pub fn snapshot(&self) -> StageSnapshot {
        self.0.snapshot()
    }
}

impl<Job, E> fmt::Debug for Stage<Job, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.snapshot().fmt(f)
    }
}

/// The outcomes of a pool's jobs, in the order in which they end. When they are dropped, outcomes are
/// discarded.
pub struct Outcomes<Job, Out, E> {
    queue: Arc<Queue<Outcome<Job, Out, E>>>,
    /// The next one, between two waits.
    taken: Vec<Keyed<Outcome<Job, Out, E>>>,
}

impl<Job, Out, E> Outcomes<Job, Out, E> {
    pub(super) fn new(queue: Arc<Queue<Outcome<Job, Out, E>>>) -> Self {
        Self { queue, taken: Vec::new() }
    }

    /// The next outcome; `None` when the pool has finished. Loses nothing if the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Out, StageError<Job, E>>> {
        coop::consume_budget().await;
        self.queue.pop(1, &mut self.taken).await;
        self.taken.pop().map(|entry| entry.item)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Out, StageError<Job, E>>> {
        unfold(self, |mut outcomes| async move { outcomes.next().await.map(|outcome| (outcome, outcomes)) })
    }
}

impl<Job, Out, E> Drop for Outcomes<Job, Out, E> {
    fn drop(&mut self) {
        drop(self.queue.close());
    }
}

impl<Job, Out, E> fmt::Debug for Outcomes<Job, Out, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcomes").field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}
