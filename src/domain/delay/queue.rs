//! The queue: entries by key, in slots, over the order of their items.

use super::near::{NearKeys, widened};
use super::order::{Item, Order};
use crate::domain::time::Timestamp;
use hashbrown::hash_table::{Entry as KeyEntry, HashTable};
use std::hash::Hash;

/// Stale items (left behind by a cancel or a reschedule) are swept out when they outnumber the live
/// ones by this many.
pub(super) const SWEEP: usize = 1_024;

/// What happens to an entry for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The new entry is refused.
    Refuse,
    /// The farthest entry is displaced and returned, unless the new one would be the farthest.
    Displace,
}

/// An entry that leaves the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<K, V, T = Timestamp> {
    /// Its key.
    pub key: K,
    /// When it is due.
    pub due: T,
    /// Among entries with equal due times, the highest leaves first.
    pub priority: i32,
    /// Its value.
    pub value: V,
}

/// Why an entry was not accepted. The value is returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertError<V> {
    /// There is no room, and no entry is farther.
    Full(V),
    /// There is an entry for this key.
    Known(V),
    /// The queue was stopped.
    Stopped(V),
}

#[derive(Debug)]
pub(super) struct Slot<K, V> {
    /// The sequence of its current item in the order. Items with other numbers are stale.
    sequence: u64,
    rank: i32,
    entry: Option<(K, V)>,
}

/// A key's place: a part of its hash, and its slot.
type IndexSlot = (u32, u32);

/// A queue in order of due time, with at most one entry for a key; see the [module](super).
#[derive(Debug)]
pub struct DelayQueue<K, V, T = Timestamp> {
    pub(super) order: Order<T>,
    pub(super) slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    keys: HashTable<IndexSlot>,
    hasher: NearKeys,
    sequence: u64,
    capacity: usize,
    when_full: WhenFull,
    paused: bool,
    stopped: Option<T>,
    /// The deadline of the stop has passed.
    over: bool,
}

impl<K: Eq + Hash, V, T: Copy + Ord> DelayQueue<K, V, T> {
    /// An empty queue that holds at most `capacity` entries (and never more than 2³² − 1).
    pub fn new(capacity: usize, when_full: WhenFull) -> Self {
        Self {
            order: Order::new(),
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashTable::new(),
            hasher: NearKeys::default(),
            sequence: 0,
            capacity: capacity.min(u32::MAX as usize),
            when_full,
            paused: false,
            stopped: None,
            over: false,
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many more entries fit.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len())
    }

    /// Whether there is an entry for this key.
    pub fn contains(&self, key: &K) -> bool {
        self.find(key).is_some()
    }

    /// Inserts `value`. Returns the entry that it displaced, if any.
    ///
    /// # Errors
    /// Returns `value` if there is no room for it, if there is an entry for `key`, or after a stop.
    pub fn insert(
        &mut self,
        key: K,
        due: T,
        priority: i32,
        value: V,
    ) -> Result<Option<Entry<K, V, T>>, InsertError<V>> {
        if self.stopped.is_some() {
            return Err(InsertError::Stopped(value));
        }
        if self.room() == 0 {
            return self.insert_if_nearer(key, due, priority, value);
        }
        let (hash, short) = self.hash(&key);
        let slots = &self.slots;
        let same = |place: &IndexSlot| place.0 == short && slots[place.1 as usize].is(&key);
        let KeyEntry::Vacant(vacant) = self.keys.entry(hash, same, rehash) else {
            return Err(InsertError::Known(value));
        };
        let item = Item { due, sequence: self.sequence, rank: !priority, slot: 0 };
        let taken = Slot { sequence: item.sequence, rank: item.rank, entry: Some((key, value)) };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = taken;
                slot
            }
            None => {
                self.slots.push(taken);
                (self.slots.len() - 1) as u32
            }
        };
        vacant.insert((short, slot));
        self.sequence += 1;
        self.order.push(Item { slot, ..item });
        Ok(None)
    }

    /// The same, when there is no room.
    fn insert_if_nearer(
        &mut self,
        key: K,
        due: T,
        priority: i32,
        value: V,
    ) -> Result<Option<Entry<K, V, T>>, InsertError<V>> {
        if self.contains(&key) {
            return Err(InsertError::Known(value));
        }
        if self.when_full == WhenFull::Refuse {
            return Err(InsertError::Full(value));
        }
        let Some(farthest) = self.pop_farthest() else { return Err(InsertError::Full(value)) };
        let item = Item { due, sequence: self.sequence, rank: !priority, slot: 0 };
        if item > farthest {
            self.order.push(farthest);
            return Err(InsertError::Full(value));
        }
        let displaced = self.take(farthest);
        self.insert(key, due, priority, value)?;
        Ok(displaced)
    }

    /// Removes the entry of this key.
    pub fn cancel(&mut self, key: &K) -> Option<V> {
        let slot = self.find(key)?;
        let (_, value) = self.vacate(slot)?;
        self.sweep();
        Some(value)
    }

    /// Moves the entry of this key to another time, as if it had just arrived. False if there is
    /// none.
    pub fn reschedule(&mut self, key: &K, due: T) -> bool {
        let Some(slot) = self.find(key) else { return false };
        let (sequence, rank) = (self.sequence, self.slots[slot as usize].rank);
        self.sequence += 1;
        self.slots[slot as usize].sequence = sequence;
        self.order.push(Item { due, sequence, rank, slot });
        self.sweep();
        true
    }

    /// Removes all entries that `unwanted` matches, and returns their number.
    pub fn cancel_where(&mut self, mut unwanted: impl FnMut(&K, &V) -> bool) -> usize {
        let before = self.len();
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].entry.as_ref().is_some_and(|(key, value)| unwanted(key, value)) {
                self.vacate(slot);
            }
        }
        self.sweep();
        before - self.len()
    }

    /// When the next entry leaves. `None` if there is none, during a pause, or if the deadline of a
    /// stop comes before.
    pub fn next_due(&self) -> Option<T> {
        let next = self.order.first().map(|item| item.due).filter(|_| !self.paused && !self.over)?;
        self.stopped.is_none_or(|deadline| next < deadline).then_some(next)
    }

    /// Takes up to `limit` entries that are due at `now`, in order. None during a pause, or after
    /// the deadline of a stop.
    pub fn pop_due(&mut self, now: T, limit: usize) -> Vec<Entry<K, V, T>> {
        let mut due = Vec::new();
        self.over |= self.stopped.is_some_and(|deadline| now >= deadline);
        if self.paused || self.over {
            return due;
        }
        while due.len() < limit && self.order.first().is_some_and(|item| item.due <= now) {
            // The first item is live, because the order was settled.
            due.extend(self.order.pop().and_then(|item| self.take(item)));
            self.settle();
        }
        self.shrink();
        due
    }

    /// Holds all entries back until [`resume`](Self::resume). Inserts and cancels still work.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Ends a pause. Entries that fell due in the meantime leave first, in order.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Accepts no more entries. Due ones still leave before `deadline`, but not from then on.
    pub fn stop(&mut self, deadline: T) {
        self.stopped = Some(deadline);
    }

    /// All entries that have not left, in order.
    pub fn into_rest(mut self) -> Vec<Entry<K, V, T>> {
        let mut rest = Vec::with_capacity(self.len());
        while let Some(item) = self.order.pop() {
            if self.is_alive(&item) {
                rest.extend(self.take(item));
            }
        }
        rest
    }

    fn hash(&self, key: &K) -> (u64, u32) {
        let short = self.hasher.short(key);
        (widened(short), short)
    }

    fn find(&self, key: &K) -> Option<u32> {
        let (hash, short) = self.hash(key);
        let same = |place: &IndexSlot| place.0 == short && self.slots[place.1 as usize].is(key);
        self.keys.find(hash, same).map(|place| place.1)
    }

    fn is_alive(&self, item: &Item<T>) -> bool {
        let slot = &self.slots[item.slot as usize];
        slot.sequence == item.sequence && slot.entry.is_some()
    }

    /// Takes the entry of an item that was just removed from the order.
    fn take(&mut self, item: Item<T>) -> Option<Entry<K, V, T>> {
        let (key, value) = self.vacate(item.slot)?;
        Some(Entry { key, due: item.due, priority: !item.rank, value })
    }

    fn vacate(&mut self, slot: u32) -> Option<(K, V)> {
        let entry = self.slots[slot as usize].entry.take()?;
        let (hash, short) = self.hash(&entry.0);
        if let Ok(place) = self.keys.find_entry(hash, |place| *place == (short, slot)) {
            place.remove();
        }
        self.free.push(slot);
        Some(entry)
    }

    fn pop_farthest(&mut self) -> Option<Item<T>> {
        loop {
            let item = self.order.pop_last()?;
            if self.is_alive(&item) {
                return Some(item);
            }
        }
    }

    /// Drops stale items until the first one is live.
    fn settle(&mut self) {
        loop {
            self.order.settle();
            match self.order.first() {
                Some(item) if !self.is_alive(item) => drop(self.order.pop()),
                _ => return,
            }
        }
    }

    /// Sweeps stale items out if there are too many.
    fn sweep(&mut self) {
        if self.order.len() > 2 * self.len() + SWEEP {
            let slots = &self.slots;
            self.order.retain(|item| {
                let slot = &slots[item.slot as usize];
                slot.sequence == item.sequence && slot.entry.is_some()
            });
        }
        self.settle();
        self.shrink();
    }

    /// Releases memory when the queue is empty.
    fn shrink(&mut self) {
        if self.is_empty() && self.slots.len() > SWEEP {
            self.order = Order::new();
            (self.slots, self.free, self.keys) = (Vec::new(), Vec::new(), HashTable::new());
        }
    }
}

impl<K: Eq, V> Slot<K, V> {
    fn is(&self, key: &K) -> bool {
        self.entry.as_ref().is_some_and(|(own, _)| own == key)
    }
}

/// The table's hash from the stored part of it, so that growing the table reads no slot.
fn rehash(place: &IndexSlot) -> u64 {
    widened(place.0)
}
