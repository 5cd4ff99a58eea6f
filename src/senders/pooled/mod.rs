//! The machinery of a sender that makes one call per command: queues, bounded workers, a circuit
//! breaker per host, timeouts, and recording.
//!
//! A transport implements [`Transport`], and [`PooledSender`] is the actor around it. The senders
//! for webhooks, brokers and mail are built so. A sender of one's own that doesn't need this can be
//! any actor that handles the three messages of [`senders`](super).
//!
//! Each *group* (for webhooks: each host) has its own queue, its own number of deliveries under way,
//! and its own circuit breaker. So a slow or dead host never holds up another. While a
//! breaker is open, the commands of its group wait here or with the scheduler: they stay `pending`,
//! and no attempt is counted.
//!
//! Deliveries are the jobs of a [`Pool`]. A panic costs its command one attempt. A delivery that
//! takes longer than [`Limits::timeout`] is aborted. A command that is offered again while it is in
//! hand is not delivered twice. What is finished is recorded in batches.
//!
//! Crash: what was in hand has no outcome and no open row, so the scheduler finds it in the store
//! and offers it again.

mod breaker;
mod groups;
#[cfg(test)]
mod tests;

use super::contract::{Deferred, Deliver, Delivery, Outcome, SenderContext};
use crate::metrics::DeliveryResult;
use crate::runtime::Drain;
use crate::runtime::pool::{Cause, Outcomes, Pool, StageError};
use crate::signals::Cancelled;
use crate::store::Report;
use actix::prelude::*;
use async_trait::async_trait;
pub use groups::Limits;
use groups::{Groups, Reach};
use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use uuid::Uuid;

/// Maximum number of cancelled actions that wait to be passed to the transport. Cancelling is best
/// effort: the oldest are dropped.
const MAX_CANCELS: usize = 1_000;
/// Maximum number of finished deliveries per recording.
const RECORD_AT_A_TIME: usize = 1_000;
/// How often the log names hosts that are away or back, and how many at a time. Others are counted.
const SAY_EVERY: Duration = Duration::from_secs(1);
const NAMED: usize = 20;
/// The wait of a command whose action is paused. Resuming the action brings it earlier.
const PAUSED_RETRY: Duration = Duration::from_secs(60);

/// How commands reach their agents over one transport.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The limits of the sender. Read once, when it is made.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// The group of a command, such as the host of its address. By default there is one group.
    fn group(&self, _delivery: &Delivery) -> Arc<str> {
        Arc::from("")
    }

    /// Delivers a command. May be aborted at any await after [`Limits::timeout`].
    async fn deliver(&self, delivery: &Delivery) -> Outcome;

    /// Users cancelled these actions, as (key, public id). Tells the agents that have them, as far
    /// as the transport can.
    async fn cancelled(&self, _actions: &[(i64, Uuid)]) {}

    /// The sender stops, and no delivery is under way any more.
    async fn close(&self) {}
}

/// See the module.
pub struct PooledSender<T: Transport> {
    context: SenderContext,
    transport: Arc<T>,
    groups: Groups<Delivery>,
    pool: Pool<Job, Infallible>,
    /// What the pool has finished, until the actor starts to read it.
    outcomes: Option<Outcomes<Job, Done, Infallible>>,
    /// The commands that wait, are under way, or are being recorded.
    in_hand: HashSet<(i64, i64)>,
    finished: Vec<Report>,
    is_recording: bool,
    /// Hosts that went away, with the reason, or came back, since the log last named some.
    unsaid: Vec<(Arc<str>, Option<String>)>,
    is_saying: bool,
    cancels: VecDeque<(i64, Uuid)>,
    is_cancelling: bool,
    draining: Option<oneshot::Sender<()>>,
    is_stopped: bool,
}

impl<T: Transport> PooledSender<T> {
    /// A sender over this transport.
    pub fn new(context: SenderContext, transport: T) -> Self {
        Self::over(context, Arc::new(transport))
    }

    fn over(context: SenderContext, transport: Arc<T>) -> Self {
        let limits = transport.limits();
        let deliverer = transport.clone();
        let (pool, outcomes) = Pool::builder()
            .stage("deliver", limits.concurrency, move |(group, delivery): Job| {
                let transport = deliverer.clone();
                async move {
                    crate::fault_point!("pooled_sender.deliver");
                    let outcome = transport.deliver(&delivery).await;
                    Ok((group, delivery, outcome))
                }
            })
            .timeout(limits.timeout)
            .build();
        Self {
            context,
            transport,
            groups: Groups::new(limits),
            pool,
            outcomes: Some(outcomes),
            in_hand: HashSet::new(),
            finished: Vec::new(),
            is_recording: false,
            unsaid: Vec::new(),
            is_saying: false,
            cancels: VecDeque::new(),
            is_cancelling: false,
            draining: None,
            is_stopped: false,
        }
    }

    /// Starts deliveries as far as there is room.
    fn start(&mut self) {
        while !self.is_stopped && self.finished.len() < RECORD_AT_A_TIME {
            let Some((group, delivery)) = self.groups.start(Instant::now()) else { break };
            let now = self.context.store.now();
            let action = &delivery.action;
            // A reconciler closes what is cancelled or expired.
            if action.is_cancelled() || action.expires_at <= now {
                self.in_hand.remove(&delivery.key());
                self.groups.end(&group, None, Instant::now(), 0.0);
                continue;
            }
            if action.is_paused() {
                let postponed = delivery.report(Outcome::Postponed { after: PAUSED_RETRY }, now);
                self.groups.end(&group, None, Instant::now(), 0.0);
                self.finished.push(postponed);
                continue;
            }
            // The pool has a worker and a place in its queue for each delivery under way.
            if let Err(refused) = self.pool.try_submit((group, delivery)) {
                let (group, delivery) = refused.into_job();
                self.in_hand.remove(&delivery.key());
                self.groups.end(&group, None, Instant::now(), 0.0);
            }
        }
        self.show();
    }

    fn show(&self) {
        let (waiting, running, away) = self.groups.numbers();
        self.context.status().set(waiting, running, away);
    }

    fn end(&mut self, group: Arc<str>, delivery: Delivery, ended: Ended, ctx: &mut Context<Self>) {
        let (reach, result) = ended.judged();
        if let Some(result) = result {
            self.context.status().count(result);
        }
        let reason = ended.reason();
        let was_away = self.groups.is_away(&group);
        let outcome = match ended {
            Ended::Outcome(Outcome::Away { .. }) => {
                self.groups.put_back(&group, delivery);
                None
            }
            Ended::Outcome(outcome) => Some((delivery, outcome)),
            Ended::Panicked => {
                let error = "the sender panicked".to_owned();
                Some((delivery, Outcome::AttemptFailed { error, retry_after: None }))
            }
            Ended::NotStarted => {
                self.in_hand.remove(&delivery.key());
                None
            }
        };
        if let Some((delivery, outcome)) = outcome {
            self.finished.push(delivery.report(outcome, self.context.store.now()));
        }
        let wait = self.groups.end(&group, reach, Instant::now(), rand::random());
        if self.groups.is_away(&group) != was_away {
            self.unsaid.push((group.clone(), reason));
            self.say(ctx);
        }
        if let Some(wait) = wait {
            self.wake_later(group, wait, ctx);
        }
        self.start();
        self.record(ctx);
    }

    /// Logs which hosts went away, with a reason, and which came back; once a second.
    fn say(&mut self, ctx: &mut Context<Self>) {
        if self.is_saying || self.unsaid.is_empty() {
            return;
        }
        self.is_saying = true;
        let unsaid = std::mem::take(&mut self.unsaid);
        let (away, back): (Vec<_>, Vec<_>) = unsaid.into_iter().partition(|(_, reason)| reason.is_some());
        let transport = self.context.transport();
        if let Some((_, Some(reason))) = away.first() {
            let (hosts, reason) = (names(&away), reason.as_str());
            log::warn!(transport, hosts, reason; "receivers can't be reached: commands to them wait");
        }
        if !back.is_empty() {
            log::info!(transport, hosts = names(&back); "receivers are reached again");
        }
        ctx.run_later(SAY_EVERY, |sender, ctx| {
            sender.is_saying = false;
            sender.say(ctx);
        });
    }

    fn wake_later(&self, group: Arc<str>, wait: Duration, ctx: &mut Context<Self>) {
        ctx.run_later(wait, move |sender, ctx| {
            if let Some(left) = sender.groups.wake(&group, Instant::now()) {
                sender.wake_later(group, left, ctx);
            }
            sender.start();
            sender.record(ctx);
        });
    }

    /// Records what is finished, one batch at a time.
    fn record(&mut self, ctx: &mut Context<Self>) {
        if self.is_recording {
            return;
        }
        if self.finished.is_empty() {
            return self.finish_drain();
        }
        self.is_recording = true;
        let reports = std::mem::take(&mut self.finished);
        let keys: Vec<(i64, i64)> = reports.iter().map(|report| (report.action_no, report.agent_no)).collect();
        let context = self.context.clone();
        let recorded = async move { context.record_patiently(reports).await };
        ctx.spawn(recorded.into_actor(self).map(move |_, sender, ctx| {
            sender.is_recording = false;
            for key in keys {
                sender.in_hand.remove(&key);
            }
            sender.start();
            sender.record(ctx);
        }));
    }

    fn finish_drain(&mut self) {
        if self.is_stopped
            && self.groups.numbers().1 == 0
            && let Some(drained) = self.draining.take()
        {
            drained.send(()).ok();
        }
    }

    fn pass_cancels(&mut self, ctx: &mut Context<Self>) {
        if self.is_cancelling || self.cancels.is_empty() || self.is_stopped {
            return;
        }
        self.is_cancelling = true;
        let actions: Vec<(i64, Uuid)> = std::mem::take(&mut self.cancels).into();
        let transport = self.transport.clone();
        let task = tokio::spawn(async move { transport.cancelled(&actions).await });
        ctx.spawn(task.into_actor(self).map(|passed, sender, ctx| {
            if passed.is_err() {
                log::warn!(transport = sender.context.transport(); "agents were not told of a cancel, since the sender panicked");
            }
            sender.is_cancelling = false;
            sender.pass_cancels(ctx);
        }));
    }
}

/// The names of hosts, as far as the log has room for them. The one group of a sender without hosts has none.
fn names(hosts: &[(Arc<str>, Option<String>)]) -> String {
    let named: Vec<&str> = hosts.iter().map(|(host, _)| &**host).take(NAMED).collect();
    match hosts.len() - named.len() {
        0 if named == [""] => "all".to_owned(),
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A delivery to its group.
type Job = (Arc<str>, Delivery);
/// A delivery that has an outcome.
type Done = (Arc<str>, Delivery, Outcome);

/// How a delivery ended.
enum Ended {
    Outcome(Outcome),
    Panicked,
    NotStarted,
}

impl Ended {
    /// Why the host was not reached.
    fn reason(&self) -> Option<String> {
        match self {
            Self::Outcome(Outcome::Unreachable { error } | Outcome::Away { error }) => Some(error.clone()),
            _ => None,
        }
    }

    /// What the breaker and the counters make of it. `None`: nothing.
    fn judged(&self) -> (Option<Reach>, Option<DeliveryResult>) {
        use Outcome::{AttemptFailed, Away, Failed, Postponed, Queued, Received, Succeeded, Unreachable};
        match self {
            Self::Outcome(Succeeded(_) | Received | Queued) => (Some(Reach::Reached), Some(DeliveryResult::Delivered)),
            Self::Outcome(Failed { .. }) => (Some(Reach::Reached), Some(DeliveryResult::Refused)),
            Self::Outcome(AttemptFailed { .. }) => (Some(Reach::Reached), Some(DeliveryResult::AttemptFailed)),
            Self::Outcome(Unreachable { .. }) => (Some(Reach::Unreached), Some(DeliveryResult::AttemptFailed)),
            Self::Outcome(Away { .. }) => (Some(Reach::Unreached), None),
            Self::Outcome(Postponed { .. }) => (None, None),
            Self::Panicked => (None, Some(DeliveryResult::Panicked)),
            Self::NotStarted => (None, None),
        }
    }
}

impl<T: Transport> Actor for PooledSender<T> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(outcomes) = self.outcomes.take() {
            ctx.add_stream(outcomes.into_stream());
        }
    }
}

impl<T: Transport> StreamHandler<Result<Done, StageError<Job, Infallible>>> for PooledSender<T> {
    fn handle(&mut self, done: Result<Done, StageError<Job, Infallible>>, ctx: &mut Self::Context) {
        let (group, delivery, ended) = match done {
            Ok((group, delivery, outcome)) => (group, delivery, Ended::Outcome(outcome)),
            Err(StageError { item: (group, delivery), cause, .. }) => {
                let ended = match cause {
                    Cause::TimedOut(after) => {
                        let error = format!("no answer within {}", humantime::format_duration(after));
                        Ended::Outcome(Outcome::Unreachable { error })
                    }
                    Cause::Panicked(_) => Ended::Panicked,
                    Cause::Cancelled | Cause::NotStarted => Ended::NotStarted,
                    Cause::Failed(never) => match never {},
                };
                (group, delivery, ended)
            }
        };
        self.end(group, delivery, ended, ctx);
    }

    // The pool ends with the actor.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl<T: Transport> Supervised for PooledSender<T> {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Nothing is left to drain. What was in hand is offered again.
        self.draining.take().map(|drained| drained.send(()));
        let fresh = Self::over(self.context.clone(), self.transport.clone());
        *self = Self { is_stopped: self.is_stopped, ..fresh };
    }
}

impl<T: Transport> Handler<Deliver> for PooledSender<T> {
    type Result = MessageResult<Deliver>;

    fn handle(&mut self, Deliver(deliveries): Deliver, ctx: &mut Self::Context) -> Self::Result {
        crate::fault_point!("pooled_sender");
        let now = Instant::now();
        let mut deferred = Vec::new();
        for delivery in deliveries {
            if self.is_stopped {
                deferred.push(Deferred { delivery, after: Duration::from_secs(1) });
                continue;
            }
            let key = delivery.key();
            if self.in_hand.contains(&key) {
                continue;
            }
            let group = self.transport.group(&delivery);
            match self.groups.add(&group, delivery, now) {
                Ok(()) => {
                    self.in_hand.insert(key);
                }
                Err((delivery, after)) => deferred.push(Deferred { delivery, after }),
            }
        }
        self.start();
        self.record(ctx);
        MessageResult(deferred)
    }
}

impl<T: Transport> Handler<Cancelled> for PooledSender<T> {
    type Result = ();

    fn handle(&mut self, Cancelled(actions): Cancelled, ctx: &mut Self::Context) {
        self.cancels.extend(actions);
        let over = self.cancels.len().saturating_sub(MAX_CANCELS);
        self.cancels.drain(..over);
        self.pass_cancels(ctx);
    }
}

impl<T: Transport> Handler<Drain> for PooledSender<T> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        // What waits stays pending in the store. What is under way is finished and recorded.
        self.is_stopped = true;
        self.groups.take_waiting();
        self.show();
        let (sender, drained) = oneshot::channel();
        self.draining = Some(sender);
        self.record(ctx);
        let transport = self.transport.clone();
        Box::pin(async move {
            drained.await.ok();
            transport.close().await;
        })
    }
}
