//! What the stages of a pool count.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What a stage has done so far. The numbers are read one after the other, while jobs go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageSnapshot {
    /// The stage's name.
    pub stage: &'static str,
    /// Jobs in the queue before the stage.
    pub waiting: usize,
    /// Jobs that run.
    pub running: usize,
    /// Jobs with a result.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that panicked.
    pub panicked: u64,
    /// Jobs that took longer than the stage's timeout.
    pub timed_out: u64,
    /// Jobs that were given back by a stop or a cancel.
    pub given_back: u64,
    /// Time for which workers were busy, of all workers together.
    pub busy: Duration,
}

/// What is rare, counted for the stage.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) failed: AtomicU64,
    pub(super) panicked: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) given_back: AtomicU64,
}

impl Counters {
    pub(super) fn add_given_back(&self, jobs: usize) {
        self.given_back.fetch_add(jobs as u64, Relaxed);
    }

    /// With the tallies of all workers.
    pub(super) fn snapshot(&self, stage: &'static str, waiting: usize, workers: &Tally) -> StageSnapshot {
        StageSnapshot {
            stage,
            waiting,
            running: workers.running.load(Relaxed),
            done: workers.done.load(Relaxed),
            failed: self.failed.load(Relaxed),
            panicked: self.panicked.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            given_back: self.given_back.load(Relaxed),
            busy: Duration::from_nanos(workers.busy_nanos.load(Relaxed)),
        }
    }
}

/// What one worker counts for each job. On cache lines of its own, since nobody else writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    running: AtomicUsize,
    done: AtomicU64,
    busy_nanos: AtomicU64,
}

impl Tally {
    pub(super) fn begun(&self, jobs: usize) {
        self.running.store(jobs, Relaxed);
    }

    pub(super) fn ended(&self, busy: Duration) {
        self.running.store(0, Relaxed);
        let nanos = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.busy_nanos.store(self.busy_nanos.load(Relaxed).saturating_add(nanos), Relaxed);
    }

    pub(super) fn done(&self) {
        self.done.store(self.done.load(Relaxed) + 1, Relaxed);
    }

    /// Adds what another one has counted.
    pub(super) fn add(&self, other: &Self) {
        self.running.fetch_add(other.running.load(Relaxed), Relaxed);
        self.done.fetch_add(other.done.load(Relaxed), Relaxed);
        self.busy_nanos.fetch_add(other.busy_nanos.load(Relaxed), Relaxed);
    }
}

/// The metrics of a pool's stages, for a `prometheus_client` registry:
/// `registry.register_collector(Box::new(pool.collector("assets")))`.
///
/// | name | labels | is |
/// |---|---|---|
/// | `pool_waiting` | `pool`, `stage` | jobs in the queue before the stage |
/// | `pool_running` | `pool`, `stage` | jobs that run |
/// | `pool_jobs_total` | `pool`, `stage`, `outcome` | ended jobs: `done`, `failed`, `panicked`, `timed_out`, `given_back` |
/// | `pool_busy_seconds_total` | `pool`, `stage` | time for which workers were busy |
pub struct PoolCollector {
    pool: &'static str,
    snapshots: Box<dyn Fn() -> Vec<StageSnapshot> + Send + Sync>,
}

impl PoolCollector {
    pub(super) fn new(pool: &'static str, snapshots: impl Fn() -> Vec<StageSnapshot> + Send + Sync + 'static) -> Self {
        Self { pool, snapshots: Box::new(snapshots) }
    }
}

impl fmt::Debug for PoolCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolCollector").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Collector for PoolCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = (self.snapshots)();
        let label = |stage: &StageSnapshot| [("pool", self.pool), ("stage", stage.stage)];
        let waiting = ConstGauge::new(0i64);
        let mut family = encoder.encode_descriptor(
            "pool_waiting",
            "Jobs in the queue before a stage",
            None,
            waiting.metric_type(),
        )?;
        for stage in &all {
            ConstGauge::new(stage.waiting as i64).encode(family.encode_family(&label(stage))?)?;
        }
        let mut family = encoder.encode_descriptor("pool_running", "Jobs that run", None, waiting.metric_type())?;
        for stage in &all {
            ConstGauge::new(stage.running as i64).encode(family.encode_family(&label(stage))?)?;
        }
        let counter = ConstCounter::new(0u64);
        let mut family =
            encoder.encode_descriptor("pool_jobs", "Jobs by how they ended at a stage", None, counter.metric_type())?;
        for stage in &all {
            let outcomes = [
                ("done", stage.done),
                ("failed", stage.failed),
                ("panicked", stage.panicked),
                ("timed_out", stage.timed_out),
                ("given_back", stage.given_back),
            ];
            for (outcome, jobs) in outcomes {
                let labels = [("pool", self.pool), ("stage", stage.stage), ("outcome", outcome)];
                ConstCounter::new(jobs).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Time for which workers were busy";
        let mut family = encoder.encode_descriptor("pool_busy", help, Some(&Unit::Seconds), counter.metric_type())?;
        for stage in &all {
            ConstCounter::new(stage.busy.as_secs_f64()).encode(family.encode_family(&label(stage))?)?;
        }
        Ok(())
    }
}
