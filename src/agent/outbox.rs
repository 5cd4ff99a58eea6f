//! What the runner has to tell the server: runner → connection.
//!
//! No channel, because the runner must never wait for a connection that may be gone for hours, and because a channel
//! of results would hold their outputs in memory. The outbox holds names only; outputs are read from the journal when
//! their frame is written. It is bounded by what the journal holds.

use super::journal::{Journal, JournalError};
use crate::domain::protocol::RunRef;
use crate::domain::time::Timestamp;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Why the connection has to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The journal can't be written: nothing may be acknowledged.
    Journal(String),
    /// The server hands over more than the agent said it takes.
    TooMany,
}

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// Safe in the journal.
    pub(super) received: BTreeSet<RunRef>,
    /// Their results are.
    pub(super) results: BTreeSet<RunRef>,
    /// Close the connection.
    pub(super) fault: Option<Fault>,
}

/// What waits to be told, shared by the runner and the connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    letters: Mutex<Letters>,
    news: Notify,
}

impl Outbox {
    /// Puts something in and wakes the connection.
    pub(super) fn post(&self, put: impl FnOnce(&mut Letters)) {
        put(&mut self.open());
        self.news.notify_one();
    }

    /// Looks in, takes out.
    pub(super) fn open(&self) -> MutexGuard<'_, Letters> {
        // Nothing that is done with the letters can panic half-way.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something was put in.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}

/// The server's clock, as far as the agent knows it.
#[derive(Debug, Default)]
pub(super) struct ServerClock(AtomicI64);

impl ServerClock {
    /// How many milliseconds the server's clock is ahead of this machine's.
    pub(super) fn ahead_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set_ahead_ms(&self, millis: i64) {
        self.0.store(millis, Ordering::Relaxed);
    }

    /// Takes what the server says the time is.
    pub(super) fn set(&self, server: Timestamp) {
        self.set_ahead_ms(server.0.saturating_sub(Timestamp::of_this_machine().0));
    }

    /// What the server's clock says now.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp(Timestamp::of_this_machine().0.saturating_add(self.ahead_ms()))
    }
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
