//! The latest list of open actions from the store. One list per node, for the scheduler and the
//! reconcilers.

use crate::store::OpenAction;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The open actions at one time.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The number of this reading. Events that reached this process after [`OpenActions::begin`]
    /// had returned this number may be missing here.
    pub reading: u64,
    /// In key order.
    pub actions: Vec<OpenAction>,
}

/// See the module. Clones share the table.
#[derive(Clone, Debug, Default)]
pub struct OpenActions(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    begun: AtomicU64,
    last: RwLock<Arc<Snapshot>>,
}

impl OpenActions {
    /// Begins a reading of the store and returns its number.
    pub fn begin(&self) -> u64 {
        self.0.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the reading that began last.
    pub fn reading(&self) -> u64 {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Publishes a complete reading.
    pub fn set(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        *self.0.last.write().unwrap_or_else(PoisonError::into_inner) = snapshot.clone();
        snapshot
    }

    /// The last complete reading. Empty before the first one.
    pub fn last(&self) -> Arc<Snapshot> {
        self.0.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_reading_is_seen_while_the_next_one_has_begun() {
        let table = OpenActions::default();
        assert_eq!((table.reading(), table.last().reading), (0, 0));
        assert_eq!(table.clone().begin(), 1);
        assert_eq!((table.reading(), table.last().reading), (1, 0), "it is not complete");
        table.set(Snapshot { reading: 1, actions: Vec::new() });
        assert_eq!(table.begin(), 2);
        assert_eq!((table.reading(), table.last().reading), (2, 1));
    }
}
