//! A bounded queue with many producers and many consumers.
//!
//! The semaphores count what can be taken and what there is room for; the lock is held for a push
//! or a pop only. Rejected: `tokio::sync::mpsc`, which has one consumer and doesn't give back what it
//! holds to anybody else.

use super::ordered::{Keyed, Lanes};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

type KeyFn<T> = Box<dyn Fn(&T) -> u64 + Send + Sync>;

pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    /// A permit for each item that can be taken.
    items: Semaphore,
    /// A permit for each free place.
    room: Semaphore,
    key: Option<KeyFn<T>>,
}

struct Inner<T> {
    lanes: Lanes<T>,
    is_closed: bool,
}

/// A lock whose data is valid at every point where a panic could leave it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize, key: Option<KeyFn<T>>) -> Self {
        let inner = Inner { lanes: Lanes::default(), is_closed: false };
        Self { inner: Mutex::new(inner), items: Semaphore::new(0), room: Semaphore::new(capacity), key }
    }

    /// The key that `item` is ordered by. Runs the caller's function, which may panic.
    pub(super) fn key_of(&self, item: &T) -> Option<u64> {
        self.key.as_ref().map(|key| key(item))
    }

    /// Waits for room. Gives the item back if the queue takes none.
    pub(super) async fn push(&self, entry: Keyed<T>) -> Result<(), Keyed<T>> {
        match self.room.acquire().await {
            Ok(room) => self.put(room, entry),
            Err(_) => Err(entry),
        }
    }

    /// Waits for room, or returns `None` if the queue takes nothing.
    pub(super) async fn reserve(&self) -> Option<SemaphorePermit<'_>> {
        self.room.acquire().await.ok()
    }

    pub(super) fn try_reserve(&self) -> Result<SemaphorePermit<'_>, TryAcquireError> {
        self.room.try_acquire()
    }

    /// Puts an item where room was reserved. Gives it back if the queue takes none.
    pub(super) fn put(&self, room: SemaphorePermit<'_>, entry: Keyed<T>) -> Result<(), Keyed<T>> {
        let mut inner = lock(&self.inner);
        if inner.is_closed {
            return Err(entry);
        }
        let is_ready = inner.lanes.push(entry);
        drop(inner);
        // The consumer returns it.
        room.forget();
        if is_ready {
            self.items.add_permits(1);
        }
        Ok(())
    }

    /// Waits for items, and takes up to `most` of those that are there. Takes none if the queue is
    /// closed; returns whether it is open. Loses nothing if it is dropped.
    pub(super) async fn pop(&self, most: usize, into: &mut Vec<Keyed<T>>) -> bool {
        let Ok(permit) = self.items.acquire().await else { return false };
        permit.forget();
        self.take(most, into);
        true
    }

    /// As [`pop`](Self::pop), without waiting. Returns whether it took any.
    pub(super) fn try_pop(&self, most: usize, into: &mut Vec<Keyed<T>>) -> bool {
        let Ok(permit) = self.items.try_acquire() else { return false };
        permit.forget();
        self.take(most, into);
        !into.is_empty()
    }

    /// Takes one item for which there is a permit, and more if there are.
    fn take(&self, most: usize, into: &mut Vec<Keyed<T>>) {
        let mut inner = lock(&self.inner);
        into.extend(inner.lanes.pop());
        while into.len() < most
            && let Ok(permit) = self.items.try_acquire()
        {
            permit.forget();
            into.extend(inner.lanes.pop());
        }
        drop(inner);
        self.room.add_permits(into.len());
    }

    /// Ends the claim of an item that was taken.
    pub(super) fn release(&self, key: u64) {
        if lock(&self.inner).lanes.release(key) {
            self.items.add_permits(1);
        }
    }

    /// Takes everything that waits, as a consumer does; the queue goes on.
    pub(super) fn take_waiting(&self) -> Vec<Keyed<T>> {
        let blocked = lock(&self.inner).lanes.take_blocked();
        self.room.add_permits(blocked.len());
        let mut taken = Vec::new();
        let mut some = Vec::new();
        while self.try_pop(1, &mut some) {
            if let Some(key) = some.last().and_then(|entry| entry.key) {
                self.release(key);
            }
            taken.append(&mut some);
        }
        taken.extend(blocked);
        taken
    }

    /// Whoever waits for room gets none.
    pub(super) fn close_intake(&self) {
        self.room.close();
    }

    /// Takes no item and yields none from here on. Returns what waited.
    pub(super) fn close(&self) -> Vec<Keyed<T>> {
        let mut inner = lock(&self.inner);
        inner.is_closed = true;
        let rest = inner.lanes.take_all();
        drop(inner);
        self.room.close();
        self.items.close();
        rest
    }

    /// Makes room for everything that can come.
    pub(super) fn lift_bound(&self) {
        // As good as endless, and far from the most that a semaphore can count.
        self.room.add_permits(1 << 30);
    }

    /// Nothing more comes. What waits can still be taken by [`next`](Self::next).
    pub(super) fn end(&self) {
        self.items.close();
    }

    /// The next item, or `None` at the end.
    pub(super) async fn next(&self) -> Option<T> {
        match self.items.acquire().await {
            Ok(permit) => permit.forget(),
            // What came before the end has no permits that could be taken.
            Err(_) => return lock(&self.inner).lanes.pop().map(|entry| entry.item),
        }
        let popped = lock(&self.inner).lanes.pop();
        self.room.add_permits(1);
        popped.map(|entry| entry.item)
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.inner).lanes.len()
    }
}
