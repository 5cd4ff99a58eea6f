//! Reconciles: reads what the store says and does what is missing. Takes no work in messages.
//!
//! Woken by a period and by [`Touched`]. In each round: actions whose commands are all final are completed; commands of
//! cancelled actions are closed, those of expired ones after a grace; results that are overdue are given up;
//! `dispatched_through` moves on. What it decides about commands goes through the outcomes like everything else. Now and
//! then it deletes what `retention.actions` keeps no longer, in batches small enough to be in nobody's way.
//!
//! Dies: nothing; the next round reads the store again.

use super::action_book::ActionBook;
use super::batcher::Put;
use super::isolation::{for_all_actions, for_each_action};
use super::messages::{Drain, Touched};
use super::notifier::Notifier;
use super::outcomes::{OutcomeSink, Outcomes, Upstream};
use crate::domain::action::{Action, GRACE};
use crate::domain::command::Event;
use crate::store::{OpenAction, Report, Store, StoreError, Unfinished};
use crate::supervision::Progress;
use actix::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks without being told.
const PERIOD: Duration = Duration::from_secs(1);
/// How long it waits for more actions to be touched before it looks whether they are complete.
const GATHER: Duration = Duration::from_millis(20);
/// Rows per read.
const PAGE: usize = 5_000;
/// How many commands a round moves one action's `dispatched_through` over, at most.
const ADVANCE: usize = 50_000;

/// How many actions are moved on in one transaction.
const ADVANCE_AT_A_TIME: usize = 100;

/// For how long after its removal an agent's commands are looked for: one may have been on its way into the store.
const LEAVING: Duration = Duration::from_secs(60);
/// How often it looks for what is kept no longer.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// Rows that are deleted in one transaction.
const PURGE_AT_A_TIME: usize = 2_000;
/// How often it looks for rows whose action is no more, which earlier versions could leave behind.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Actions looked at in one transaction of that.
const SWEEP_AT_A_TIME: usize = 200;
/// The pause between two of these.
const PURGE_PAUSE: Duration = Duration::from_millis(20);

/// What the housekeeper needs.
#[derive(Clone)]
pub struct HousekeeperParts {
    /// What it reads.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub book: ActionBook,
    /// Where it records.
    pub outcomes: Addr<Outcomes>,
    /// Told of actions that go on.
    pub upstream: Upstream,
    /// How long actions are kept after their end.
    pub keep: Duration,
    /// How long the audit log is kept.
    pub keep_audit: Duration,
    /// For watchers.
    pub notifier: Notifier,
    /// Where it says whether its rounds get done.
    pub progress: Progress,
}

/// See the module.
pub struct Housekeeper {
    parts: HousekeeperParts,
    touched: BTreeSet<i64>,
    completing: bool,
    rounding: bool,
    purging: Option<SpawnHandle>,
    swept: Option<Instant>,
    stopped: bool,
}

impl Housekeeper {
    /// With nothing to do.
    pub fn new(parts: HousekeeperParts) -> Self {
        Self {
            parts,
            touched: BTreeSet::new(),
            completing: false,
            rounding: false,
            purging: None,
            swept: None,
            stopped: false,
        }
    }

    /// Completes those touched actions that are complete.
    fn complete(&mut self, ctx: &mut Context<Self>) {
        let nos: Vec<i64> = std::mem::take(&mut self.touched).into_iter().collect();
        if nos.is_empty() || self.stopped {
            self.completing = false;
            return;
        }
        crate::fault_point!("housekeeper");
        let parts = self.parts.clone();
        let done = async move { complete(&parts, nos).await };
        ctx.spawn(done.into_actor(self).map(|done, housekeeper, ctx| {
            if let Err(error) = done {
                log::warn!(error = error.to_string().as_str(); "actions wait to be completed");
            }
            housekeeper.completing = false;
            housekeeper.complete_soon(ctx);
        }));
    }

    fn complete_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.completing && !self.touched.is_empty() {
            self.completing = true;
            ctx.run_later(GATHER, |housekeeper, ctx| housekeeper.complete(ctx));
        }
    }

    fn purge(&mut self, ctx: &mut Context<Self>) {
        if self.purging.is_some() || self.stopped {
            return;
        }
        let parts = self.parts.clone();
        let must_sweep = self.swept.is_none_or(|last| last.elapsed() >= SWEEP_EVERY);
        let purged = async move {
            purge_audit(&*parts.store, parts.keep_audit).await?;
            if must_sweep {
                sweep(&*parts.store).await?;
            }
            purge(&*parts.store, parts.keep).await
        };
        self.purging = Some(ctx.spawn(purged.into_actor(self).map(move |purged, housekeeper, _| {
            housekeeper.purging = None;
            match purged {
                Ok(rows) => {
                    if must_sweep {
                        housekeeper.swept = Some(Instant::now());
                    }
                    housekeeper.parts.progress.works("housekeeper.purge");
                    if rows > 0 {
                        log::info!(rows; "actions that are kept no longer are deleted");
                    }
                }
                Err(error) => {
                    housekeeper.parts.progress.fails("housekeeper.purge", &error.to_string());
                    log::warn!(error = error.to_string().as_str(); "old actions are deleted later");
                }
            }
        })));
    }

    fn round(&mut self, ctx: &mut Context<Self>) {
        if self.rounding || self.stopped {
            return;
        }
        self.rounding = true;
        let parts = self.parts.clone();
        let round = async move { run_once(&parts).await };
        ctx.spawn(round.into_actor(self).map(|round, housekeeper, _| {
            housekeeper.rounding = false;
            if let Err(error) = round {
                housekeeper.parts.progress.fails("housekeeper", &error.to_string());
                log::warn!(error = error.to_string().as_str(); "a round of housekeeping waits for the store");
            } else {
                housekeeper.parts.progress.works("housekeeper");
            }
        }));
    }
}

/// Deletes all actions that ended longer ago than they are kept, a batch at a time; answers how many rows that were.
pub async fn purge(store: &dyn Store, keep: Duration) -> Result<usize, StoreError> {
    let mut rows = 0;
    while let Some(deleted) = store.action_purge(store.now().minus(keep), PURGE_AT_A_TIME).await? {
        rows += deleted;
        tokio::time::sleep(PURGE_PAUSE).await;
    }
    Ok(rows)
}

/// Finds rows whose action is no more; they are deleted with what is kept no longer.
pub async fn sweep(store: &dyn Store) -> Result<(), StoreError> {
    let mut after = 0;
    while let Some(last) = store.action_sweep(after, SWEEP_AT_A_TIME).await? {
        after = last;
        tokio::time::sleep(PURGE_PAUSE).await;
    }
    Ok(())
}

/// Deletes the entries of the audit log that are kept no longer.
async fn purge_audit(store: &dyn Store, keep: Duration) -> Result<(), StoreError> {
    while store.audit_purge(store.now().minus(keep), PURGE_AT_A_TIME).await? > 0 {
        tokio::time::sleep(PURGE_PAUSE).await;
    }
    Ok(())
}

async fn complete(parts: &HousekeeperParts, nos: Vec<i64>) -> Result<(), StoreError> {
    for_all_actions(&nos, async |nos| {
        for no in parts.store.action_complete(nos).await? {
            log::info!(action = no; "an action has ended");
            parts.notifier.notify();
        }
        Ok(())
    })
    .await
}

/// One round over all open actions. What fails stops nothing else; answers the first error that may pass.
pub async fn run_once(parts: &HousekeeperParts) -> Result<(), StoreError> {
    let first = [overdue(parts).await, close_leaving(parts).await, all_open(parts).await];
    first.into_iter().collect()
}

async fn all_open(parts: &HousekeeperParts) -> Result<(), StoreError> {
    let store = &*parts.store;
    let now = store.now();
    // Agents may still join a live one.
    let is_finished = |action: &OpenAction| {
        action.resolved && action.unfinished == 0 && (!action.live || action.cancelled || now >= action.expires_at)
    };
    crate::fault_point!("housekeeper.round");
    let (mut after, mut first) = (0, Ok(()));
    loop {
        let page = store.action_list_open(after, PAGE).await?;
        let next = page.last().filter(|_| page.len() >= PAGE).map(|last| last.no);
        let (finished, going): (Vec<_>, Vec<_>) = page.into_iter().partition(is_finished);
        let finished: Vec<i64> = finished.iter().map(|action| action.no).collect();
        if !finished.is_empty() {
            first = first.and(complete(parts, finished).await);
        }
        first =
            first.and(for_each_action(&going, |action| action.no, async |action| reconcile(parts, action).await).await);
        let behind = going.iter().filter(|action| action.dispatched_through < action.resolved_through);
        let behind: Vec<i64> = behind.map(|action| action.no).collect();
        for nos in behind.chunks(ADVANCE_AT_A_TIME) {
            let advance = async |nos| store.action_advance(nos, ADVANCE).await.map(|_| ());
            first = first.and(for_all_actions(nos, advance).await);
        }
        match next {
            // A store that is away is away for the rest as well.
            Some(last) if first.is_ok() => after = last,
            _ => return first,
        }
    }
}

async fn reconcile(parts: &HousekeeperParts, action: &OpenAction) -> Result<(), StoreError> {
    let now = parts.store.now();
    // Whoever reads an action while it is paused, or goes on, may have read it as it was before; so may this list.
    if parts.book.is_paused(action.no).is_some_and(|marked| marked != action.paused)
        && let Some(read) = parts.store.action_get(action.no).await?
        && parts.book.is_paused(action.no) != Some(read.is_paused())
    {
        parts.book.pause(action.no, read.is_paused());
        if !read.is_paused() {
            parts.upstream.resumed(action.no);
        }
    }
    if action.cancelled {
        parts.book.cancel(action.no);
        close(parts, action.no, Unfinished::All, &Event::Cancelled).await?;
    } else if now >= action.expires_at && !action.resolved {
        parts.store.action_expire(action.no).await?;
    } else if now >= action.expires_at.plus(GRACE) && action.unfinished > action.sent {
        close(parts, action.no, Unfinished::Pending, &Event::Expired).await?;
    }
    Ok(())
}

/// Records `event` for all commands of an action that are not finished, a page at a time.
async fn close(parts: &HousekeeperParts, no: i64, which: Unfinished, event: &Event) -> Result<(), StoreError> {
    let Some(action) = parts.book.get(no).await? else { return Ok(()) };
    let mut after = 0;
    loop {
        let agents = parts.store.command_unfinished(no, which, after, PAGE).await?;
        let Some(last) = agents.last().copied() else { return Ok(()) };
        let reports = agents.into_iter().map(|agent_no| report(&action, agent_no, event.clone())).collect();
        record(parts, reports).await?;
        after = last;
    }
}

/// Closes the commands of removed agents.
async fn close_leaving(parts: &HousekeeperParts) -> Result<(), StoreError> {
    'agents: for agent_no in parts.store.agent_list_leaving(PAGE).await? {
        loop {
            let mut reports = Vec::new();
            for no in parts.store.command_unfinished_of(agent_no, PAGE).await? {
                if let Some(action) = readable(parts, no).await? {
                    let error = "the agent was removed".into();
                    reports.push(report(&action, agent_no, Event::Undeliverable { error }));
                }
            }
            if reports.is_empty() {
                break;
            }
            if record(parts, reports).await? == 0 {
                continue 'agents;
            }
        }
        parts.store.agent_left(agent_no, parts.store.now().minus(LEAVING)).await?;
    }
    Ok(())
}

/// Gives up waiting for results that should have come.
async fn overdue(parts: &HousekeeperParts) -> Result<(), StoreError> {
    loop {
        let keys = parts.store.command_overdue(parts.store.now(), PAGE).await?;
        let full = keys.len() >= PAGE;
        let mut actions: HashMap<i64, Option<Arc<Action>>> = HashMap::new();
        let mut reports = Vec::with_capacity(keys.len());
        for (action_no, agent_no) in keys {
            let action = match actions.get(&action_no) {
                Some(action) => action.clone(),
                None => {
                    let action = readable(parts, action_no).await?;
                    actions.insert(action_no, action.clone());
                    action
                }
            };
            if let Some(action) = action {
                reports.push(report(&action, agent_no, Event::Overdue));
            }
        }
        if reports.is_empty() {
            return Ok(());
        }
        if record(parts, reports).await? == 0 || !full {
            return Ok(());
        }
    }
}

fn report(action: &Action, agent_no: i64, event: Event) -> Report {
    Report { action_no: action.no, agent_no, policy: action.policy, event, fresh: false }
}

/// An action; none if it can't be read, which must not stop what is done for others.
async fn readable(parts: &HousekeeperParts, no: i64) -> Result<Option<Arc<Action>>, StoreError> {
    match parts.book.get(no).await {
        Err(error) if !error.is_transient() => {
            log::error!(action = no, error = error.to_string().as_str(); "an action is passed over");
            Ok(None)
        }
        action => action,
    }
}

/// Records reports; answers how many of them the store has taken.
async fn record(parts: &HousekeeperParts, reports: Vec<Report>) -> Result<usize, StoreError> {
    match parts.outcomes.send(Put::<OutcomeSink>(reports)).await {
        Ok(Some(answers)) => Ok(answers.iter().filter(|answer| answer.is_ok()).count()),
        _ => Err(StoreError::Unavailable("the outcomes are being restarted".into())),
    }
}

impl Actor for Housekeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.round(ctx);
        ctx.run_interval(PERIOD, |housekeeper, ctx| housekeeper.round(ctx));
        self.purge(ctx);
        ctx.run_interval(PURGE_EVERY, |housekeeper, ctx| housekeeper.purge(ctx));
    }
}

impl Supervised for Housekeeper {
    fn restarting(&mut self, _: &mut Self::Context) {
        *self = Self { stopped: self.stopped, ..Self::new(self.parts.clone()) };
    }
}

impl Handler<Touched> for Housekeeper {
    type Result = ();

    fn handle(&mut self, Touched(nos): Touched, ctx: &mut Self::Context) {
        self.touched.extend(nos);
        self.complete_soon(ctx);
    }
}

impl Handler<Drain> for Housekeeper {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        // Each of its steps is whole in the store; the next process goes on from there.
        self.stopped = true;
        self.purging.take().map(|purging| ctx.cancel_future(purging));
    }
}
