//! Stands between the router and a sender under test, and takes down what passes.

use crate::runtime::{Drain, Supervision, Unstarted};
use crate::senders::{Cancelled, Deliver, SenderContext};
use actix::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What was seen of a sender. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Seen(Arc<Mutex<Record>>);

#[derive(Default)]
pub(super) struct Record {
    /// The longest time that a `Deliver` took to be answered.
    pub(super) slowest: Duration,
    /// A `Deliver` is being answered since then.
    pub(super) unanswered: Vec<Instant>,
    /// Commands (action, agent) that the sender has taken over.
    pub(super) taken: HashSet<(i64, i64)>,
    /// How often each of them was taken over.
    pub(super) offers: HashMap<(i64, i64), i32>,
    /// Requests that a crash of the sender lost.
    pub(super) crashes: usize,
    /// The sender has answered `Drain`.
    pub(super) is_drained: bool,
    /// Commands that the sender took over after it had answered `Drain`.
    pub(super) taken_after_drain: usize,
}

impl Seen {
    pub(super) fn lock(&self) -> MutexGuard<'_, Record> {
        // The record is consistent after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes every message on to the sender.
pub(super) struct Tap<A: Actor> {
    sender: Addr<A>,
    seen: Seen,
}

impl<A> Tap<A>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin + Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
{
    /// Starts the sender, and a tap before it.
    pub(super) fn new(context: SenderContext, make: impl FnOnce(SenderContext) -> A, seen: Seen) -> Self {
        let supervision = Supervision::new(crate::config::Supervision::default());
        let sender = Unstarted::default().start("the sender under test", make(context), &supervision);
        Self { sender, seen }
    }
}

impl<A: Actor> Actor for Tap<A> {
    type Context = Context<Self>;
}

impl<A: Actor> Supervised for Tap<A> {}

impl<A: Actor<Context = Context<A>> + Handler<Deliver>> Handler<Deliver> for Tap<A> {
    type Result = ResponseFuture<Vec<crate::senders::Deferred>>;

    fn handle(&mut self, deliver: Deliver, _: &mut Self::Context) -> Self::Result {
        let offered: Vec<(i64, i64)> = deliver.0.iter().map(crate::senders::Delivery::key).collect();
        let began = Instant::now();
        self.seen.lock().unanswered.push(began);
        let (answer, seen) = (self.sender.send(deliver), self.seen.clone());
        Box::pin(async move {
            let answer = answer.await;
            let mut seen = seen.lock();
            seen.unanswered.retain(|since| *since != began);
            seen.slowest = seen.slowest.max(began.elapsed());
            let Ok(deferred) = answer else {
                seen.crashes += 1;
                return Vec::new();
            };
            let back: HashSet<(i64, i64)> = deferred.iter().map(|deferred| deferred.delivery.key()).collect();
            let taken = offered.into_iter().filter(|key| !back.contains(key));
            let is_drained = seen.is_drained;
            for key in taken {
                *seen.offers.entry(key).or_default() += 1;
                seen.taken.insert(key);
                if is_drained {
                    seen.taken_after_drain += 1;
                }
            }
            deferred
        })
    }
}

impl<A: Actor<Context = Context<A>> + Handler<Cancelled>> Handler<Cancelled> for Tap<A> {
    type Result = ();

    fn handle(&mut self, cancelled: Cancelled, _: &mut Self::Context) {
        self.sender.do_send(cancelled);
    }
}

impl<A: Actor<Context = Context<A>> + Handler<Drain>> Handler<Drain> for Tap<A> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let (answer, seen) = (self.sender.send(Drain), self.seen.clone());
        Box::pin(async move {
            answer.await.ok();
            seen.lock().is_drained = true;
        })
    }
}
