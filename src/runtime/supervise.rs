//! Keeps actors alive: a panic costs the current message and nothing else.
//!
//! `actix::Supervisor` restarts an actor that *stops*, but a panic takes actor, supervisor and
//! mailbox with it. So [`Unstarted::start`] drives actix's own `ContextFut` from a future that
//! polls it inside `catch_unwind`. After a panic it waits (backoff with jitter) and calls
//! `ContextFut::restart`, which drops what the actor had spawned, calls `Supervised::restarting`
//! and then `started`. The mailbox keeps its queue in the meantime. The sender of the message that
//! panicked gets `MailboxError::Closed`.
//!
//! Actix keeps the same actor *value* over a restart, half-changed as the panic left it.
//! `restarting` must reset it to an empty state, and `started` must fill it from the store.
//!
//! More than `max_restarts` of one actor `within` a time means that restarts don't help. The actor
//! is then left stopped, so that no part waits for it, not even the drain. The [`Supervision`]
//! escalates: the process drains and exits with an error, so that the service manager restarts it.

use super::health::{ActorHealth, Supervision};
use actix::dev::ContextFut;
use actix::prelude::*;
use rand::RngExt;
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

/// Capacity of an actor's mailbox. Senders that await replies have their own bounds; this one is
/// for hints.
const MAILBOX: usize = 4_096;

/// The address of an actor that isn't started yet. Messages to it wait in its mailbox. So actors
/// that send to each other can be started one after the other, and every address is known from the
/// beginning.
#[must_use = "messages to an actor that is never started are never handled"]
pub struct Unstarted<A: Actor<Context = Context<A>>>(Context<A>);

impl<A: Supervised + Actor<Context = Context<A>> + Unpin> Default for Unstarted<A> {
    fn default() -> Self {
        Self::new(MAILBOX)
    }
}

impl<A: Supervised + Actor<Context = Context<A>> + Unpin> Unstarted<A> {
    /// An actor with a mailbox of this capacity. Senders that await a reply are bounded by their
    /// credits; the mailbox bounds the others.
    pub fn new(mailbox: usize) -> Self {
        let mut context = Context::new();
        context.set_mailbox_capacity(mailbox);
        Self(context)
    }

    /// The actor's address.
    pub fn address(&self) -> Addr<A> {
        self.0.address()
    }

    /// Starts `actor` on this arbiter under supervision.
    pub fn start(self, name: &'static str, actor: A, supervision: &Supervision) -> Addr<A> {
        let address = self.0.address();
        let health = supervision.register(name);
        let supervision = supervision.clone();
        let run = self.0.into_future(actor);
        actix_rt::spawn(SupervisedActor { name, run, pause: None, health, supervision });
        address
    }
}

/// The future that keeps one actor running.
struct SupervisedActor<A: Supervised + Actor<Context = Context<A>>> {
    name: &'static str,
    run: ContextFut<A, Context<A>>,
    /// The wait before the next restart.
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    health: Arc<ActorHealth>,
    supervision: Supervision,
}

impl<A: Supervised + Actor<Context = Context<A>> + Unpin> Future for SupervisedActor<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.pause = None;
                // `restarting` is the actor's own code and may panic too.
                match catch_unwind(AssertUnwindSafe(|| this.run.restart())) {
                    Ok(true) => this.health.set_running(),
                    Ok(false) => {
                        this.health.set_stopped();
                        return Poll::Ready(());
                    }
                    Err(panic) => {
                        if this.crashed(&text_of(&*panic)) {
                            continue;
                        }
                        return Poll::Ready(());
                    }
                }
            }
            let restarts = match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.run).poll(cx))) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(())) if this.supervision.is_draining() => {
                    this.health.set_stopped();
                    return Poll::Ready(());
                }
                Ok(Poll::Ready(())) => this.crashed("it stopped by itself"),
                Err(panic) => this.crashed(&text_of(&*panic)),
            };
            if !restarts {
                // The mailbox is dropped with this future, so pending requests fail.
                return Poll::Ready(());
            }
        }
    }
}

impl<A: Supervised + Actor<Context = Context<A>>> SupervisedActor<A> {
    /// Counts the crash and sets the wait before the restart. False if the actor is not restarted.
    fn crashed(&mut self, cause: &str) -> bool {
        let recent = self.health.crashed(cause, self.supervision.limits().within.0);
        let limits = self.supervision.limits();
        if recent > limits.max_restarts as usize {
            log::error!(actor = self.name, cause, crashes = recent; "an actor crashed too often and is not restarted");
            self.health.set_stopped();
            self.supervision.escalate(self.name);
            return false;
        }
        log::error!(actor = self.name, cause, restarts = recent; "an actor crashed and is restarted");
        let wait = restart_wait(recent, limits.backoff_min.0, limits.backoff_max.0, rand::rng().random());
        self.pause = Some(Box::pin(tokio::time::sleep(wait)));
        true
    }
}

/// The wait before the `n`th restart in a row (from 1): doubling, capped, and reduced by up to half
/// by `jitter`.
fn restart_wait(n: usize, min: Duration, max: Duration, jitter: f64) -> Duration {
    let doublings = u32::try_from(n.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
    min.saturating_mul(1 << doublings).min(max).mul_f64(1.0 - jitter / 2.0)
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

/// A place where tests inject faults through `FAILPOINTS`: `fault_point!("outcomes")`. Compiles to
/// nothing in a release build.
#[macro_export]
macro_rules! fault_point {
    ($name:expr) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name);
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Supervision as SupervisionConfig;
    use crate::domain::time::Span;

    #[derive(Default)]
    struct Counter {
        sum: u32,
    }

    impl Actor for Counter {
        type Context = Context<Self>;
    }

    impl Supervised for Counter {
        fn restarting(&mut self, _: &mut Self::Context) {
            self.sum = 0;
        }
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Add(u32);

    impl Handler<Add> for Counter {
        type Result = u32;

        fn handle(&mut self, Add(number): Add, _: &mut Self::Context) -> u32 {
            self.sum += number;
            assert!(number != 13, "thirteen");
            self.sum
        }
    }

    fn supervision(max_restarts: u32) -> Supervision {
        Supervision::new(SupervisionConfig {
            max_restarts,
            backoff_min: Span::millis(1),
            backoff_max: Span::millis(2),
            ..SupervisionConfig::default()
        })
    }

    #[actix_rt::test]
    async fn a_panic_costs_the_message_in_hand_and_nothing_else() {
        let supervision = supervision(10);
        let counter = Unstarted::new(16).start("counter", Counter::default(), &supervision);
        assert_eq!(counter.send(Add(1)).await.expect("alive"), 1);
        let (fatal, queued) = (counter.send(Add(13)), counter.send(Add(2)));
        let (fatal, queued) = futures_util::join!(fatal, queued);
        assert!(matches!(fatal, Err(MailboxError::Closed)));
        assert_eq!(queued.expect("handled after the restart, with a fresh state"), 2);
        let report = &supervision.reports()[0];
        assert_eq!((report.name, report.restarts, report.state.as_str()), ("counter", 1, "running"));
        assert_eq!(report.last_cause.as_deref(), Some("thirteen"));
    }

    #[actix_rt::test]
    async fn over_the_budget_it_escalates() {
        let supervision = supervision(2);
        let counter = Unstarted::new(16).start("counter", Counter::default(), &supervision);
        for _ in 0..3 {
            assert!(counter.send(Add(13)).await.is_err());
        }
        assert_eq!(supervision.escalated().await, "counter");
        assert!(counter.send(Add(1)).await.is_err(), "nobody may wait for an actor that is not restarted");
        assert_eq!(supervision.reports()[0].state, "stopped");
    }

    /// Stops at once, or panics when it is restarted.
    #[derive(Default)]
    struct Fragile {
        stops: bool,
        panics: u32,
        starts: u32,
    }

    impl Actor for Fragile {
        type Context = Context<Self>;

        fn started(&mut self, ctx: &mut Self::Context) {
            self.starts += 1;
            if self.stops && self.starts == 1 {
                ctx.stop();
            }
        }
    }

    impl Supervised for Fragile {
        fn restarting(&mut self, _: &mut Self::Context) {
            if self.panics > 0 {
                self.panics -= 1;
                panic!("it panics when it is restarted");
            }
        }
    }

    impl Handler<Add> for Fragile {
        type Result = u32;

        fn handle(&mut self, Add(number): Add, _: &mut Self::Context) -> u32 {
            assert!(number != 13, "thirteen");
            self.starts
        }
    }

    #[actix_rt::test]
    async fn an_actor_that_stops_by_itself_is_restarted() {
        let supervision = supervision(10);
        let fragile = Fragile { stops: true, ..Fragile::default() };
        let fragile = Unstarted::new(16).start("fragile", fragile, &supervision);
        assert_eq!(fragile.send(Add(1)).await.expect("handled after the restart"), 2);
        assert_eq!(supervision.reports()[0].last_cause.as_deref(), Some("it stopped by itself"));
    }

    #[actix_rt::test]
    async fn an_actor_that_stops_during_the_drain_stays_stopped() {
        let supervision = supervision(10);
        supervision.set_draining();
        let fragile = Fragile { stops: true, ..Fragile::default() };
        let fragile = Unstarted::new(16).start("fragile", fragile, &supervision);
        assert!(fragile.send(Add(1)).await.is_err());
        assert_eq!((supervision.reports()[0].state.as_str(), supervision.reports()[0].restarts), ("stopped", 0));
    }

    #[actix_rt::test]
    async fn a_panic_during_a_restart_counts_as_another_crash() {
        let supervision = supervision(10);
        let fragile = Fragile { panics: 2, ..Fragile::default() };
        let fragile = Unstarted::new(16).start("fragile", fragile, &supervision);
        assert!(fragile.send(Add(13)).await.is_err());
        assert_eq!(fragile.send(Add(1)).await.expect("handled after the third restart"), 2);
        assert_eq!(supervision.reports()[0].restarts, 3);
    }

    #[actix_rt::test]
    async fn messages_to_an_actor_that_is_not_started_wait_in_its_mailbox() {
        let unstarted = Unstarted::<Counter>::default();
        let early = unstarted.address().send(Add(5));
        let supervision = supervision(10);
        unstarted.start("counter", Counter::default(), &supervision);
        assert_eq!(early.await.expect("it is handled"), 5);
    }

    #[test]
    fn the_wait_doubles_up_to_its_cap() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(10));
        assert_eq!(restart_wait(1, min, max, 0.0), min);
        assert_eq!(restart_wait(3, min, max, 0.0), Duration::from_millis(200));
        assert_eq!(restart_wait(99, min, max, 0.0), max);
        assert_eq!(restart_wait(1, min, max, 1.0), Duration::from_millis(25));
    }
}
