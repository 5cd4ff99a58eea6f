//! Records what happens to commands: results, `sent`, hand-overs that failed, and what the housekeeper closes.
//!
//! Receives [`Record`] from sessions, senders, the delay scheduler and the housekeeper; answers after the commit, so that
//! whoever tells an agent `stored` tells the truth. Afterwards it tells the delay scheduler what falls due again and the
//! housekeeper which actions have changed. It awaits the store alone.
//!
//! Dies: see [`batcher`](super::batcher). An agent whose result was in here isn't told `stored`, and sends it again.

use super::batcher::{Batcher, Put, Refused, Sink};
use super::delay_scheduler::DelayScheduler;
use super::hints::Hints;
use super::housekeeper::Housekeeper;
use super::messages::{DueAgain, Resumed, Tell, Touched};
use super::notifier::Notifier;
use super::waiters::Waiters;
use crate::domain::command::{Answer, Event};
use crate::domain::hint::Hint;
use crate::metrics::Metrics;
use crate::store::{Due, Report, Store, StoreResult};
use actix::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

/// The actor.
pub type Outcomes = Batcher<OutcomeSink>;

/// Anyone → outcomes: this happened.
pub type Record = Put<OutcomeSink>;

/// The actors upstream that are told what was recorded. They are started after the outcomes, hence the late binding.
#[derive(Clone, Default)]
pub struct Upstream {
    scheduler: Arc<OnceLock<Addr<DelayScheduler>>>,
    housekeeper: Arc<OnceLock<Addr<Housekeeper>>>,
    hints: Arc<OnceLock<Addr<Hints>>>,
}

impl Upstream {
    /// Names the delay scheduler, once.
    pub fn set_scheduler(&self, scheduler: Addr<DelayScheduler>) {
        self.scheduler.set(scheduler).ok();
    }

    /// Names who tells other nodes, once.
    pub fn set_hints(&self, hints: Addr<Hints>) {
        self.hints.set(hints).ok();
    }

    /// Tells other nodes. A hint.
    pub fn tell(&self, hints: Vec<Hint>) {
        if let (false, Some(actor)) = (hints.is_empty(), self.hints.get()) {
            actor.try_send(Tell(hints)).ok();
        }
    }

    /// This action goes on after a pause. A hint.
    pub fn resumed(&self, no: i64) {
        if let Some(scheduler) = self.scheduler.get() {
            scheduler.try_send(Resumed(vec![no])).ok();
        }
    }

    /// Names the housekeeper, once.
    pub fn set_housekeeper(&self, housekeeper: Addr<Housekeeper>) {
        self.housekeeper.set(housekeeper).ok();
    }
}

/// Reports, on their way into the store.
#[derive(Clone)]
pub struct OutcomeSink {
    /// Where they are written.
    pub store: Arc<dyn Store>,
    /// Who hears of it.
    pub upstream: Upstream,
    /// For watchers.
    pub notifier: Notifier,
    /// For agents that wait over plain HTTP.
    pub waiters: Waiters,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Sink for OutcomeSink {
    type Item = Report;
    type Answer = Answer;

    const NAME: &'static str = "outcomes";

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn write(&self, reports: &[Report]) -> StoreResult<Vec<Answer>> {
        self.store.outcome_record(reports).await
    }

    async fn written(&self, reports: Vec<Report>, answers: &[Result<Answer, Refused>]) {
        crate::fault_point!("outcomes.written");
        self.notifier.notify();
        // Those whose commands wait for them now.
        let waits = |report: &Report, answer: &Result<Answer, Refused>| match answer {
            Ok(Answer::Stored) => matches!(report.event, Event::Hold { .. }),
            Ok(Answer::Again { .. }) => true,
            _ => false,
        };
        let waiting = reports.iter().zip(answers).filter(|(report, answer)| waits(report, answer));
        let waiting: Vec<i64> = waiting.map(|(report, _)| report.agent_no).collect();
        if !waiting.is_empty() {
            self.waiters.wake(waiting.into_iter());
            self.upstream.tell(vec![Hint::Waiting]);
        }
        let mut again = Vec::new();
        let mut touched = BTreeSet::new();
        for (report, answer) in reports.iter().zip(answers) {
            // An agent that was wrong about the time has ended nothing.
            let is_wrong = matches!((&report.event, answer), (Event::FoundExpired { .. }, Ok(Answer::Again { .. })));
            if matches!(answer, Ok(Answer::Stored | Answer::Again { .. })) && !is_wrong {
                self.metrics.reported(&report.event);
            }
            match answer {
                Ok(Answer::Again { run, attempts, due_at }) => again.push(Due {
                    action_no: report.action_no,
                    agent_no: report.agent_no,
                    run: *run,
                    attempts: *attempts,
                    due_at: *due_at,
                    priority: 0,
                    open: true,
                }),
                Ok(Answer::Stored) => {
                    touched.insert(report.action_no);
                }
                _ => {}
            }
        }
        // Hints upstream are never awaited: nobody may wait in a circle. `try_send` drops them when a mailbox is full.
        if let (false, Some(scheduler)) = (again.is_empty(), self.upstream.scheduler.get()) {
            scheduler.try_send(DueAgain(again)).ok();
        }
        if let (false, Some(housekeeper)) = (touched.is_empty(), self.upstream.housekeeper.get()) {
            housekeeper.try_send(Touched(touched.into_iter().collect())).ok();
        }
    }
}
