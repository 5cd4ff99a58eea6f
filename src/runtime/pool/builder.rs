//! From stages to a pool.

use super::core::{Core, Failures, Member};
use super::error::StageError;
use super::handle::{Outcomes, Pool};
use super::metrics::Counters;
use super::ordered::Keyed;
use super::queue::Queue;
use super::stage::{Outcome, Outlet, Staged, Ticket};
use super::work::{Batched, Blocking, Single, Work};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Outcomes that wait for their reader, if not said otherwise.
const OUTCOMES: usize = 1_024;

/// What is made while the stages are started, the last one first.
pub(super) struct Parts<Job, E> {
    core: Arc<Core<Job, E>>,
    stages: Vec<(Arc<dyn Member<Job, E>>, usize)>,
    intake: Option<Arc<Queue<Ticket<Job, Job>>>>,
}

type Plan<Job, In, E> = Box<dyn FnOnce(&mut Parts<Job, E>, Outlet<Job, In, E>) + Send>;

/// A pool without stages yet. See [`Pool::builder`].
pub struct Builder<Job, E> {
    token: CancellationToken,
    outcomes: usize,
    types: PhantomData<fn(Job) -> E>,
}

/// A pool with stages; settings are those of the last one. `In` is what that takes, `Out` what it makes.
pub struct Chain<Job, In, Out, E> {
    pool: Builder<Job, E>,
    before: Plan<Job, In, E>,
    name: &'static str,
    workers: usize,
    queue: usize,
    timeout: Option<Duration>,
    key: Option<KeyFn<In>>,
    start: Start<Job, In, Out, E>,
}

type KeyFn<In> = Box<dyn Fn(&In) -> u64 + Send + Sync>;
type Start<Job, In, Out, E> = Box<dyn FnOnce(&mut Parts<Job, E>, Spec<Job, In>, Outlet<Job, Out, E>) + Send>;

struct Spec<Job, In> {
    name: &'static str,
    workers: usize,
    timeout: Option<Duration>,
    queue: Arc<Queue<Ticket<Job, In>>>,
    counters: Arc<Counters>,
}

impl<Job, E> Pool<Job, E>
where
    Job: Clone + Send + 'static,
    E: Send + 'static,
{
    /// A pool without stages.
    #[must_use]
    pub fn builder() -> Builder<Job, E> {
        Builder::default()
    }
}

impl<Job, E> Default for Builder<Job, E> {
    fn default() -> Self {
        Self { token: CancellationToken::new(), outcomes: OUTCOMES, types: PhantomData }
    }
}

impl<Job, E> Builder<Job, E>
where
    Job: Clone + Send + 'static,
    E: Send + 'static,
{
    /// The token that [`Pool::cancel`] cancels, for jobs that want to end in an orderly way.
    /// Cancelling the token alone tells the jobs, and doesn't end the pool.
    #[must_use]
    pub fn cancel_token(mut self, token: CancellationToken) -> Self {
        self.token = token;
        self
    }

    /// The first stage: `workers` of it run `work` on one job at a time.
    pub fn stage<Out, F, Fut>(self, name: &'static str, workers: usize, work: F) -> Chain<Job, Job, Out, E>
    where
        Out: Send + 'static,
        F: Fn(Job) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, E>> + Send + 'static,
    {
        self.first(name, workers, Single(work))
    }

    /// The first stage, with a function that blocks. See [`Chain::blocking`].
    pub fn blocking<Out, F>(self, name: &'static str, workers: usize, work: F) -> Chain<Job, Job, Out, E>
    where
        Out: Send + 'static,
        F: Fn(Job) -> Result<Out, E> + Send + Sync + 'static,
    {
        self.first(name, workers, Blocking(Arc::new(work)))
    }

    /// The first stage, with many jobs at a time. See [`Chain::batched`].
    pub fn batched<Out, F, Fut>(
        self,
        name: &'static str,
        workers: usize,
        most: usize,
        work: F,
    ) -> Chain<Job, Job, Out, E>
    where
        Out: Send + 'static,
        F: Fn(Vec<Job>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<Out, E>>> + Send + 'static,
    {
        self.first(name, workers, Batched { most: most.max(1), run: work })
    }

    fn first<Out, W>(self, name: &'static str, workers: usize, work: W) -> Chain<Job, Job, Out, E>
    where
        Out: Send + 'static,
        W: Work<Job, Out, E>,
    {
        let before: Plan<Job, Job, E> = Box::new(|parts, outlet| {
            if let Outlet::Stage(_, queue, _) = outlet {
                parts.intake = Some(queue);
            }
        });
        Chain::new(self, before, name, workers, work)
    }
}

impl<Job, In, Out, E> Chain<Job, In, Out, E>
where
    Job: Clone + Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
    E: Send + 'static,
{
    fn new<W: Work<In, Out, E>>(
        pool: Builder<Job, E>,
        before: Plan<Job, In, E>,
        name: &'static str,
        workers: usize,
        work: W,
    ) -> Self {
        let start: Start<Job, In, Out, E> = Box::new(move |parts, spec, outlet| {
            let Spec { name, workers, timeout, queue, counters } = spec;
            let stage = Staged::new(name, queue, outlet, work, timeout, parts.core.clone(), counters);
            parts.stages.push((stage, workers));
        });
        Self { pool, before, name, workers, queue: workers.max(1), timeout: None, key: None, start }
    }

    /// Maximum number of jobs that wait for the last stage: as many as it has workers if not set, at
    /// least 1. A queue that was full takes jobs again when a quarter of it is free.
    #[must_use]
    pub fn queue(mut self, most: usize) -> Self {
        self.queue = most;
        self
    }

    /// Maximum number of outcomes that wait for their reader: 1,024 if not set, at least 1.
    #[must_use]
    pub fn outcomes(mut self, most: usize) -> Self {
        self.pool.outcomes = most.clamp(1, Semaphore::MAX_PERMITS / 4);
        self
    }

    /// How long the last stage may take for a job (or a batch). No limit if not set.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Jobs with the same key go through the last stage one at a time, in the order of their arrival.
    /// See [the module](super#order) for what that promises, and what a slow key costs.
    #[must_use]
    pub fn ordered_by<K: Hash + 'static>(mut self, key: impl Fn(&In) -> K + Send + Sync + 'static) -> Self {
        let hasher = RandomState::new();
        self.key = Some(Box::new(move |input| hasher.hash_one(key(input))));
        self
    }

    /// Adds a stage that takes the results of the last one: `workers` of it run `work` on one at a time.
    pub fn then<Next, F, Fut>(self, name: &'static str, workers: usize, work: F) -> Chain<Job, Out, Next, E>
    where
        Next: Send + 'static,
        F: Fn(Out) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, E>> + Send + 'static,
    {
        self.next(name, workers, Single(work))
    }

    /// Adds a stage whose function blocks. It runs on tokio's threads for that (512 if the runtime's
    /// builder doesn't say otherwise), at most `workers` at a time. Such a function can't be interrupted: at
    /// a timeout or a cancel its outcome is told, and the thread goes on until the function returns.
    pub fn blocking<Next, F>(self, name: &'static str, workers: usize, work: F) -> Chain<Job, Out, Next, E>
    where
        Next: Send + 'static,
        F: Fn(Out) -> Result<Next, E> + Send + Sync + 'static,
    {
        self.next(name, workers, Blocking(Arc::new(work)))
    }

    /// Adds a stage that does up to `most` jobs at a time: a worker takes those that wait when it is
    /// free, and doesn't wait for more. `work` returns a result for each, in their order; a job without
    /// one counts as panicked.
    pub fn batched<Next, F, Fut>(
        self,
        name: &'static str,
        workers: usize,
        most: usize,
        work: F,
    ) -> Chain<Job, Out, Next, E>
    where
        Next: Send + 'static,
        F: Fn(Vec<Out>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<Next, E>>> + Send + 'static,
    {
        self.next(name, workers, Batched { most: most.max(1), run: work })
    }

    fn next<Next: Send + 'static, W: Work<Out, Next, E>>(
        mut self,
        name: &'static str,
        workers: usize,
        work: W,
    ) -> Chain<Job, Out, Next, E> {
        let pool = std::mem::take(&mut self.pool);
        Chain::new(pool, Box::new(move |parts, outlet| self.start(parts, outlet)), name, workers, work)
    }

    /// Starts the last stage, and with it those before.
    fn start(self, parts: &mut Parts<Job, E>, outlet: Outlet<Job, Out, E>) {
        let key = self.key.map(|key| -> KeyFn<Ticket<Job, In>> { Box::new(move |ticket| key(&ticket.input)) });
        let queue = Arc::new(Queue::new(self.queue.clamp(1, Semaphore::MAX_PERMITS / 4), key));
        let (name, counters) = (self.name, Arc::new(Counters::default()));
        let spec = Spec {
            name,
            workers: self.workers,
            timeout: self.timeout,
            queue: queue.clone(),
            counters: counters.clone(),
        };
        (self.start)(parts, spec, outlet);
        (self.before)(parts, Outlet::Stage(name, queue, counters));
    }

    /// Starts the workers.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn build(mut self) -> (Pool<Job, E>, Outcomes<Job, Out, E>) {
        let Builder { token, outcomes, .. } = std::mem::take(&mut self.pool);
        let outcomes: Arc<Queue<Outcome<Job, Out, E>>> = Arc::new(Queue::new(outcomes, None));
        let core = Arc::new(Core::new(outcomes.clone(), token));
        let mut parts = Parts { core: core.clone(), stages: Vec::new(), intake: None };
        self.start(&mut parts, Outlet::End(outcomes.clone()));
        parts.stages.reverse();
        let stages: Arc<[_]> = parts.stages.iter().map(|(stage, _)| stage.clone()).collect();
        core.set_stages(&stages);
        for (stage, workers) in parts.stages {
            stage.set_concurrency(workers);
        }
        let intake = parts.intake.expect("the first stage of every chain sets it");
        (Pool::new(core, stages, intake), Outcomes::new(outcomes))
    }
}

impl<Job: Send, Out: Send, E: Send> Failures<Job, E> for Queue<Outcome<Job, Out, E>> {
    fn push(&self, error: StageError<Job, E>) -> BoxFuture<'_, ()> {
        // Nobody may be reading any more.
        self.push(Keyed { key: None, item: Err(error) }).map(|_| ()).boxed()
    }

    fn lift_bound(&self) {
        self.lift_bound();
    }

    fn end(&self) {
        self.end();
    }
}

impl<Job, E> fmt::Debug for Builder<Job, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("outcomes", &self.outcomes).finish_non_exhaustive()
    }
}

impl<Job, In, Out, E> fmt::Debug for Chain<Job, In, Out, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("stage", &self.name).field("workers", &self.workers).finish_non_exhaustive()
    }
}
