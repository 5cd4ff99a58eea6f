//! What the resolving tasks share. Plain data, so nothing to test.

use crate::context::Node;
use crate::pipeline::command_store::PageWriter;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;

/// Number of searches in the fleet that run at a time.
pub(super) const SEARCHES: usize = 2;
/// Maximum number of pages of all actions in flight to the store.
pub(super) const PAGES_IN_MEMORY: usize = 16;

/// See the module.
#[derive(Clone)]
pub(super) struct Resolving {
    pub(super) node: Arc<Node>,
    /// Receives the pages.
    pub(super) pages: PageWriter,
    /// One permit per page in memory.
    pub(super) credits: Arc<Semaphore>,
    /// One permit per running search.
    pub(super) searches: Arc<Semaphore>,
    /// The agents counted so far, as (up to this key, number), of actions whose count was interrupted.
    pub(super) counted: Arc<Mutex<HashMap<i64, (i64, i64)>>>,
    /// More actions are to be resolved than may be at a time: those that take long take turns.
    pub(super) is_crowded: Arc<AtomicBool>,
    /// Set when the process drains.
    pub(super) stopping: Arc<AtomicBool>,
}

impl Resolving {
    /// With no pages in memory.
    pub(super) fn new(node: Arc<Node>, pages: PageWriter) -> Self {
        let (credits, searches) = (Semaphore::new(PAGES_IN_MEMORY), Semaphore::new(SEARCHES));
        Self {
            node,
            pages,
            credits: credits.into(),
            searches: searches.into(),
            counted: Arc::default(),
            is_crowded: Arc::default(),
            stopping: Arc::default(),
        }
    }

    /// The agents counted so far.
    pub(super) fn counted(&self) -> MutexGuard<'_, HashMap<i64, (i64, i64)>> {
        // Each change is whole.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
