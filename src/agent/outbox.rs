//! What the runner has to tell the server: runner → connection.
//!
//! No channel, because the runner must never wait for a connection that may be gone for hours, and because a channel
//! of results would hold their outputs in memory. The outbox holds names only; outputs are read from the journal when
//! their frame is written. It is bounded by what the journal holds.

use super::journal::{Journal, JournalError};
use crate::domain::protocol::{RunRef, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// Why the connection has to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The journal can't be written: nothing may be acknowledged.
    Journal(String),
    /// The server delivers more than the agent said it takes.
    TooMany,
}

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Safe in the journal.
    pub(super) received: BTreeSet<RunRef>,
    /// Their results are.
    pub(super) results: BTreeSet<RunRef>,
    /// Had expired when they came, so that the journal knows nothing of them. An answer that gets lost is given again when
    /// they come again.
    pub(super) expired: BTreeSet<RunRef>,
    /// Close the connection.
    pub(super) fault: Option<Fault>,
}

/// The answer to a command that had expired when it came.
pub(super) fn expired(RunRef { action, run }: RunRef) -> RunResult {
    let (status, results) = (RunStatus::Expired, Vec::new());
    RunResult { action, run, status, results, started_at: None, finished_at: Some(Timestamp::of_this_machine()) }
}

/// What waits to be told, shared by the runner and the connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pending: Mutex<Pending>,
    news: Notify,
}

impl Outbox {
    /// Puts something in and wakes the connection.
    pub(super) fn post(&self, put: impl FnOnce(&mut Pending)) {
        put(&mut self.open());
        self.news.notify_one();
    }

    /// Looks in, takes out.
    pub(super) fn open(&self) -> MutexGuard<'_, Pending> {
        // Nothing that is done with the pending can panic half-way.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something was put in.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}

/// The server's clock, as far as the agent knows it: what a server said the time was, carried on by this machine's clock
/// of the time since it booted. The wall clock has no part in it: it may be days off when the agent starts, and may be
/// stepped at any moment. (`CLOCK_MONOTONIC` would stand still while the machine sleeps, and commands expire meanwhile.)
pub(super) struct ServerClock {
    /// How many milliseconds the server's clock is ahead of `since_boot`; `None` until a server said what time it is.
    ahead_ms: watch::Sender<Option<i64>>,
    since_boot: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self::over(millis_since_boot)
    }
}

impl std::fmt::Debug for ServerClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServerClock").field(&self.now()).finish()
    }
}

impl ServerClock {
    /// One over a clock that counts milliseconds and is never set.
    pub(super) fn over(since_boot: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { ahead_ms: watch::Sender::new(None), since_boot: Box::new(since_boot) }
    }

    /// Takes what a server says the time is.
    pub(super) fn set(&self, server: Timestamp) {
        self.ahead_ms.send_replace(Some(server.0.saturating_sub((self.since_boot)())));
    }

    /// What the server's clock says now; `None` until a server said so to this process.
    pub(super) fn now(&self) -> Option<Timestamp> {
        let ahead_ms = *self.ahead_ms.borrow();
        ahead_ms.map(|ahead_ms| Timestamp((self.since_boot)().saturating_add(ahead_ms)))
    }

    /// Waits until a server has said what time it is.
    pub(super) async fn known(&self) {
        // It can't end without: the sender is this clock's own.
        let _ = self.ahead_ms.subscribe().wait_for(Option::is_some).await;
    }
}

/// Milliseconds since this machine booted, those that it slept included.
fn millis_since_boot() -> i64 {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    // Elsewhere it counts sleep, too (macOS), or there is nothing better.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
    let time =
        clock_gettime(CLOCK).expect("every system that the agent runs on has this clock, and anybody may read it");
    time.num_milliseconds()
}

/// The journal, whose calls block, for async callers.
#[derive(Clone, Debug)]
pub(super) struct SharedJournal(Arc<Mutex<Journal>>);

impl SharedJournal {
    pub(super) fn new(journal: Journal) -> Self {
        Self(Arc::new(Mutex::new(journal)))
    }

    /// Looks at the index. Doesn't touch the file, but waits while somebody else does.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&self.lock())
    }

    /// Does something with the file, on a thread that may block.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let journal = self.clone();
        tokio::task::spawn_blocking(move || act(&mut journal.lock())).await.unwrap_or(Err(JournalError::ShuttingDown))
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        // The journal counts a record only after it is written, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[tokio::test]
    async fn the_clock_goes_on_from_what_the_server_said_last() {
        let boot = Arc::new(AtomicI64::new(5_000));
        let read = boot.clone();
        let clock = Arc::new(ServerClock::over(move || read.load(Ordering::SeqCst)));
        assert_eq!(clock.now(), None);
        let waits = tokio::spawn({
            let clock = clock.clone();
            async move { clock.known().await }
        });
        clock.set(Timestamp(1_000_000));
        waits.await.expect("no panic");
        assert_eq!(clock.now(), Some(Timestamp(1_000_000)));
        boot.store(6_500, Ordering::SeqCst);
        assert_eq!(clock.now(), Some(Timestamp(1_001_500)));
        clock.set(Timestamp(2_000));
        assert_eq!(clock.now(), Some(Timestamp(2_000)), "the server's clock may be set, too");
    }

    #[test]
    fn this_machine_says_how_long_ago_it_booted() {
        let before = millis_since_boot();
        assert!(before > 0 && millis_since_boot() >= before);
    }
}
