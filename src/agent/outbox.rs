//! The runner's reports to the server: runner → connection.
//!
//! This isn't a channel, because the runner must never wait for a connection that may be gone for
//! hours, and because a channel of results would hold their outputs in memory. The outbox holds
//! names only; outputs are read from the journal when their frame is written. The outbox is bounded
//! by what the journal holds.

use crate::domain::protocol::{RunRef, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Why the connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The journal cannot be written: nothing may be acknowledged.
    Journal(String),
    /// The server sends more commands than the agent's capacity allows.
    TooMany,
}

/// Names that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Commands that are in the journal.
    pub(super) received: BTreeSet<RunRef>,
    /// Runs whose results are in the journal.
    pub(super) results: BTreeSet<RunRef>,
    /// Commands that had expired on arrival. The journal does not contain them; if the answer is lost, it is sent again
    /// when they arrive again.
    pub(super) expired: BTreeSet<RunRef>,
    /// Set when the connection must be closed.
    pub(super) fault: Option<Fault>,
}

/// The result of a command that had expired on arrival.
pub(super) fn expired(RunRef { action, run }: RunRef) -> RunResult {
    let (status, results) = (RunStatus::Expired, Vec::new());
    RunResult { action, run, status, results, started_at: None, finished_at: Some(Timestamp::of_this_machine()) }
}

/// Names that wait to be sent, shared by the runner and the connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pending: Mutex<Pending>,
    load: AtomicUsize,
    news: Notify,
}

impl Outbox {
    /// Changes the pending names and wakes the connection.
    pub(super) fn post(&self, put: impl FnOnce(&mut Pending)) {
        put(&mut self.open());
        self.news.notify_one();
    }

    /// How many commands wait or run at the runner. Set before the runner posts what has changed.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::SeqCst)
    }

    /// Sets [`load`](Self::load).
    pub(super) fn set_load(&self, commands: usize) {
        self.load.store(commands, Ordering::SeqCst);
    }

    /// Locks the pending names, to read and take them.
    pub(super) fn open(&self) -> MutexGuard<'_, Pending> {
        // A panic can't leave the pending names half-changed.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next change.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}
