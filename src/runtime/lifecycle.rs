//! The two messages that every actor of the runtime handles.

use actix::prelude::*;

/// Node → each actor, source first: finish what is in flight. Answered when that is done.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Signals → a reconciler: there may be work. A hint: a lost one costs a period.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Wake;

/// Wakes a reconciler from outside the actors, as a file system's notification does. Clones wake
/// the same one.
#[derive(Clone)]
pub struct Waker(Recipient<Wake>);

impl Waker {
    /// A waker for the reconciler at this address.
    pub fn new(reconciler: Recipient<Wake>) -> Self {
        Self(reconciler)
    }

    /// Wakes the reconciler. If its mailbox is full, it is awake already.
    pub fn wake(&self) {
        self.0.try_send(Wake).ok();
    }
}
