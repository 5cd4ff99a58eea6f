//! A bounded queue with many producers and many consumers.
//!
//! A lock is held for a push or a pop only, and waiting tasks wait on a `Notify`. Rejected:
//!
//! - `tokio::sync::mpsc`: it has one consumer, and gives back what it holds to nobody else;
//! - semaphores that count items and room: they hand each permit to the task that has waited longest, so that
//!   a full queue moves one item per switch between tasks.

use super::ordered::{Keyed, Lanes};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

type KeyFn<T> = Box<dyn Fn(&T) -> u64 + Send + Sync>;

pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    /// Wakes a consumer for each item that can be taken.
    items: Notify,
    /// Wakes producers when a full queue has room again.
    room: Notify,
    key: Option<KeyFn<T>>,
}

struct Inner<T> {
    lanes: Lanes<T>,
    capacity: usize,
    /// Was full, and hasn't emptied enough since (see `make_room`).
    is_stalled: bool,
    /// Takes no more.
    is_refusing: bool,
    /// Who finds nothing has come to the end.
    is_over: bool,
    /// Consumers that wait for an item, or are about to.
    hungry: usize,
    /// Producers that wait for room, or are about to.
    blocked: usize,
}

/// Counts a consumer as waiting.
struct Hungry<'a, T>(&'a Queue<T>);

impl<'a, T> Hungry<'a, T> {
    fn new(queue: &'a Queue<T>) -> Self {
        lock(&queue.inner).hungry += 1;
        Self(queue)
    }
}

impl<T> Drop for Hungry<'_, T> {
    fn drop(&mut self) {
        lock(&self.0.inner).hungry -= 1;
    }
}

/// Counts a producer as waiting.
struct Blocked<'a, T>(&'a Queue<T>);

impl<'a, T> Blocked<'a, T> {
    fn new(queue: &'a Queue<T>) -> Self {
        lock(&queue.inner).blocked += 1;
        Self(queue)
    }
}

impl<T> Drop for Blocked<'_, T> {
    fn drop(&mut self) {
        lock(&self.0.inner).blocked -= 1;
    }
}

impl<T> Inner<T> {
    /// After items were taken: returns how many producers to wake. A queue that was full takes items again
    /// when a quarter of it is free. If it did at each free place, a producer would be woken for each
    /// item, and three stages were half as fast.
    fn make_room(&mut self) -> usize {
        let low_water = self.capacity - (self.capacity / 4).max(1);
        if !self.is_stalled || self.lanes.len() > low_water {
            return 0;
        }
        self.is_stalled = false;
        self.blocked
    }
}

/// An item that a queue didn't take.
pub(super) enum Refused<T> {
    Full(Keyed<T>),
    Closed(Keyed<T>),
}

/// A lock whose data is valid at every point where a panic could leave it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize, key: Option<KeyFn<T>>) -> Self {
        let lanes = Lanes::default();
        let inner =
            Inner { lanes, capacity, is_stalled: false, is_refusing: false, is_over: false, hungry: 0, blocked: 0 };
        Self { inner: Mutex::new(inner), items: Notify::new(), room: Notify::new(), key }
    }

    /// The key that `item` is ordered by. Runs the caller's function, which may panic.
    pub(super) fn key_of(&self, item: &T) -> Option<u64> {
        self.key.as_ref().map(|key| key(item))
    }

    /// Waits for room. Gives the item back if the queue takes none.
    pub(super) async fn push(&self, mut entry: Keyed<T>) -> Result<(), Keyed<T>> {
        loop {
            match self.try_push(entry) {
                Ok(()) => return Ok(()),
                Err(Refused::Closed(back)) => return Err(back),
                Err(Refused::Full(back)) => entry = back,
            }
            self.wait_for_room().await;
        }
    }

    pub(super) fn try_push(&self, entry: Keyed<T>) -> Result<(), Refused<T>> {
        let mut inner = lock(&self.inner);
        if inner.is_refusing {
            return Err(Refused::Closed(entry));
        }
        if inner.is_stalled {
            return Err(Refused::Full(entry));
        }
        let is_ready = inner.lanes.push(entry);
        inner.is_stalled = inner.lanes.len() >= inner.capacity;
        let is_awaited = inner.hungry > 0;
        drop(inner);
        if is_ready && is_awaited {
            self.items.notify_one();
        }
        Ok(())
    }

    /// Whether there was no room a moment ago.
    pub(super) fn is_full(&self) -> bool {
        let inner = lock(&self.inner);
        !inner.is_refusing && inner.is_stalled
    }

    /// Waits until the queue isn't full. Somebody else may be faster.
    pub(super) async fn wait_for_room(&self) {
        while self.is_full() {
            let mut woken = pin!(self.room.notified());
            woken.as_mut().enable();
            let _blocked = Blocked::new(self);
            if self.is_full() {
                woken.await;
            }
        }
    }

    /// Waits for items, and takes up to `most` of those that are there. Takes none at the end.
    /// Loses nothing if the future is dropped.
    pub(super) async fn pop(&self, most: usize, into: &mut Vec<Keyed<T>>) {
        while self.try_pop(most, into).is_none() {
            self.wait_for_items(|| false).await;
        }
    }

    /// Waits until there are items, the end has come, or [`wake_consumers`](Self::wake_consumers) was
    /// called and `or` is true. Somebody else may be faster.
    pub(super) async fn wait_for_items(&self, or: impl Fn() -> bool) {
        let mut woken = pin!(self.items.notified());
        // From here on no wake is missed.
        woken.as_mut().enable();
        let hungry = Hungry::new(self);
        if !hungry.0.is_empty() || or() {
            return;
        }
        woken.await;
    }

    fn is_empty(&self) -> bool {
        let inner = lock(&self.inner);
        !inner.is_over && inner.lanes.is_empty()
    }

    pub(super) fn wake_consumers(&self) {
        self.items.notify_waiters();
    }

    /// As [`pop`](Self::pop), without waiting. Returns `None` if there is nothing yet.
    pub(super) fn try_pop(&self, most: usize, into: &mut Vec<Keyed<T>>) -> Option<bool> {
        let mut inner = lock(&self.inner);
        while into.len() < most
            && let Some(entry) = inner.lanes.pop()
        {
            into.push(entry);
        }
        if into.is_empty() {
            return inner.is_over.then_some(false);
        }
        let wakes = inner.make_room();
        drop(inner);
        for _ in 0..wakes {
            self.room.notify_one();
        }
        Some(true)
    }

    /// Ends the claim of an item that was taken.
    pub(super) fn release(&self, key: u64) {
        if lock(&self.inner).lanes.release(key) {
            self.items.notify_one();
        }
    }

    /// Takes everything that waits; the queue goes on.
    pub(super) fn take_waiting(&self) -> Vec<Keyed<T>> {
        let mut inner = lock(&self.inner);
        let mut taken = inner.lanes.take_ready();
        let blocked = inner.lanes.take_blocked();
        for entry in &taken {
            if let Some(key) = entry.key {
                inner.lanes.release(key);
            }
        }
        inner.make_room();
        drop(inner);
        taken.extend(blocked);
        self.room.notify_waiters();
        taken
    }

    /// Takes no more.
    pub(super) fn close_intake(&self) {
        lock(&self.inner).is_refusing = true;
        self.room.notify_waiters();
    }

    /// Takes no item and yields none from here on. Returns what waited.
    pub(super) fn close(&self) -> Vec<Keyed<T>> {
        let mut inner = lock(&self.inner);
        (inner.is_refusing, inner.is_over) = (true, true);
        let mut rest = inner.lanes.take_ready();
        rest.extend(inner.lanes.take_blocked());
        drop(inner);
        self.room.notify_waiters();
        self.items.notify_waiters();
        rest
    }

    /// Makes room for everything that can come.
    pub(super) fn lift_bound(&self) {
        let mut inner = lock(&self.inner);
        (inner.capacity, inner.is_stalled) = (usize::MAX, false);
        drop(inner);
        self.room.notify_waiters();
    }

    /// Nothing more comes. What waits can still be taken.
    pub(super) fn end(&self) {
        lock(&self.inner).is_over = true;
        self.items.notify_waiters();
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.inner).lanes.len()
    }
}
