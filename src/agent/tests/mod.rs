//! Helpers for the tests of the agent's parts.

#[cfg(any(feature = "nats", feature = "amqp"))]
mod broker;
mod connection;
mod runner;
mod server;

use super::modules::{Call, Module, Outcome};
use crate::domain::protocol::{Command, Operations, RunRef};
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Waits for an event that must come soon. A hanging test shows where.
#[track_caller]
fn soon<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(Duration::from_secs(240), what).await {
            Ok(it) => it,
            Err(_) => panic!("waited in vain at {place}"),
        }
    }
}

fn run_ref(n: u128) -> RunRef {
    RunRef { action: Uuid::from_u128(n), run: 1 }
}

/// A command for the [`Gate`], named by its number.
fn command(n: u128) -> Command {
    with_operations(n, &format!(r#"[{{"module":"gate","parameters":"{n}"}}]"#))
}

fn with_operations(n: u128, operations: &str) -> Command {
    Command {
        action: Uuid::from_u128(n),
        run: 1,
        attempt: 1,
        name: format!("action {n}"),
        operations: Operations::from_json(operations.into()).expect("valid JSON"),
        priority: 0,
        timeout_ms: 600_000,
        expires_at: Timestamp::of_this_machine().plus(Duration::from_secs(3_600)),
        scheduled_for: None,
    }
}

/// A run that waits at the gate.
struct AtGate {
    name: String,
    open: oneshot::Sender<bool>,
}

impl AtGate {
    /// Ends the run, successfully or not.
    fn end(self, ok: bool) {
        self.open.send(ok).expect("the run waits");
    }
}

/// A module whose calls end when the test says so.
struct Gate {
    arrivals: mpsc::UnboundedSender<AtGate>,
    inside: AtomicUsize,
    most: Arc<AtomicUsize>,
}

impl Gate {
    /// The module, the runs that wait at it, and the most that ever waited at the same time.
    fn new() -> (Self, mpsc::UnboundedReceiver<AtGate>, Arc<AtomicUsize>) {
        let (arrivals, at_gate) = mpsc::unbounded_channel();
        let most = Arc::new(AtomicUsize::new(0));
        (Self { arrivals, inside: AtomicUsize::new(0), most: most.clone() }, at_gate, most)
    }
}

#[async_trait]
impl Module for Gate {
    async fn call(&self, mut call: Call) -> Outcome {
        let parameters = call.parameters.expect("a name");
        let name: String = serde_json::from_str(parameters.get()).expect("a string");
        assert_ne!(name, "panic", "as the test wants it");
        let (open, opened) = oneshot::channel();
        self.most.fetch_max(self.inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let _ = self.arrivals.send(AtGate { name, open });
        let outcome = tokio::select! {
            reason = call.stop.wait() => Outcome::stopped(reason),
            Ok(ok) = opened => if ok { Outcome::done(Some(parameters)) } else { Outcome::failed("not well") },
        };
        self.inside.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}
