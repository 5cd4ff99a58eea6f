//! Makes the occurrences of schedules that are due.
//!
//! Nobody leads: every node looks for due schedules, and claims some of them in the transaction
//! that makes their occurrences. It sleeps until the next one is due. The poll finds schedules that
//! other nodes have added.

mod planner;
#[cfg(test)]
mod tests;

use crate::context::Node;
use crate::domain::schedule::Reason;
use crate::error_chain::ErrorChain;
use crate::runtime::isolation::one_by_one;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::store::{Made, StoreResult};
pub use planner::SchedulePlanner;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the zone data are looked at.
const ZONE_INTERVAL: Duration = Duration::from_secs(60);
/// How many due schedules are listed at a time.
const LISTED: usize = 1_000;
/// Maximum number of schedules in a transaction.
const AT_A_TIME: usize = 200;
/// Maximum bytes of their documents; one is always taken.
const BYTES_AT_A_TIME: usize = 4 * 1024 * 1024;
/// How long to wait for a schedule that is due and that another node has claimed.
const CLAIMED_ELSEWHERE: Duration = Duration::from_millis(20);

/// See the module.
pub struct Recur {
    node: Arc<Node>,
    planner: Arc<SchedulePlanner>,
    /// When the zone data were last looked at.
    zones_seen: Option<Instant>,
    /// Whether a schedule could not be planned since then. Perhaps its zone is missing.
    has_failed: Cell<bool>,
    /// When the next schedule is due.
    next: Option<Instant>,
}

impl Recur {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        let planner = Arc::new(SchedulePlanner::new(node.zones.get()));
        Self { node, planner, zones_seen: None, has_failed: Cell::new(false), next: None }
    }

    /// Looks whether the zone data have changed, and computes anew the next times that come from
    /// older ones.
    async fn look_at_zones(&mut self) -> Result<(), RoundFailed> {
        if self.zones_seen.is_some_and(|seen| seen.elapsed() < ZONE_INTERVAL) {
            return Ok(());
        }
        let is_new = self.node.zones.refresh(self.has_failed.take()).await;
        let zones = self.node.zones.get();
        let info = zones.info().clone();
        if is_new {
            log::info!(version = info.version.as_str(), source = info.source.as_str(); "the zone data were read anew");
            self.planner = Arc::new(SchedulePlanner::new(zones));
        }
        let mut after = 0;
        loop {
            let stale = self.node.store.schedule_stale(&info.version, after, LISTED).await?;
            let Some((last, _)) = stale.last() else { break };
            after = *last;
            self.make(stale).await?;
        }
        self.zones_seen = Some(Instant::now());
        Ok(())
    }

    /// Makes what is to be made of these schedules, given with the bytes of their documents.
    /// Returns whether some of them are due again already. One that the store refuses holds up no
    /// other.
    async fn make(&self, schedules: Vec<(i64, usize)>) -> Result<bool, RoundFailed> {
        let (mut has_more, mut refused) = (false, None);
        for nos in in_batches(schedules) {
            let made = match self.make_batch(nos.clone()).await {
                Err(error) if !error.is_transient() => {
                    one_by_one(&nos, async |no| self.make_batch(vec![*no]).await).await
                }
                made => vec![Some(made)],
            };
            for (no, made) in nos.iter().zip(made) {
                match made {
                    Some(Ok(more)) => has_more |= more,
                    Some(Err(error)) if error.is_transient() => return Err(error.into()),
                    Some(Err(error)) => {
                        refused = Some(RoundFailed(format!("schedule {no} is passed over: {}", error.chain())));
                    }
                    // It was not tried, since the store seems to be away.
                    None => {}
                }
            }
        }
        refused.map_or(Ok(has_more), Err)
    }

    async fn make_batch(&self, nos: Vec<i64>) -> StoreResult<bool> {
        let made = self.node.store.schedule_make(nos, self.planner.clone()).await?;
        let has_more = made.has_more;
        self.tell(made);
        Ok(has_more)
    }

    fn tell(&self, made: Made) {
        let (metrics, signals) = (self.node.metrics.schedules(), &self.node.signals);
        for occurrence in &made.occurrences {
            metrics.made(occurrence.made_at.since(occurrence.at));
            log::debug!(schedule = occurrence.schedule.as_str(), at:% = occurrence.at, action:% = occurrence.action;
                "an occurrence was made");
        }
        for (schedule, dropped) in &made.dropped {
            metrics.dropped(dropped.reason, dropped.count);
            let (from, to, reason) = (dropped.from, dropped.to, dropped.reason.as_str());
            log::debug!(schedule = schedule.as_str(), from:%, to:%, count = dropped.count, reason;
                "occurrences were dropped");
        }
        // One line for a batch: thousands of schedules may have missed something.
        let missed = made.dropped.iter().filter(|(_, dropped)| dropped.reason != Reason::Overlap);
        if let Some((schedule, dropped)) = missed.clone().next() {
            let (schedules, count) = (missed.clone().count(), missed.map(|(_, dropped)| dropped.count).sum::<u64>());
            log::warn!(schedules, count, schedule = schedule.as_str(), reason = dropped.reason.as_str();
                "occurrences were missed and are dropped, of this schedule and others");
        }
        if let Some((schedule, error)) = made.errors.first() {
            self.has_failed.set(true);
            log::error!(schedules = made.errors.len(), schedule = schedule.as_str(), error = error.as_str();
                "occurrences can't be made, of this schedule and others");
        }
        for (no, id) in &made.cancelled {
            signals.action_cancelled(*no, *id);
        }
        if !made.occurrences.is_empty() {
            signals.actions_submitted();
        }
        if made.hooks_told {
            signals.hooks_told();
        }
    }
}

/// Cuts a list of keys, each with a size, into batches.
fn in_batches(schedules: Vec<(i64, usize)>) -> Vec<Vec<i64>> {
    let mut batches: Vec<Vec<i64>> = Vec::new();
    let mut room = 0;
    for (no, bytes) in schedules {
        match batches.last_mut().filter(|batch| batch.len() < AT_A_TIME && bytes <= room) {
            Some(batch) => batch.push(no),
            None => {
                batches.push(vec![no]);
                room = BYTES_AT_A_TIME;
            }
        }
        room = room.saturating_sub(bytes);
    }
    batches
}

impl Reconcile for Recur {
    const NAME: &'static str = "recur";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        self.next = None;
        self.look_at_zones().await?;
        let due = self.node.store.schedule_due(LISTED).await?;
        let is_full = due.len() == LISTED;
        if self.make(due).await? || is_full {
            return Ok(Pace::Again);
        }
        let next = self.node.store.schedule_next().await?;
        self.next = next.map(|next| {
            let now = self.node.store.now();
            let wait = if next > now { next.since(now) + Duration::from_millis(1) } else { CLAIMED_ELSEWHERE };
            Instant::now() + wait
        });
        Ok(Pace::Wait)
    }

    async fn in_flight(&mut self) {
        match self.next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
    }
}
