//! Keys of changed rows until a reconciler takes them: bounded and without duplicates.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module. Clones share the keys.
#[derive(Clone, Debug)]
pub struct DirtyKeys {
    limit: usize,
    keys: Arc<Mutex<Dirty>>,
}

/// What has changed since the last call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// The rows with these keys.
    Keys(BTreeSet<i64>),
    /// More rows than are remembered: anything may have changed.
    Everything,
}

impl DirtyKeys {
    /// A set of up to `limit` keys.
    pub fn new(limit: usize) -> Self {
        Self { limit, keys: Arc::new(Mutex::new(Dirty::Keys(BTreeSet::new()))) }
    }

    fn lock(&self) -> MutexGuard<'_, Dirty> {
        // The set is consistent after every step.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds changed keys.
    pub fn add(&self, changed: impl IntoIterator<Item = i64>) {
        let mut dirty = self.lock();
        if let Dirty::Keys(keys) = &mut *dirty {
            keys.extend(changed);
            if keys.len() > self.limit {
                *dirty = Dirty::Everything;
            }
        }
    }

    /// Records that anything may have changed.
    pub fn add_everything(&self) {
        *self.lock() = Dirty::Everything;
    }

    /// Takes the changes since the last call.
    pub fn take(&self) -> Dirty {
        std::mem::replace(&mut *self.lock(), Dirty::Keys(BTreeSet::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_once_and_too_many_become_everything() {
        let dirty = DirtyKeys::new(3);
        dirty.add([2, 1, 2]);
        assert_eq!(dirty.take(), Dirty::Keys([1, 2].into()));
        assert_eq!(dirty.take(), Dirty::Keys([].into()));
        dirty.add(1..=4);
        dirty.add([5]);
        assert_eq!(dirty.take(), Dirty::Everything);
        dirty.add_everything();
        assert_eq!(dirty.take(), Dirty::Everything);
        assert_eq!(dirty.take(), Dirty::Keys([].into()));
    }
}
