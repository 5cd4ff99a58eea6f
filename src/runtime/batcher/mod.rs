//! Collects items from many senders and writes them in one transaction. The command store, the
//! outcomes and the sessions are batchers.
//!
//! A [`Put`] is answered after the commit of its items. While one batch is written, the next one
//! fills. A batch that can't be written is kept and tried again with backoff, for as long as it
//! takes. It is never dropped. Senders have a bounded number of puts in flight, so they slow down.
//! If one item keeps the batch from being written, that item is found and answered with its error,
//! and the rest is written: see [`isolation`](super::isolation).
//!
//! Crash: the items in memory are dropped, and their senders get [`Interrupted`]. They read the
//! store, or put the items again.

use crate::domain::batch::{Filling, Limits, Reason, Tip};
use crate::error_chain::ErrorChain;
use crate::metrics::Metrics;
use crate::runtime::isolation::{Next, Part, Retries};
use crate::runtime::lifecycle::Drain;
use crate::store::{StoreError, StoreResult};
use actix::prelude::*;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Instant;
use tokio::sync::oneshot;

#[cfg(test)]
mod tests;

/// Where a batcher's items go.
pub trait Sink: Clone + Unpin + 'static {
    /// One item to write.
    type Item: 'static + Send + Unpin;
    /// The answer to one item, after the commit.
    type Answer: 'static + Send + Unpin;

    /// The actor's name in logs and metrics.
    const NAME: &'static str;
    /// Maximum number of batches that are with the sink at the same time. With more than one, it gets the next full batch
    /// while the one before is written, to prepare it, and sees to their order. After a failure it gets one at a time.
    const AT_ONCE: usize = 1;

    /// How much of a batch's limit an item uses.
    fn weight(_item: &Self::Item) -> usize {
        1
    }

    /// The metrics that the batcher counts in.
    fn metrics(&self) -> &Metrics;

    /// Writes all items in one transaction, or none. Returns the answers in their order.
    fn write(&self, items: &[Self::Item]) -> impl Future<Output = StoreResult<Vec<Self::Answer>>>;

    /// Signals what is now durable, before the answers are sent.
    fn written(&self, items: Vec<Self::Item>, answers: &[Verdict<Self::Answer>]) -> impl Future<Output = ()>;
}

/// The store rejects an item, now and later.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ItemRejected(String);

/// The batcher crashed or stopped with items in memory. Only the store knows whether they were
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the actor that writes this was interrupted; the store says whether it was written")]
pub struct Interrupted;

/// The answer to one item.
pub type Verdict<A> = Result<A, ItemRejected>;

/// The answers to the items of a [`Put`], in their order.
pub type Answers<A> = Result<Vec<Verdict<A>>, Interrupted>;

/// Any part → batcher: write these items. Answered in their order after the commit.
pub struct Put<I, A> {
    items: Vec<I>,
    answer: PhantomData<fn() -> A>,
}

impl<I, A: 'static> Message for Put<I, A> {
    type Result = Answers<A>;
}

/// A handle for putting items into a batcher.
pub struct Writer<I: Send + 'static, A: Send + 'static>(Recipient<Put<I, A>>);

impl<I: Send + 'static, A: Send + 'static> Clone for Writer<I, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: Send + 'static, A: Send + 'static> Writer<I, A> {
    /// A handle to the batcher at this address.
    pub fn new<S>(batcher: Addr<Batcher<S>>) -> Self
    where
        S: Sink<Item = I, Answer = A>,
    {
        Self(batcher.recipient())
    }

    /// Puts items in. They are queued when this returns. The future resolves after their commit.
    ///
    /// # Errors
    /// [`Interrupted`]: the items may or may not be written.
    pub fn put(&self, items: Vec<I>) -> impl Future<Output = Answers<A>> + use<I, A> {
        let answers = self.0.send(Put { items, answer: PhantomData });
        async move { answers.await.unwrap_or(Err(Interrupted)) }
    }

    /// Puts items in whose answers nobody needs. They are dropped if the mailbox is full. (Dropping the future of
    /// [`put`](Self::put) would drop the items too.)
    pub fn hint(&self, items: Vec<I>) {
        if let Err(error) = self.0.try_send(Put { items, answer: PhantomData }) {
            log::debug!(error:% = error; "items that nobody waits for were dropped");
        }
    }
}

/// The channel for the answers to a [`Put`].
type Reply<A> = oneshot::Sender<Vec<Verdict<A>>>;

/// The sender of a [`Put`], and the answers so far.
struct Waiting<A> {
    answers: RefCell<Vec<Option<Verdict<A>>>>,
    left: Cell<usize>,
    reply: Cell<Option<Reply<A>>>,
}

impl<A> Waiting<A> {
    fn answer(&self, place: usize, answer: Verdict<A>) {
        if let Some(slot) = self.answers.borrow_mut().get_mut(place) {
            *slot = Some(answer);
        }
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() == 0
            && let Some(reply) = self.reply.take()
        {
            // A sender that no longer waits is gone. Its items are durable all the same.
            reply.send(self.answers.take().into_iter().flatten().collect()).ok();
        }
    }
}

/// An item, and the put that it belongs to.
struct Entry<S: Sink> {
    item: S::Item,
    owner: Rc<Waiting<S::Answer>>,
    place: usize,
}

/// The items of one [`Put`].
struct Group<S: Sink> {
    items: Vec<S::Item>,
    reply: Reply<S::Answer>,
}

impl<S: Sink> Group<S> {
    fn into_entries(self) -> impl Iterator<Item = Entry<S>> {
        let count = self.items.len();
        let owner = Rc::new(Waiting {
            answers: RefCell::new(std::iter::repeat_with(|| None).take(count).collect()),
            left: Cell::new(count),
            reply: Cell::new(Some(self.reply)),
        });
        self.items.into_iter().enumerate().map(move |(place, item)| Entry { item, owner: owner.clone(), place })
    }
}

/// See the module.
pub struct Batcher<S: Sink> {
    sink: S,
    limits: Limits,
    filling: Filling<Group<S>>,
    /// Batches and parts that failed and are tried again.
    retries: Retries<Entry<S>>,
    /// Batches that are with the sink.
    flights: usize,
    /// A `TipNow` is in the mailbox.
    tipping: bool,
    timer: Option<SpawnHandle>,
    drained: Vec<oneshot::Sender<()>>,
}

impl<S: Sink> Batcher<S> {
    /// A batcher that writes to `sink`.
    pub fn new(sink: S, limits: Limits) -> Self {
        let filling = Filling::new(limits);
        let retries = Retries::default();
        Self { sink, limits, filling, retries, flights: 0, tipping: false, timer: None, drained: Vec::new() }
    }

    /// Writes what is due, or sets the timer for the next write.
    fn consider(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if self.tipping {
            return;
        }
        if self.flights > 0 {
            let is_full = self.filling.weight() >= self.limits.max_items;
            if self.flights < S::AT_ONCE && is_full && self.retries.is_clean() {
                self.tip(Reason::Full, ctx);
            }
            return;
        }
        let now = Instant::now();
        let (fresh, reason) = match self.filling.next(now) {
            Tip::Never => (None, Reason::Waited),
            Tip::Now(reason) => (Some(now), reason),
            Tip::At(at) => (Some(at), Reason::Waited),
        };
        match self.retries.next(now, fresh) {
            Next::Nothing => {
                for drained in self.drained.drain(..) {
                    drained.send(()).ok();
                }
            }
            Next::Fresh => self.tip(reason, ctx),
            Next::Part(part) => self.write(part, ctx),
            Next::At(at) => {
                self.timer = Some(ctx.run_later(at - now, |batcher, ctx| {
                    batcher.timer = None;
                    batcher.consider(ctx);
                }));
            }
        }
    }

    fn tip(&mut self, reason: Reason, ctx: &mut Context<Self>) {
        crate::fault_point!(S::NAME);
        let entries: Vec<_> = self.filling.take().into_iter().flat_map(Group::into_entries).collect();
        if entries.is_empty() {
            return;
        }
        self.sink.metrics().batch_tipped(S::NAME, reason, self.filling.weight());
        let part = self.retries.begin(entries, Instant::now());
        self.write(part, ctx);
    }

    fn write(&mut self, part: Part<Entry<S>>, ctx: &mut Context<Self>) {
        self.flights += 1;
        let written = write(self.sink.clone(), part).into_actor(self).map(|failed, batcher, ctx| {
            let now = Instant::now();
            match failed {
                None => batcher.retries.written(now),
                Some((part, error)) => batcher.failed(part, &error, now, ctx),
            }
            match batcher.retries.oldest() {
                None => batcher.sink.metrics().progress().works(S::NAME),
                Some((since, error)) => batcher.sink.metrics().progress().fails_since(S::NAME, since, error),
            }
            batcher.flights -= 1;
            batcher.filling.tipped(now);
            batcher.consider(ctx);
        });
        ctx.spawn(written);
    }

    fn failed(&mut self, part: Part<Entry<S>>, error: &StoreError, now: Instant, ctx: &mut Context<Self>) {
        let items = part.items.len();
        if error.is_transient() {
            log::warn!(actor = S::NAME, items, error:% = error.chain(); "a batch waits for the store");
            self.sink.metrics().batch_retried(S::NAME);
        }
        let Some(Entry { item, owner, place }) = self.retries.failed(part, error, now) else { return };
        log::error!(actor = S::NAME, error:% = error.chain(); "the store refuses an item");
        self.sink.metrics().item_refused(S::NAME);
        let (sink, refused) = (self.sink.clone(), ItemRejected(error.chain().to_string()));
        ctx.spawn(
            async move {
                sink.written(vec![item], &[Err(refused.clone())]).await;
                owner.answer(place, Err(refused));
            }
            .into_actor(self),
        );
    }
}

/// Writes a part in one transaction and answers its owners, or returns it with the error.
async fn write<S: Sink>(sink: S, mut part: Part<Entry<S>>) -> Option<(Part<Entry<S>>, StoreError)> {
    let entries = std::mem::take(&mut part.items);
    let (items, owners): (Vec<_>, Vec<_>) =
        entries.into_iter().map(|entry| (entry.item, (entry.owner, entry.place))).unzip();
    let started = Instant::now();
    log::trace!(actor = S::NAME, items = items.len(); "writing a batch");
    let answers = match sink.write(&items).await {
        Ok(answers) => answers,
        Err(error) => {
            let entries = items.into_iter().zip(owners);
            part.items = entries.map(|(item, (owner, place))| Entry { item, owner, place }).collect();
            return Some((part, error));
        }
    };
    log::trace!(actor = S::NAME, items = items.len(), micros = started.elapsed().as_micros() as u64; "batch written");
    sink.metrics().batch_written(S::NAME, items.len(), part.begun.elapsed());
    let answers: Vec<_> = answers.into_iter().map(Ok).collect();
    sink.written(items, &answers).await;
    for ((owner, place), answer) in owners.into_iter().zip(answers) {
        owner.answer(place, answer);
    }
    None
}

impl<S: Sink> Actor for Batcher<S> {
    type Context = Context<Self>;
}

impl<S: Sink> Supervised for Batcher<S> {
    fn restarting(&mut self, _: &mut Self::Context) {
        // The senders of these items see their replies dropped.
        self.sink.metrics().progress().works(S::NAME);
        *self = Self::new(self.sink.clone(), self.limits);
    }
}

impl<S: Sink> Handler<Put<S::Item, S::Answer>> for Batcher<S> {
    type Result = ResponseFuture<Answers<S::Answer>>;

    fn handle(&mut self, Put { items, .. }: Put<S::Item, S::Answer>, ctx: &mut Self::Context) -> Self::Result {
        if items.is_empty() {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let (reply, answers) = oneshot::channel();
        let now = Instant::now();
        let weight = items.iter().map(S::weight).sum();
        let first = self.filling.is_empty();
        self.filling.push(Group { items, reply }, weight, now);
        self.sink.metrics().batch_waits(S::NAME, self.filling.weight());
        if first && self.flights == 0 && self.retries.is_empty() && self.filling.is_quiet(now) {
            // Queued behind the messages in the mailbox, which all go into the same batch.
            self.tipping = true;
            ctx.address().do_send(TipNow);
        } else {
            self.consider(ctx);
        }
        Box::pin(async move { answers.await.map_err(|_| Interrupted) })
    }
}

/// Batcher → itself: the messages that were in the mailbox before this one are handled.
#[derive(Message)]
#[rtype(result = "()")]
struct TipNow;

impl<S: Sink> Handler<TipNow> for Batcher<S> {
    type Result = ();

    fn handle(&mut self, _: TipNow, ctx: &mut Self::Context) {
        self.tipping = false;
        if self.flights == 0 {
            self.tip(Reason::Quiet, ctx);
        }
    }
}

impl<S: Sink> Handler<Drain> for Batcher<S> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let (sender, drained) = oneshot::channel();
        self.drained.push(sender);
        self.consider(ctx);
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
