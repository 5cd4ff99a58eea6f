//! What the stages of a pool share: how many jobs are under way, and how the pool ends.

use super::error::StageError;
use super::metrics::StageSnapshot;
use super::queue::lock;
use futures_util::future::BoxFuture;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Where jobs without a result go: the outcomes, without the type of the results.
pub(super) trait Failures<Job, E>: Send + Sync {
    /// Waits for room.
    fn push(&self, error: StageError<Job, E>) -> BoxFuture<'_, ()>;
    /// Makes room for everything.
    fn lift_bound(&self);
    /// Nothing more comes.
    fn end(&self);
}

/// A stage, without the types of its input and output.
pub(super) trait Member<Job, E>: Send + Sync {
    fn name(&self) -> &'static str;
    fn concurrency(&self) -> usize;
    fn set_concurrency(self: Arc<Self>, workers: usize);
    fn snapshot(&self) -> StageSnapshot;
    /// Takes what no worker has begun. The stage goes on.
    fn take_waiting(&self) -> Vec<StageError<Job, E>>;
    /// Takes what no worker has begun, and begins no more. Idle workers end.
    fn close(&self) -> Vec<StageError<Job, E>>;
    /// Takes what runs, and aborts it.
    fn abort_running(&self) -> Vec<StageError<Job, E>>;
}

pub(super) struct Core<Job, E> {
    /// Jobs that were taken and have no outcome yet.
    open: AtomicUsize,
    is_closed: AtomicBool,
    is_aborting: AtomicBool,
    finished: CancellationToken,
    pub(super) token: CancellationToken,
    pub(super) failures: Arc<dyn Failures<Job, E>>,
    /// What a cancelled pool gives back.
    given_back: Mutex<Vec<StageError<Job, E>>>,
    /// Weak, since each stage holds this. Its workers keep it until the pool has finished.
    stages: OnceLock<Vec<Weak<dyn Member<Job, E>>>>,
    pub(super) runtime: Handle,
}

impl<Job, E> Core<Job, E> {
    pub(super) fn new(failures: Arc<dyn Failures<Job, E>>, token: CancellationToken) -> Self {
        Self {
            open: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            is_aborting: AtomicBool::new(false),
            finished: CancellationToken::new(),
            token,
            failures,
            given_back: Mutex::new(Vec::new()),
            stages: OnceLock::new(),
            runtime: Handle::current(),
        }
    }

    /// Names the stages, once, before the first job.
    pub(super) fn set_stages(&self, stages: &[Arc<dyn Member<Job, E>>]) {
        self.stages.get_or_init(|| stages.iter().map(Arc::downgrade).collect());
    }

    pub(super) fn stages(&self) -> impl Iterator<Item = Arc<dyn Member<Job, E>>> {
        self.stages.get().into_iter().flatten().filter_map(Weak::upgrade)
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(SeqCst)
    }

    /// Counts a job in. Returns false if the pool is closed.
    pub(super) fn admit(&self) -> bool {
        self.open.fetch_add(1, SeqCst);
        // Looked at after counting: a pool that closes in between finds the job counted, and waits.
        if self.is_closed() {
            self.settle(1);
            return false;
        }
        true
    }

    /// Counts jobs that have their outcome.
    pub(super) fn settle(&self, jobs: usize) {
        if jobs > 0 && self.open.fetch_sub(jobs, SeqCst) == jobs && self.is_closed() {
            self.finish();
        }
    }

    /// Takes no more jobs.
    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        if self.open() == 0 {
            self.finish();
        }
    }

    /// Every job has its outcome, and none comes.
    fn finish(&self) {
        for stage in self.stages() {
            stage.close();
        }
        self.failures.end();
        self.finished.cancel();
    }

    pub(super) async fn finished(&self) {
        self.finished.cancelled().await;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.is_cancelled()
    }

    /// From here on no worker begins a job, and what runs is taken from it.
    pub(super) fn set_aborting(&self) {
        self.is_aborting.store(true, SeqCst);
    }

    pub(super) fn is_aborting(&self) -> bool {
        self.is_aborting.load(SeqCst)
    }

    /// Keeps jobs for the caller that cancels the pool. That is their outcome.
    pub(super) fn give_back(&self, errors: Vec<StageError<Job, E>>) {
        let jobs = errors.len();
        lock(&self.given_back).extend(errors);
        self.settle(jobs);
    }

    pub(super) fn take_given_back(&self) -> Vec<StageError<Job, E>> {
        std::mem::take(&mut lock(&self.given_back))
    }

    /// Tells the reader of the outcomes that a job has no result.
    pub(super) async fn fail(&self, error: StageError<Job, E>) {
        self.failures.push(error).await;
        self.settle(1);
    }
}
