//! What the resolving tasks share. Plain data, so nothing to test.

use crate::context::Node;
use crate::pipeline::command_store::PageWriter;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
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
    /// Set when the process drains.
    pub(super) stopping: Arc<AtomicBool>,
}

impl Resolving {
    /// With no pages in memory.
    pub(super) fn new(node: Arc<Node>, pages: PageWriter) -> Self {
        let (credits, searches) = (Semaphore::new(PAGES_IN_MEMORY), Semaphore::new(SEARCHES));
        Self { node, pages, credits: credits.into(), searches: searches.into(), stopping: Arc::default() }
    }
}
