//! Gathers items from many senders and writes them in one transaction: the one mechanism behind the command store, the
//! outcomes and the sessions.
//!
//! Whoever puts items in gets their answers after the commit. While one batch is written the next one fills. A batch that
//! can't be written because the store is away is tried again with backoff, for as long as it takes: it is never
//! dropped, and since senders have a bounded number of puts under way, the pressure goes back to them. A batch that the
//! store *refuses* is split until the item at fault is found; that one is answered with the error.
//!
//! Dies: what it holds is dropped and its senders get an error; they read the store, or put it in again.

use super::messages::Drain;
use crate::domain::batch::{Filling, Limits, Reason, Tip};
use crate::metrics::Metrics;
use crate::store::{StoreError, StoreResult};
use actix::prelude::*;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The first wait after the store was away.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest one.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Where a batcher's items go.
pub trait Sink: Clone + Unpin + 'static {
    /// What is put in.
    type Item: 'static + Send + Unpin;
    /// What comes back for each, after the commit.
    type Answer: 'static + Send + Unpin;

    /// The actor's name, for logs.
    const NAME: &'static str;

    /// How much of a batch an item takes up.
    fn weight(_item: &Self::Item) -> usize {
        1
    }

    /// Where it counts.
    fn metrics(&self) -> &Metrics;

    /// Writes all items in one transaction, or none; answers in their order.
    fn write(&self, items: &[Self::Item]) -> impl Future<Output = StoreResult<Vec<Self::Answer>>>;

    /// Tells others what is durable now, before the answers go out.
    fn written(&self, items: Vec<Self::Item>, answers: &[Result<Self::Answer, Refused>]) -> impl Future<Output = ()>;
}

/// The store won't take an item, now or later.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Anyone → batcher: these items; answered in order after the commit. An error means that the batcher fell.
pub struct Put<S: Sink>(pub Vec<S::Item>);

/// The answers to a [`Put`]; `None`: the batcher fell, and whether the items were written is for the store to say.
pub type Answers<S> = Option<Vec<Result<<S as Sink>::Answer, Refused>>>;

impl<S: Sink> Message for Put<S> {
    type Result = Answers<S>;
}

struct Group<S: Sink> {
    items: Vec<S::Item>,
    reply: oneshot::Sender<Vec<Result<S::Answer, Refused>>>,
}

/// See the module.
pub struct Batcher<S: Sink> {
    sink: S,
    limits: Limits,
    filling: Filling<Group<S>>,
    flushing: bool,
    /// A `TipNow` is in the mailbox.
    tipping: bool,
    timer: Option<SpawnHandle>,
    drained: Vec<oneshot::Sender<()>>,
}

impl<S: Sink> Batcher<S> {
    /// A batcher that writes to `sink`.
    pub fn new(sink: S, limits: Limits) -> Self {
        let filling = Filling::new(limits);
        Self { sink, limits, filling, flushing: false, tipping: false, timer: None, drained: Vec::new() }
    }

    /// Tips, or sets the timer to when that is due.
    fn consider(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if self.flushing || self.tipping {
            return;
        }
        let now = Instant::now();
        match self.filling.next(now) {
            Tip::Never => {
                for drained in self.drained.drain(..) {
                    drained.send(()).ok();
                }
            }
            Tip::Now(reason) => self.tip(reason, ctx),
            Tip::At(at) => {
                self.timer = Some(ctx.run_later(at - now, |batcher, ctx| {
                    batcher.timer = None;
                    batcher.consider(ctx);
                }));
            }
        }
    }

    fn tip(&mut self, reason: Reason, ctx: &mut Context<Self>) {
        crate::fault_point!(S::NAME);
        let groups = self.filling.take();
        if groups.is_empty() {
            return;
        }
        self.flushing = true;
        self.sink.metrics().batch_tipped(S::NAME, reason, self.filling.weight());
        let sink = self.sink.clone();
        let flushed = flush(sink, groups).into_actor(self).map(|(), batcher, ctx| {
            batcher.flushing = false;
            batcher.filling.tipped(Instant::now());
            batcher.consider(ctx);
        });
        ctx.spawn(flushed);
    }
}

/// Writes the groups, and answers each of them.
async fn flush<S: Sink>(sink: S, groups: Vec<Group<S>>) {
    let mut items = Vec::new();
    let mut replies = Vec::new();
    for group in groups {
        replies.push((group.items.len(), group.reply));
        items.extend(group.items);
    }
    let started = Instant::now();
    log::trace!(actor = S::NAME, items = items.len(); "writing a batch");
    let answers = write_all(&sink, &items).await;
    log::trace!(actor = S::NAME, items = items.len(), micros = started.elapsed().as_micros() as u64; "batch written");
    sink.metrics().batch_written(S::NAME, items.len(), started.elapsed());

    sink.written(items, &answers).await;
    let mut answers = answers.into_iter();
    for (count, reply) in replies {
        // A sender that no longer waits has gone; what it put in is durable all the same.
        reply.send(answers.by_ref().take(count).collect()).ok();
    }
}

/// Writes `items` as one batch; where the store refuses, as two halves, down to the single item at fault.
async fn write_all<S: Sink>(sink: &S, items: &[S::Item]) -> Vec<Result<S::Answer, Refused>> {
    let mut answers = Vec::with_capacity(items.len());
    let mut parts = Vec::from([items]);
    while let Some(part) = parts.pop() {
        match write_patiently(sink, part).await {
            Ok(written) => answers.extend(written.into_iter().map(Ok)),
            Err(error) if part.len() <= 1 => {
                log::error!(actor = S::NAME, error = error.to_string().as_str(); "the store refuses an item");
                answers.extend(part.iter().map(|_| Err(Refused(error.to_string()))));
            }
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    answers
}

/// Tries until the store takes the batch or refuses it for good.
async fn write_patiently<S: Sink>(sink: &S, items: &[S::Item]) -> Result<Vec<S::Answer>, StoreError> {
    let mut wait = RETRY_MIN;
    loop {
        match sink.write(items).await {
            Err(error) if error.is_transient() => {
                log::warn!(actor = S::NAME, items = items.len(), error = error.to_string().as_str(),
                                        again_in_ms = wait.as_millis() as u64; "a batch waits for the store");
                sink.metrics().batch_retried(S::NAME);

                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            done => return done,
        }
    }
}

impl<S: Sink> Actor for Batcher<S> {
    type Context = Context<Self>;
}

impl<S: Sink> Supervised for Batcher<S> {
    fn restarting(&mut self, _: &mut Self::Context) {
        // The senders of what was in here see their replies dropped.
        *self = Self::new(self.sink.clone(), self.limits);
    }
}

impl<S: Sink> Handler<Put<S>> for Batcher<S> {
    type Result = ResponseFuture<Answers<S>>;

    fn handle(&mut self, Put(items): Put<S>, ctx: &mut Self::Context) -> Self::Result {
        let (reply, answers) = oneshot::channel();
        let now = Instant::now();
        let weight = items.iter().map(S::weight).sum();
        let first = self.filling.is_empty();
        self.filling.push(Group { items, reply }, weight, now);
        self.sink.metrics().batch_waits(S::NAME, self.filling.weight());
        if first && !self.flushing && self.filling.is_quiet(now) {
            // Behind what is in the mailbox already: all of that goes into the same batch.
            self.tipping = true;
            ctx.address().do_send(TipNow);
        } else {
            self.consider(ctx);
        }
        Box::pin(async move { answers.await.ok() })
    }
}

/// To itself: the mailbox holds nothing more that came before the first item.
#[derive(Message)]
#[rtype(result = "()")]
struct TipNow;

impl<S: Sink> Handler<TipNow> for Batcher<S> {
    type Result = ();

    fn handle(&mut self, _: TipNow, ctx: &mut Self::Context) {
        self.tipping = false;
        if !self.flushing {
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
