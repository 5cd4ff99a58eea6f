//! What waits before a stage, in order of arrival; jobs of one key one at a time.

use std::collections::{HashMap, VecDeque};

/// An item and the key that it is ordered by.
pub(super) struct Keyed<T> {
    pub(super) key: Option<u64>,
    pub(super) item: T,
}

/// A queue that yields no item while an earlier one of its key is out.
pub(super) struct Lanes<T> {
    /// What can be taken: of each key at most one.
    ready: VecDeque<Keyed<T>>,
    /// The keys that have an item in `ready` or out, and the items that wait for it.
    claimed: HashMap<u64, VecDeque<Keyed<T>>>,
    /// Items in `claimed`.
    blocked: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { ready: VecDeque::new(), claimed: HashMap::new(), blocked: 0 }
    }
}

impl<T> Lanes<T> {
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.blocked
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Returns whether there is one more item to take.
    pub(super) fn push(&mut self, entry: Keyed<T>) -> bool {
        if let Some(key) = entry.key {
            if let Some(lane) = self.claimed.get_mut(&key) {
                lane.push_back(entry);
                self.blocked += 1;
                return false;
            }
            self.claimed.insert(key, VecDeque::new());
        }
        self.ready.push_back(entry);
        true
    }

    /// Takes the next item. Its key stays claimed until [`release`](Self::release).
    pub(super) fn pop(&mut self) -> Option<Keyed<T>> {
        self.ready.pop_front()
    }

    /// Ends the claim of an item that is out. Returns whether there is one more item to take.
    pub(super) fn release(&mut self, key: u64) -> bool {
        let Some(lane) = self.claimed.get_mut(&key) else { return false };
        if let Some(next) = lane.pop_front() {
            self.blocked -= 1;
            self.ready.push_back(next);
            return true;
        }
        self.claimed.remove(&key);
        false
    }

    /// Takes the items that can't be taken by [`pop`](Self::pop).
    pub(super) fn take_blocked(&mut self) -> Vec<Keyed<T>> {
        self.blocked = 0;
        self.claimed.values_mut().flat_map(|lane| lane.drain(..)).collect()
    }

    /// Takes the items that can be taken by [`pop`](Self::pop). Their keys stay claimed.
    pub(super) fn take_ready(&mut self) -> Vec<Keyed<T>> {
        self.ready.drain(..).collect()
    }
}
