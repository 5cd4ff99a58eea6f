//! Reads what is missing from the store and does it. The resolver, the spool loader and everything
//! under `reconcilers/` run in this loop.
//!
//! A reconciler takes no input. It is woken by [`Wake`] and by its period, and each round reads the
//! store anew. So a lost signal costs a period, and a crash costs nothing: the restart begins with
//! an empty state and a round. Rounds never overlap. A wake-up during a round causes another round.
//!
//! Rejected: carrying the work in messages. A message is lost when an actor crashes or a mailbox is
//! full. Then two paths have to agree: the one by message and the one that polls.

use super::lifecycle::{Drain, Wake};
use crate::error_chain::ErrorChain;
use crate::metrics::Progress;
use actix::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// The shortest time between two warnings about failing rounds.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// When the next round begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At the next wake-up, or after the period.
    Wait,
    /// At once: there is more work.
    Again,
    /// After this time at the earliest, woken or not.
    Rest(Duration),
    /// After this time, and not sooner, though nothing wakes it.
    After(Duration),
}

/// What happens to a round in progress when the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrain {
    /// The round is finished, with everything it left in flight.
    Finish,
    /// The round is dropped where it is. Each of its steps is a transaction, and the next process
    /// continues there.
    Abandon,
}

/// Why a round could not do all of its work.
#[derive(Debug)]
pub struct RoundFailed(pub String);

impl<E: std::error::Error + 'static> From<E> for RoundFailed {
    fn from(error: E) -> Self {
        Self(error.chain().to_string())
    }
}

/// The work of a [`Reconciler`].
pub trait Reconcile: 'static {
    /// The actor's name, in logs, metrics and `/readyz`.
    const NAME: &'static str;
    /// How long to wait after a wake-up, so that a burst of wake-ups causes one round.
    const DEBOUNCE: Duration = Duration::ZERO;
    /// What happens to a round when the process stops.
    const ON_DRAIN: OnDrain = OnDrain::Abandon;

    /// The longest time between two rounds.
    fn period(&self) -> Duration;

    /// Reads what is missing and does it.
    ///
    /// # Errors
    /// The reason why the round could not do all of its work. It is logged and shown in `/readyz`.
    /// The next round begins after half a period at the earliest, woken or not.
    fn run_once(&mut self) -> impl Future<Output = Result<Pace, RoundFailed>>;

    /// What keeps failing and is tried again, each piece of work after its own pause, although the round could do the
    /// rest. It is shown in `/readyz`.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Resolves when some of the work that rounds left in flight is done, and another round may
    /// find more. Dropping the future loses nothing.
    fn in_flight(&mut self) -> impl Future<Output = ()> {
        std::future::pending()
    }

    /// Whether nothing is in flight.
    fn is_idle(&self) -> bool {
        true
    }

    /// The process stops: end the work in flight soon.
    fn stop(&mut self) {}
}

/// State that the actor and its loop share.
#[derive(Clone, Default)]
struct Shared {
    wake: Rc<Notify>,
    stop: Rc<Notify>,
    is_stopped: Rc<Cell<bool>>,
}

/// See the module.
pub struct Reconciler<R: Reconcile> {
    /// Makes an empty state, at the start and after each crash.
    make: Box<dyn Fn() -> R>,
    progress: Progress,
    shared: Shared,
    running: Option<SpawnHandle>,
    drained: Vec<oneshot::Sender<()>>,
}

impl<R: Reconcile> Reconciler<R> {
    /// A reconciler that calls `make` for its state at each start, and reports failing rounds to
    /// `progress`.
    pub fn new(progress: Progress, make: impl Fn() -> R + 'static) -> Self {
        Self { make: Box::new(make), progress, shared: Shared::default(), running: None, drained: Vec::new() }
    }

    fn answer_drains(&mut self) {
        for drained in self.drained.drain(..) {
            drained.send(()).ok();
        }
    }
}

/// Runs rounds until the process stops.
async fn run<R: Reconcile>(mut reconcile: R, progress: Progress, shared: Shared) {
    let mut warned: Option<Instant> = None;
    while !shared.is_stopped.get() {
        crate::fault_point!(R::NAME);
        let pace = match reconcile.run_once().await {
            Ok(pace) => {
                match reconcile.trouble() {
                    Some(text) => progress.fails(R::NAME, &text),
                    None => progress.works(R::NAME),
                }
                warned = None;
                pace
            }
            Err(error) => {
                let RoundFailed(text) = error;
                progress.fails(R::NAME, &text);
                if warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                    warned = Some(Instant::now());
                    log::warn!(actor = R::NAME, error = text.as_str(); "a round failed; it is tried again");
                }
                Pace::Rest(reconcile.period() / 2)
            }
        };
        wait(&mut reconcile, pace, &shared).await;
    }
    reconcile.stop();
    while !reconcile.is_idle() {
        reconcile.in_flight().await;
    }
}

/// Waits until the next round is due, or the process stops.
async fn wait<R: Reconcile>(reconcile: &mut R, pace: Pace, shared: &Shared) {
    let (now, period) = (Instant::now(), reconcile.period());
    let (not_before, period) = match pace {
        Pace::Again => return,
        Pace::Wait => (now, period),
        Pace::Rest(rest) => (now + rest, period),
        Pace::After(rest) => (now + rest, rest),
    };
    tokio::select! {
        () = shared.stop.notified() => return,
        () = shared.wake.notified() => {}
        () = reconcile.in_flight() => {}
        () = sleep_until(now + period) => {}
    }
    let until = not_before.max(if R::DEBOUNCE.is_zero() { now } else { Instant::now() + R::DEBOUNCE });
    while Instant::now() < until {
        tokio::select! {
            () = shared.stop.notified() => return,
            () = reconcile.in_flight() => {}
            () = sleep_until(until) => {}
        }
    }
}

impl<R: Reconcile> Actor for Reconciler<R> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.shared.is_stopped.get() {
            return;
        }
        let run = run((self.make)(), self.progress.clone(), self.shared.clone());
        self.running = Some(ctx.spawn(run.into_actor(self).map(|(), reconciler, _| {
            reconciler.running = None;
            reconciler.answer_drains();
        })));
    }
}

impl<R: Reconcile> Supervised for Reconciler<R> {
    fn restarting(&mut self, _: &mut Self::Context) {
        // The work in progress is in the store; nothing is left to drain.
        self.running = None;
        self.answer_drains();
    }
}

impl<R: Reconcile> Handler<Wake> for Reconciler<R> {
    type Result = ();

    fn handle(&mut self, _: Wake, _: &mut Self::Context) {
        self.shared.wake.notify_one();
    }
}

impl<R: Reconcile> Handler<Drain> for Reconciler<R> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.shared.is_stopped.set(true);
        self.shared.stop.notify_one();
        if R::ON_DRAIN == OnDrain::Abandon
            && let Some(running) = self.running.take()
        {
            ctx.cancel_future(running);
        }
        let (sender, drained) = oneshot::channel();
        self.drained.push(sender);
        if self.running.is_none() {
            self.answer_drains();
        }
        Box::pin(async move {
            drained.await.ok();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Supervision as SupervisionConfig;
    use crate::domain::time::Span;
    use crate::runtime::{Supervision, Unstarted};
    use std::sync::{Arc, Mutex, PoisonError};
    use tokio::sync::mpsc;

    /// The steps of the next rounds, and a channel that reports them.
    #[derive(Clone)]
    struct Script {
        rounds: mpsc::UnboundedSender<&'static str>,
        next: Arc<Mutex<Vec<Step>>>,
        period: Duration,
    }

    #[derive(Clone, Copy)]
    enum Step {
        Is(Pace),
        Fails,
        Panics,
        Takes(Duration),
    }

    struct Scripted(Script);

    impl Reconcile for Scripted {
        const NAME: &'static str = "scripted";
        const ON_DRAIN: OnDrain = OnDrain::Finish;

        fn period(&self) -> Duration {
            self.0.period
        }

        async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
            self.0.rounds.send("begins").ok();
            let step = self.0.next.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match step {
                None => Ok(Pace::Wait),
                Some(Step::Is(pace)) => Ok(pace),
                Some(Step::Fails) => Err(RoundFailed("it is away".into())),
                Some(Step::Panics) => panic!("a scripted panic"),
                Some(Step::Takes(long)) => {
                    tokio::time::sleep(long).await;
                    self.0.rounds.send("ends").ok();
                    Ok(Pace::Wait)
                }
            }
        }
    }

    struct Fixture {
        address: Addr<Reconciler<Scripted>>,
        rounds: mpsc::UnboundedReceiver<&'static str>,
        progress: Progress,
        supervision: Supervision,
    }

    const NEVER: Duration = Duration::from_secs(3_600);

    fn start(period: Duration, mut steps: Vec<Step>) -> Fixture {
        steps.reverse();
        let (sender, rounds) = mpsc::unbounded_channel();
        let script = Script { rounds: sender, next: Arc::new(Mutex::new(steps)), period };
        let supervision = Supervision::new(SupervisionConfig {
            backoff_min: Span::millis(1),
            backoff_max: Span::millis(2),
            ..SupervisionConfig::default()
        });
        let progress = Progress::default();
        let reconciler = Reconciler::new(progress.clone(), move || Scripted(script.clone()));
        let address = Unstarted::new(16).start("scripted", reconciler, &supervision);
        Fixture { address, rounds, progress, supervision }
    }

    impl Fixture {
        async fn next(&mut self) -> &'static str {
            self.rounds.recv().await.expect("the reconciler is alive")
        }

        async fn is_quiet(&mut self) -> bool {
            tokio::time::timeout(Duration::from_millis(50), self.rounds.recv()).await.is_err()
        }
    }

    #[actix_rt::test]
    async fn a_round_runs_at_the_start_and_then_only_when_woken() {
        let mut fixture = start(NEVER, vec![]);
        fixture.next().await;
        assert!(fixture.is_quiet().await);
        fixture.address.do_send(Wake);
        fixture.next().await;
        assert!(fixture.is_quiet().await);
    }

    #[actix_rt::test]
    async fn the_period_alone_causes_rounds() {
        let mut fixture = start(Duration::from_millis(1), vec![]);
        for _ in 0..3 {
            fixture.next().await;
        }
    }

    #[actix_rt::test]
    async fn a_wake_during_a_round_causes_another_one() {
        let mut fixture = start(NEVER, vec![Step::Takes(Duration::from_millis(20))]);
        assert_eq!(fixture.next().await, "begins");
        fixture.address.do_send(Wake);
        assert_eq!(fixture.next().await, "ends");
        assert_eq!(fixture.next().await, "begins");
        assert!(fixture.is_quiet().await);
    }

    #[actix_rt::test]
    async fn more_work_causes_a_round_at_once_and_rest_delays_a_wake() {
        let rest = Duration::from_millis(200);
        let mut fixture = start(NEVER, vec![Step::Is(Pace::Again), Step::Is(Pace::Rest(rest))]);
        fixture.next().await;
        fixture.next().await;
        let rested = Instant::now();
        fixture.address.do_send(Wake);
        fixture.next().await;
        assert!(rested.elapsed() >= rest - Duration::from_millis(20), "{:?}", rested.elapsed());
    }

    #[actix_rt::test]
    async fn a_failed_round_is_reported_and_tried_again() {
        let mut fixture = start(Duration::from_millis(30), vec![Step::Fails]);
        fixture.next().await;
        fixture.next().await;
        let seconds = fixture.progress.seconds();
        assert!(seconds.iter().any(|(actor, _)| *actor == "scripted"), "{seconds:?}");
    }

    #[actix_rt::test]
    async fn a_panic_restarts_it_with_a_round() {
        let mut fixture = start(NEVER, vec![Step::Panics]);
        fixture.next().await;
        fixture.next().await;
        assert_eq!(fixture.supervision.reports()[0].restarts, 1);
    }

    #[actix_rt::test]
    async fn drain_waits_for_the_round_in_progress_and_no_other_begins() {
        let mut fixture = start(Duration::from_millis(1), vec![Step::Takes(Duration::from_millis(30))]);
        assert_eq!(fixture.next().await, "begins");
        fixture.address.send(Drain).await.expect("it is answered");
        assert_eq!(fixture.next().await, "ends");
        fixture.address.do_send(Wake);
        assert!(fixture.is_quiet().await);
        fixture.address.send(Drain).await.expect("a second one is answered too");
    }
}
