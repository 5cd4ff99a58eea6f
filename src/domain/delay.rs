//! What is due when: a queue in order of (due time, priority, arrival), with at most one entry for a key.
//!
//! A B-tree keyed by that order and a map from key to place: insert, replace and remove by key cost O(log n), and equal
//! times leave in the order in which they came, which a binary heap alone doesn't promise.

use super::time::Timestamp;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// (due, −priority, sequence): the order of leaving.
type Place = (Timestamp, i32, u64);

/// See the module.
#[derive(Debug)]
pub struct DelayQueue<K, V> {
    entries: BTreeMap<Place, (K, V)>,
    places: HashMap<K, Place>,
    sequence: u64,
    capacity: usize,
}

impl<K: Copy + Eq + Hash, V> DelayQueue<K, V> {
    /// An empty queue that holds at most `capacity` entries.
    pub fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), places: HashMap::new(), sequence: 0, capacity }
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many more entries fit.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.entries.len())
    }

    /// Puts `value` in; of two with the same priority and due time the earlier one leaves first.
    ///
    /// # Errors
    /// Gives `value` back when the queue is full, or holds an entry for `key` already.
    pub fn insert(&mut self, key: K, due: Timestamp, priority: i32, value: V) -> Result<(), V> {
        if self.room() == 0 {
            return Err(value);
        }
        let Entry::Vacant(vacant) = self.places.entry(key) else { return Err(value) };
        let place = (due, priority.saturating_neg(), self.sequence);
        self.sequence += 1;
        vacant.insert(place);
        self.entries.insert(place, (key, value));
        Ok(())
    }

    /// When the next entry is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.entries.first_key_value().map(|(place, _)| place.0)
    }

    /// Takes up to `limit` entries that are due at `now`, in order.
    pub fn pop_due(&mut self, now: Timestamp, limit: usize) -> Vec<(K, V)> {
        let mut due = Vec::new();
        while due.len() < limit {
            match self.entries.first_entry() {
                Some(entry) if entry.key().0 <= now => {
                    let (key, value) = entry.remove();
                    self.places.remove(&key);
                    due.push((key, value));
                }
                _ => break,
            }
        }
        due
    }

    /// Removes all entries that `unwanted` picks, and says how many they were.
    pub fn remove_where(&mut self, mut unwanted: impl FnMut(&K, &V) -> bool) -> usize {
        let before = self.entries.len();
        let places = &mut self.places;
        self.entries.retain(|_, (key, value)| {
            let goes = unwanted(key, value);
            if goes {
                places.remove(key);
            }
            !goes
        });
        before - self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert { key: u8, due: i64, priority: i32 },
        Pop { now: i64, limit: usize },
        Remove { parity: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<u8>(), 0i64..20, -1i32..2).prop_map(|(key, due, priority)| Step::Insert { key, due, priority }),
            2 => (0i64..25, 0usize..5).prop_map(|(now, limit)| Step::Pop { now, limit }),
            1 => (0u8..2).prop_map(|parity| Step::Remove { parity }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn it_behaves_like_a_sorted_list(steps in proptest::collection::vec(step(), 0..80)) {
            let mut queue = DelayQueue::new(20);
            let mut model: Vec<(i64, i32, usize, u8)> = Vec::new();
            for (arrival, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert { key, due, priority } => {
                        let fits = model.len() < 20 && !model.iter().any(|entry| entry.3 == key);
                        prop_assert_eq!(queue.insert(key, Timestamp(due), priority, arrival).is_ok(), fits);
                        if fits {
                            model.push((due, -priority, arrival, key));
                            model.sort_unstable();
                        }
                    }
                    Step::Pop { now, limit } => {
                        let count = model.iter().take(limit).take_while(|entry| entry.0 <= now).count();
                        let expected: Vec<(u8, usize)> = model.drain(..count).map(|e| (e.3, e.2)).collect();
                        prop_assert_eq!(queue.pop_due(Timestamp(now), limit), expected);
                    }
                    Step::Remove { parity } => {
                        let before = model.len();
                        model.retain(|entry| entry.3 % 2 != parity);
                        prop_assert_eq!(queue.remove_where(|key, _| key % 2 == parity), before - model.len());
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next_due(), model.first().map(|entry| Timestamp(entry.0)));
            }
        }
    }
}
