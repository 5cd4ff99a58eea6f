//! Sends the events of the outbox to their hooks, at least once.
//!
//! The transaction of a change writes its events (`store/hooks`). Each node claims those of the
//! hooks in its own settings: a claim is a lease, so an event whose node dies comes again. A round
//! records how the attempts since the last round ended, in one transaction, and claims as many
//! events as each hook has free slots. So nothing waits in memory, and a hook that hangs holds up
//! only its own events. Order is not kept.
//!
//! It must not hold up the pipeline: a round has one call of the store at a time, and there are at
//! most 50 rounds a second however many actions end.

mod attempt;
#[cfg(test)]
mod tests;

use self::attempt::{Attempt, Ended, attempt};
use crate::context::Node;
use crate::error_chain::ErrorChain;
use crate::metrics::HookResult;
use crate::runtime::{OnDrain, Pace, Reconcile, RoundFailed};
use crate::senders::{HookSet, HookTarget};
use crate::store::{HookClaim, HookOutcome, HookWanted, StoreResult};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How often it polls: events that other nodes wrote and didn't send, and those to be sent again.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum number of requests to one hook at a time.
const SLOTS: usize = 16;
/// How much longer than the timeout of a request a claim lasts. The outcome is recorded in this
/// time, or the event is sent again.
const LEASE_MARGIN: Duration = Duration::from_secs(60);
/// How often waiting events are counted for the metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// A hook and how many of its events this node is sending.
struct Lane {
    target: Arc<HookTarget>,
    in_flight: usize,
}

/// See the module.
pub struct Hooks {
    node: Arc<Node>,
    set: Option<HookSet>,
    lanes: Vec<Lane>,
    sending: JoinSet<Ended>,
    /// Attempts that have ended and are not recorded yet. Each still takes a slot of its hook.
    ended: Vec<(HookClaim, HookOutcome)>,
    stop: CancellationToken,
    counted: Option<Instant>,
}

impl Hooks {
    /// A reconciler for this node, which sends by the client of `set`. Without hooks it does
    /// nothing.
    pub fn new(node: Arc<Node>, set: Option<HookSet>) -> Self {
        let targets = set.iter().flat_map(|set| set.targets.iter().cloned());
        let lanes = targets.map(|target| Lane { target, in_flight: 0 }).collect();
        Self {
            node,
            set,
            lanes,
            sending: JoinSet::new(),
            ended: Vec::new(),
            stop: CancellationToken::new(),
            counted: None,
        }
    }

    fn lane(&mut self, hook: &str) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.target.name == hook)
    }

    fn take(&mut self, ended: Result<Ended, JoinError>) {
        match ended {
            Ok(ended) => self.ended.push((ended.claim, ended.outcome)),
            // A panic of the client is caught in the attempt.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => log::debug!(error:% = error; "an attempt was aborted"),
        }
    }

    /// Records the attempts that have ended, and frees their slots.
    async fn record(&mut self) -> StoreResult<()> {
        if self.ended.is_empty() {
            return Ok(());
        }
        self.node.store.hook_event_record(self.ended.clone()).await?;
        for (claim, outcome) in std::mem::take(&mut self.ended) {
            if let HookOutcome::Failed { error, next: None } = &outcome {
                log::warn!(hook = claim.hook.as_str(), event = claim.id.as_str(), attempts = claim.attempts,
                    error = error.as_str(); "an event for a hook is given up");
            }
            self.node.metrics.hooks().ended(&claim.hook, result_of(&outcome));
            if let Some(lane) = self.lane(&claim.hook) {
                lane.in_flight = lane.in_flight.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Claims events for all free slots, and sends them.
    async fn claim(&mut self) -> StoreResult<()> {
        let Some(client) = self.set.as_ref().map(|set| set.client.clone()) else { return Ok(()) };
        let free = self.lanes.iter().filter(|lane| lane.in_flight < SLOTS);
        let wanted: Vec<HookWanted> = free
            .map(|lane| HookWanted {
                hook: lane.target.name.clone(),
                limit: SLOTS - lane.in_flight,
                lease: lane.target.timeout + LEASE_MARGIN,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        for claim in self.node.store.hook_event_claim(wanted).await? {
            let Some(lane) = self.lane(&claim.hook) else { continue };
            lane.in_flight += 1;
            let target = lane.target.clone();
            let (client, stop, store) = (client.clone(), self.stop.clone(), self.node.store.clone());
            self.sending.spawn_local(attempt(Attempt { client, target, claim, stop, store }));
        }
        Ok(())
    }

    /// Now and then, counts the waiting events of all hooks for the metrics.
    async fn count(&mut self) -> StoreResult<()> {
        if self.lanes.is_empty() || self.counted.is_some_and(|last| last.elapsed() < COUNT_INTERVAL) {
            return Ok(());
        }
        let views = self.node.store.hook_list().await?;
        self.node.metrics.hooks().set_pending(views.into_iter().map(|view| (view.name, view.pending)));
        self.counted = Some(Instant::now());
        Ok(())
    }
}

fn result_of(outcome: &HookOutcome) -> HookResult {
    match outcome {
        HookOutcome::Delivered => HookResult::Delivered,
        HookOutcome::Failed { next: Some(_), .. } => HookResult::Failed,
        HookOutcome::Failed { next: None, .. } => HookResult::GivenUp,
        HookOutcome::Released => HookResult::Released,
    }
}

impl Reconcile for Hooks {
    const NAME: &'static str = "hooks";
    const DEBOUNCE: Duration = Duration::from_millis(20);
    const ON_DRAIN: OnDrain = OnDrain::Finish;

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        while let Some(ended) = self.sending.try_join_next() {
            self.take(ended);
        }
        self.record().await?;
        self.claim().await?;
        self.count().await?;
        Ok(Pace::Wait)
    }

    async fn in_flight(&mut self) {
        if let Some(ended) = self.sending.join_next().await {
            self.take(ended);
            return;
        }
        if !self.stop.is_cancelled() {
            return std::future::pending().await;
        }
        // The last round: what can't be recorded now is sent again by another node.
        if let Err(error) = self.record().await {
            log::warn!(error:% = error.chain(), events = self.ended.len(); "events for hooks are sent again");
            self.ended.clear();
        }
    }

    fn is_idle(&self) -> bool {
        self.sending.is_empty() && self.ended.is_empty()
    }

    fn stop(&mut self) {
        self.stop.cancel();
    }
}
