//! Lets agents join live actions: those that match only after the action was resolved.
//!
//! Woken by [`Changed`], which it gathers for a moment, and by a slow period that looks at the whole fleet. For each live
//! action it asks the store which of these agents match and have no command of it yet, and writes one for each, due at
//! once or when the action becomes valid, together with an open row: the action's own cursors have passed by. Until it expires a live action stays open,
//! and its `counts.resolved` false.
//!
//! Dies: nothing; the next look at the whole fleet finds whoever was missed.

use super::action_book::ActionBook;
use super::delay_scheduler::DelayScheduler;
use super::hints::Hints;
use super::isolation::for_each_action;
use super::messages::{Changed, Drain, DueAgain, Tell};
use super::notifier::Notifier;
use super::waiters::Waiters;
use crate::domain::hint::Hint;
use crate::domain::target::Target;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};
use actix::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long it waits for more agents to change before it looks.
const GATHER: Duration = Duration::from_millis(20);
/// How often it looks at the whole fleet.
const SWEEP: Duration = Duration::from_secs(60);
/// Agents that are remembered as changed; beyond these it looks at the whole fleet.
const REMEMBERED: usize = 10_000;
/// Agents per read and transaction.
const PAGE: usize = 1_000;

/// What the membership needs.
#[derive(Clone)]
pub struct MembershipParts {
    /// Where it looks and writes.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub book: ActionBook,
    /// Who hands the new commands on.
    pub scheduler: Addr<DelayScheduler>,
    /// Who tells other nodes.
    pub hints: Addr<Hints>,
    /// For watchers.
    pub notifier: Notifier,
    /// For agents that wait over plain HTTP.
    pub waiters: Waiters,
    /// Where it counts.
    pub metrics: Metrics,
}

/// See the module.
pub struct Membership {
    parts: MembershipParts,
    changed: BTreeSet<i64>,
    /// The whole fleet is to be looked at.
    sweep: bool,
    looking: bool,
    stopped: bool,
}

impl Membership {
    /// With nobody to look at.
    pub fn new(parts: MembershipParts) -> Self {
        Self { parts, changed: BTreeSet::new(), sweep: false, looking: false, stopped: false }
    }

    fn look_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.looking && !self.stopped && (self.sweep || !self.changed.is_empty()) {
            self.looking = true;
            ctx.run_later(GATHER, |membership, ctx| membership.look(ctx));
        }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        crate::fault_point!("membership");
        let parts = self.parts.clone();
        let changed: Vec<i64> = std::mem::take(&mut self.changed).into_iter().collect();
        let whole = std::mem::take(&mut self.sweep);
        let looked = async move { run_once(&parts, (!whole).then_some(&changed)).await };
        ctx.spawn(looked.into_actor(self).map(|looked, membership, ctx| {
            membership.looking = false;
            if let Err(error) = looked {
                membership.parts.metrics.progress().fails("membership", &error.to_string());
                log::warn!(error = error.to_string().as_str(); "agents wait to join live actions until the next look");
            } else {
                membership.parts.metrics.progress().works("membership");
            }
            membership.look_soon(ctx);
        }));
    }
}

/// Lets agents join all live actions: those of `among`, or any.
pub async fn run_once(parts: &MembershipParts, among: Option<&Vec<i64>>) -> Result<(), StoreError> {
    let live = parts.store.action_list_live().await?;
    for_each_action(&live, |no| *no, async |no| join(parts, *no, among.map(Vec::as_slice)).await).await
}

async fn join(parts: &MembershipParts, no: i64, among: Option<&[i64]>) -> Result<(), StoreError> {
    let Some(action) = parts.book.get(no).await? else { return Ok(()) };
    // It was parsed when it was accepted.
    let Ok(target) = Target::parse(&action.target) else { return Ok(()) };
    let mut after = 0;
    loop {
        let agents = parts.store.agent_match_joining(no, &target, among, after, PAGE).await?;
        let Some((last, _)) = agents.last() else { return Ok(()) };
        after = *last;
        let full = agents.len() >= PAGE;
        let agents: Vec<i64> = agents.into_iter().map(|(agent, _)| agent).collect();
        let due = parts.store.command_insert_joining(no, &agents).await?;
        if !due.is_empty() {
            log::info!(action:% = action.id, agents = due.len(); "agents join a live action");
            parts.metrics.commands_written(due.len() as u64);
            parts.waiters.wake(due.iter().map(|due| due.agent_no));
            parts.scheduler.try_send(DueAgain(due)).ok();
            parts.hints.try_send(Tell(vec![Hint::Open])).ok();
            parts.notifier.notify();
        }
        if !full {
            return Ok(());
        }
    }
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.sweep = true;
        self.look_soon(ctx);
        ctx.run_interval(SWEEP, |membership, ctx| {
            membership.sweep = true;
            membership.look_soon(ctx);
        });
    }
}

impl Supervised for Membership {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self { stopped: self.stopped, ..Self::new(self.parts.clone()) };
    }
}

impl Handler<Changed> for Membership {
    type Result = ();

    fn handle(&mut self, Changed(agent_no): Changed, ctx: &mut Self::Context) {
        if self.changed.len() < REMEMBERED {
            self.changed.insert(agent_no);
        } else {
            self.sweep = true;
        }
        self.look_soon(ctx);
    }
}

impl Handler<Drain> for Membership {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        // Each of its steps is whole in the store.
        self.stopped = true;
    }
}
