//! What the resolving tasks share. Plain data, so nothing to test.

use crate::context::Node;
use crate::domain::stride::Stride;
use crate::pipeline::command_store::PageWriter;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;

/// Number of searches in the fleet that run at a time.
pub(super) const SEARCHES: usize = 2;
/// Maximum number of pages of all actions in flight to the store.
pub(super) const PAGES_IN_MEMORY: usize = 16;

/// What is kept of an action between its turns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// How much of the fleet is searched at a time.
    pub(super) stride: Stride,
    /// Agents that were counted, up to the key.
    pub(super) counted: (i64, i64),
}

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
    /// What is kept of actions between their turns.
    kept: Arc<Mutex<HashMap<i64, Kept>>>,
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
            kept: Arc::default(),
            is_crowded: Arc::default(),
            stopping: Arc::default(),
        }
    }

    /// What is kept of actions between their turns.
    pub(super) fn kept(&self) -> MutexGuard<'_, HashMap<i64, Kept>> {
        // Each change is whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
