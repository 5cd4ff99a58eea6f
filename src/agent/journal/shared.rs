//! The journal for async callers.

use super::append_log::Journal;
use super::error::JournalError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The journal, shared by async callers. Its calls block.
#[derive(Clone, Debug)]
pub(in crate::agent) struct SharedJournal(Arc<Mutex<Journal>>);

impl SharedJournal {
    pub(in crate::agent) fn new(journal: Journal) -> Self {
        Self(Arc::new(Mutex::new(journal)))
    }

    /// Reads the index. Does not touch the file, but waits while another caller does.
    pub(in crate::agent) fn peek<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&self.lock())
    }

    /// Works with the file, on a thread that may block.
    pub(in crate::agent) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let journal = self.clone();
        tokio::task::spawn_blocking(move || act(&mut journal.lock())).await.unwrap_or(Err(JournalError::ShuttingDown))
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        // The journal counts a record only after it is written, so a panic leaves a consistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
