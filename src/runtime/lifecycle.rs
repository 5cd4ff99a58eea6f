//! The two messages that every machine understands.

use actix::prelude::*;

/// Node → each actor on the way out, source first: finish what is in flight. Answered when that is done.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Signals → a reconciler: there may be something to do. A hint: a lost one costs a period.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Wake;

/// Wakes a reconciler from anywhere, as a file system's notification does. Clones wake the same one.
#[derive(Clone)]
pub struct Waker(Recipient<Wake>);

impl Waker {
    /// For the reconciler at this address.
    pub fn new(reconciler: Recipient<Wake>) -> Self {
        Self(reconciler)
    }

    /// Wakes it. Where its mailbox is full, it is awake.
    pub fn wake(&self) {
        self.0.try_send(Wake).ok();
    }
}
