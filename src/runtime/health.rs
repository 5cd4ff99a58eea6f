//! The states of the supervised actors, with restarts and causes, shown at `/readyz`.

use crate::config::Supervision as SupervisionConfig;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use utoipa::ToSchema;

/// All supervised actors of a process, and the escalation when restarts don't help. Clones share
/// their state.
#[derive(Clone, Debug)]
pub struct Supervision {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: SupervisionConfig,
    actors: Mutex<Vec<Arc<ActorHealth>>>,
    draining: AtomicBool,
    escalated: watch::Sender<Option<&'static str>>,
}

/// One actor's record.
#[derive(Debug)]
pub struct ActorHealth {
    name: &'static str,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    state: &'static str,
    restarts: u64,
    last_cause: Option<String>,
    recent: VecDeque<Instant>,
}

/// An actor's state.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ActorReport {
    /// The actor's name.
    pub name: &'static str,
    /// `running`, `restarting` or `stopped`.
    pub state: String,
    /// Restarts since the process started.
    pub restarts: u64,
    /// The cause of its last crash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_cause: Option<String>,
}

/// The data are counters and words, consistent after every step, so a poisoned lock is harmless.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervision {
    /// A supervision with this restart budget.
    pub fn new(limits: SupervisionConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                limits,
                actors: Mutex::default(),
                draining: AtomicBool::new(false),
                escalated: watch::Sender::new(None),
            }),
        }
    }

    /// The restart budget and backoff.
    pub fn limits(&self) -> &SupervisionConfig {
        &self.inner.limits
    }

    pub(super) fn register(&self, name: &'static str) -> Arc<ActorHealth> {
        let record = Record { state: "running", restarts: 0, last_cause: None, recent: VecDeque::new() };
        let health = Arc::new(ActorHealth { name, record: Mutex::new(record) });
        lock(&self.inner.actors).push(health.clone());
        health
    }

    /// Reports that restarts don't keep `actor` alive.
    pub(super) fn escalate(&self, actor: &'static str) {
        self.inner.escalated.send_if_modified(|escalated| {
            let first = escalated.is_none();
            escalated.get_or_insert(actor);
            first
        });
    }

    /// Waits until an actor has crashed too often, and returns its name.
    pub async fn escalated(&self) -> &'static str {
        let mut watch = self.inner.escalated.subscribe();
        loop {
            if let Some(actor) = *watch.borrow_and_update() {
                return actor;
            }
            if watch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// From now on, actors that stop are not restarted.
    pub fn set_draining(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the process is draining.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    /// Every actor's state, in the order in which the actors were started.
    pub fn reports(&self) -> Vec<ActorReport> {
        lock(&self.inner.actors).iter().map(|actor| actor.report()).collect()
    }
}

impl ActorHealth {
    /// Counts a crash and returns the number of crashes `within` this time.
    pub(super) fn crashed(&self, cause: &str, within: Duration) -> usize {
        let mut record = lock(&self.record);
        record.state = "restarting";
        record.restarts += 1;
        record.last_cause = Some(cause.chars().take(500).collect());
        let now = Instant::now();
        while record.recent.front().is_some_and(|time| now.duration_since(*time) > within) {
            record.recent.pop_front();
        }
        record.recent.push_back(now);
        record.recent.len()
    }

    pub(super) fn set_running(&self) {
        lock(&self.record).state = "running";
    }

    pub(super) fn set_stopped(&self) {
        lock(&self.record).state = "stopped";
    }

    fn report(&self) -> ActorReport {
        let record = lock(&self.record);
        ActorReport {
            name: self.name,
            state: record.state.into(),
            restarts: record.restarts,
            last_cause: record.last_cause.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervision() -> Supervision {
        Supervision::new(SupervisionConfig::default())
    }

    #[test]
    fn actors_are_reported_with_their_states_in_the_order_of_their_start() {
        let supervision = supervision();
        let (one, two) = (supervision.register("one"), supervision.register("two"));
        let minute = Duration::from_secs(60);
        assert_eq!((one.crashed("first", minute), one.crashed(&"x".repeat(900), minute)), (1, 2));
        two.set_stopped();
        let reports = supervision.clone().reports();
        let states: Vec<_> = reports.iter().map(|actor| (actor.name, actor.state.as_str(), actor.restarts)).collect();
        assert_eq!(states, [("one", "restarting", 2), ("two", "stopped", 0)]);
        assert_eq!(reports[0].last_cause.as_ref().map(String::len), Some(500), "errors may quote what was written");
        one.set_running();
        assert_eq!(supervision.reports()[0].state, "running");
    }

    #[test]
    fn crashes_of_long_ago_do_not_count() {
        let health = supervision().register("one");
        assert_eq!(health.crashed("a", Duration::from_secs(60)), 1);
        let before = Instant::now();
        while before.elapsed() < Duration::from_millis(2) {}
        assert_eq!(health.crashed("b", Duration::from_millis(1)), 1);
        assert_eq!(health.report().restarts, 2, "they are shown all the same");
    }

    #[tokio::test]
    async fn the_first_actor_that_escalates_is_named_to_all_that_wait() {
        let supervision = supervision();
        let waits = supervision.clone();
        let waiting = tokio::spawn(async move { waits.escalated().await });
        tokio::task::yield_now().await;
        supervision.escalate("first");
        supervision.escalate("second");
        assert_eq!(waiting.await.expect("it has not panicked"), "first");
        assert_eq!(supervision.escalated().await, "first", "also to one that asks later");
    }

    #[test]
    fn draining_is_shared() {
        let supervision = supervision();
        let seen = supervision.clone();
        assert!(!seen.is_draining());
        supervision.set_draining();
        assert!(seen.is_draining());
    }
}
