//! Keys of changed rows until a reconciler takes them: bounded and without duplicates.

use std::collections::{BTreeMap, BTreeSet};
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

impl Dirty {
    /// Adds what else has changed. More than `limit` keys become everything.
    pub fn add(&mut self, more: Self, limit: usize) {
        match (&mut *self, more) {
            (Self::Keys(keys), Self::Keys(more)) => {
                keys.extend(more);
                if keys.len() > limit {
                    *self = Self::Everything;
                }
            }
            _ => *self = Self::Everything,
        }
    }
}

/// Changed agents for each action that they concern. Clones share them.
#[derive(Clone, Debug)]
pub struct DirtyByAction {
    limit: usize,
    actions: Arc<Mutex<BTreeMap<i64, Dirty>>>,
}

impl DirtyByAction {
    /// Up to `limit` agents for each action. How many actions there are is up to those who add them.
    pub fn new(limit: usize) -> Self {
        Self { limit, actions: Arc::default() }
    }

    /// Adds the agents that concern each action.
    pub fn add(&self, changed: BTreeMap<i64, Vec<i64>>) {
        // The map is consistent after every step.
        let mut actions = self.actions.lock().unwrap_or_else(PoisonError::into_inner);
        for (action_no, agents) in changed {
            let dirty = actions.entry(action_no).or_insert_with(|| Dirty::Keys(BTreeSet::new()));
            match dirty {
                Dirty::Everything => {}
                Dirty::Keys(keys) if keys.len() + agents.len() > self.limit => *dirty = Dirty::Everything,
                Dirty::Keys(keys) => keys.extend(agents),
            }
        }
    }

    /// Takes the changes since the last call.
    pub fn take(&self) -> BTreeMap<i64, Dirty> {
        std::mem::take(&mut *self.actions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_of_each_action_are_taken_once_and_too_many_become_everything() {
        let dirty = DirtyByAction::new(2);
        dirty.add([(1, vec![10]), (2, vec![10]), (3, vec![10, 11])].into());
        dirty.add([(1, vec![11]), (3, vec![12])].into());
        dirty.add([(3, vec![13])].into());
        let expected = [(1, Dirty::Keys([10, 11].into())), (2, Dirty::Keys([10].into())), (3, Dirty::Everything)];
        assert_eq!(dirty.take(), BTreeMap::from(expected));
        assert!(dirty.take().is_empty());
    }

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
