//! The journal for async callers.

use super::append_log::Journal;
use super::compaction::Compaction;
use super::error::JournalError;
use super::index::Index;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The journal, shared by async callers. Its calls block.
#[derive(Clone, Debug)]
pub(in crate::agent) struct SharedJournal {
    journal: Arc<Mutex<Journal>>,
    index: Arc<RwLock<Index>>,
}

impl SharedJournal {
    pub(in crate::agent) fn new(journal: Journal) -> Self {
        Self { index: journal.index.clone(), journal: Arc::new(Mutex::new(journal)) }
    }

    /// Reads the index. Does not wait for the disk.
    pub(in crate::agent) fn peek<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Works with the file, on a thread that may block.
    pub(in crate::agent) async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut journal = shared.lock();
            let done = act(&mut journal);
            let compaction = journal.begin_compaction();
            drop(journal);
            if let Some(compaction) = compaction {
                // From here, since the caller may be gone. Nobody waits for it: if the agent ends before, the next one compacts.
                drop(tokio::task::spawn_blocking(move || shared.compact(compaction)));
            }
            done
        });
        done.await.unwrap_or(Err(JournalError::ShuttingDown))
    }

    fn compact(&self, compaction: Compaction) {
        let copy = compaction.copy();
        self.lock().finish_compaction(copy);
    }

    /// The journal itself; waits while another caller works with the file.
    pub(in crate::agent) fn lock(&self) -> MutexGuard<'_, Journal> {
        // The journal counts a record only after it is written, so a panic leaves a consistent state.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
