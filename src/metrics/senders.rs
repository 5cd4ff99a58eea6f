//! What `/readyz` and `/metrics` show of each sender.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use utoipa::ToSchema;

/// Values of a connection; 0 if the sender keeps none.
const CONNECTED: u8 = 1;
const DISCONNECTED: u8 = 2;

/// The numbers of one sender. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct SenderStatus(Arc<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    waiting: AtomicUsize,
    running: AtomicUsize,
    away: AtomicUsize,
    /// Of senders that keep a connection: one of the constants above.
    connection: AtomicU8,
    delivered: AtomicU64,
    attempts_failed: AtomicU64,
    refused: AtomicU64,
    panicked: AtomicU64,
    recorded: AtomicU64,
}

/// A sender as `/readyz` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SenderReport {
    /// The transport.
    pub transport: &'static str,
    /// `ok`, or `away`: the broker, the mail server, or one of the hosts can't be reached.
    pub state: &'static str,
    /// Hosts or brokers that can't be reached at the moment.
    pub hosts_away: usize,
    /// Commands that wait in this sender.
    pub waiting: usize,
    /// Deliveries under way.
    pub in_flight: usize,
}

/// How a delivery went, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryResult {
    /// The receiver has it.
    Delivered,
    /// The attempt failed.
    AttemptFailed,
    /// The receiver refuses it, or ran it without success.
    Refused,
    /// The sender's code panicked.
    Panicked,
}

impl SenderStatus {
    /// Sets how many commands wait, how many are being delivered, and how many hosts are away.
    pub fn set(&self, waiting: usize, in_flight: usize, hosts_away: usize) {
        self.0.waiting.store(waiting, Ordering::Relaxed);
        self.0.running.store(in_flight, Ordering::Relaxed);
        self.0.away.store(hosts_away, Ordering::Relaxed);
    }

    /// Sets whether the broker is connected, for senders that keep a connection.
    pub fn set_connected(&self, is_connected: bool) {
        self.0.connection.store(if is_connected { CONNECTED } else { DISCONNECTED }, Ordering::Relaxed);
    }

    /// Counts a delivery.
    pub fn count(&self, result: DeliveryResult) {
        let counter = match result {
            DeliveryResult::Delivered => &self.0.delivered,
            DeliveryResult::AttemptFailed => &self.0.attempts_failed,
            DeliveryResult::Refused => &self.0.refused,
            DeliveryResult::Panicked => &self.0.panicked,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// `reports` reports are being recorded.
    pub fn records(&self, reports: usize) {
        self.0.recorded.fetch_add(reports as u64, Ordering::Relaxed);
    }

    /// Reports about commands so far.
    pub fn recorded(&self) -> u64 {
        self.0.recorded.load(Ordering::Relaxed)
    }

    /// The deliveries so far, by result.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("delivered", of(&self.0.delivered)),
            ("attempt_failed", of(&self.0.attempts_failed)),
            ("refused", of(&self.0.refused)),
            ("panicked", of(&self.0.panicked)),
        ]
    }

    /// The sender as `/readyz` shows it.
    pub fn report(&self, transport: &'static str) -> SenderReport {
        let of = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        let (waiting, in_flight, hosts_away) = (of(&self.0.waiting), of(&self.0.running), of(&self.0.away));
        let (is_away, hosts_away) = match self.0.connection.load(Ordering::Relaxed) {
            // The breaker stays open until something is delivered, and that may be long after.
            CONNECTED => (false, 0),
            // It is away whether there is anything to deliver or not.
            DISCONNECTED => (true, 1),
            _ => (hosts_away > 0, hosts_away),
        };
        let state = if is_away { "away" } else { "ok" };
        SenderReport { transport, state, hosts_away, waiting, in_flight }
    }
}

/// All senders of this process, by transport. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Senders(Arc<Mutex<BTreeMap<&'static str, SenderStatus>>>);

impl Senders {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, SenderStatus>> {
        // The map is consistent after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sender of a transport.
    pub fn of(&self, transport: &'static str) -> SenderStatus {
        self.lock().entry(transport).or_default().clone()
    }

    /// All senders with their counts.
    pub fn all(&self) -> Vec<(&'static str, SenderStatus)> {
        self.lock().iter().map(|(transport, status)| (*transport, status.clone())).collect()
    }

    /// All senders as `/readyz` shows them.
    pub fn reports(&self) -> Vec<SenderReport> {
        self.lock().iter().map(|(transport, status)| status.report(transport)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_away_while_a_host_is() {
        let senders = Senders::default();
        let status = senders.of("nats");
        for (in_flight, hosts_away, state) in [(0, 0, "ok"), (3, 0, "ok"), (3, 1, "away")] {
            status.set(7, in_flight, hosts_away);
            let report = SenderReport { transport: "nats", state, hosts_away, waiting: 7, in_flight };
            assert_eq!(senders.reports(), [report]);
        }
        for (is_connected, state, hosts_away) in [(false, "away", 1), (true, "ok", 0)] {
            status.set_connected(is_connected);
            let report = &senders.reports()[0];
            assert_eq!((report.state, report.hosts_away), (state, hosts_away));
        }
        status.count(DeliveryResult::Refused);
        assert_eq!(senders.of("nats").counts()[2], ("refused", 1), "the same sender");
    }
}
