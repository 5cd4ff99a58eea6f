//! Delivers commands when they are due.
//!
//! In memory are only commands that are due within `delay.horizon` and whose agent can be reached
//! from here. The rest waits in the store. Commands come in three ways:
//! - A *cursor* per open action runs over its commands in key order (due times grow with the key).
//!   The command store's [`Committed`] moves it on without a read. If that doesn't join on, or
//!   there is no room, or the rest is not due yet, the cursor stays *behind* and reads from the
//!   store when its time has come.
//! - Open rows that fall due again come by [`Rescheduled`], or are read ahead of time from the
//!   store. Those that wait for their agents are left to the sessions, which read them.
//! - Now and then, all overdue commands are read again. A lost hint costs latency and nothing else.
//!
//! If room is short, the nearest commands are in memory. A nearer command displaces the farthest
//! one, which goes back to the store, and its cursor moves back to before it.
//!
//! Paused or cancelled commands are passed over when they are due, from that moment on. Paused ones
//! are read again on resume. Delays, `valid_from`, spreads and retries all pass through here.
//! Timeouts and expiry are not scheduled here. They need to be accurate to seconds only, so a
//! reconciler finds them by an index.
//!
//! Commands of agents that have no connection here get an open row `waiting`, and are read by the
//! agent's session when it connects. Due commands go to the sender router in order of (due time, priority,
//! arrival), in chunks of one transport, with a few chunks in flight for each transport. A sender
//! that takes nothing holds up its own transport alone.
//!
//! Crash: restarts with empty state, with each cursor at the action's `dispatched_through`.
//! Commands that were in flight may be delivered twice; agents run them once.

mod cursor;
mod intake;
mod lanes;
mod open_rows;
#[cfg(test)]
mod tests;

use super::messages::{Committed, Dispatch};
use super::sender_router::SenderRouter;
use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::command::Event;
use crate::domain::time::Timestamp;
use crate::runtime::Drain;
use crate::senders::{DueCommand, Recorder, report_of};
use crate::signals::{Cancelled, OpenActionsRead, PeerNews, Rescheduled, Resumed};
use crate::store::{Due, Report};
use actix::prelude::*;
use cursor::{Cursor, Cursors};
use lanes::{Entry, Inserted, Lanes};
use open_rows::OpenRows;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Maximum number of commands per chunk.
const CHUNK: usize = 1_000;
/// Maximum number of commands for which a `waiting` row is being written.
const HOLDS_AT_A_TIME: usize = 20_000;
/// How long cancelled commands may stay in memory.
const CANCEL_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The wait before commands are tried again whose router crashed.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Longest sleep, because the machine's clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Shortest interval between reads of open rows that come due within the horizon.
const READ_AHEAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often all open actions are compared with the cursors, to find lost commands.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);
/// Smallest horizon: a read takes time, and comes every few seconds.
const LEAST_HORIZON: Duration = Duration::from_secs(5);

/// See the module.
pub struct DelayScheduler {
    node: Arc<Node>,
    router: Addr<SenderRouter>,
    recorder: Recorder,
    /// How long before their due time commands are read into memory.
    horizon: Duration,
    lanes: Lanes,
    cursors: Cursors,
    open_rows: OpenRows,
    /// At this time, sessions are told to read their agents' backlogs: commands from there found no room here.
    backlogs_at: Option<Timestamp>,
    /// When a command last found no room, and its due time. Cleared when room is made.
    refused: Option<(Timestamp, Timestamp)>,
    /// Comparisons with the open actions so far.
    comparisons: u32,
    /// Set: the first reading of the open actions after this one is to be compared with the
    /// cursors.
    compare_after: Option<u64>,
    /// The last read was a second reading of open rows.
    has_had_turn: bool,
    /// Run and attempts of the commands in chunks that the router has. Answers that come during a
    /// read are kept in `answered` until the read is done, because it may bring these commands in
    /// their earlier state.
    dispatched: hashbrown::HashMap<(i64, i64), (i32, i32)>,
    answered: Vec<(i64, i64)>,
    holds: usize,
    /// Cancelled actions that may have commands in memory.
    cancelled: HashSet<i64>,
    reading: bool,
    timer: Option<(Timestamp, SpawnHandle)>,
    draining: Option<oneshot::Sender<()>>,
    stopped: bool,
}

impl DelayScheduler {
    /// A scheduler with nothing in memory.
    pub fn new(node: Arc<Node>, router: Addr<SenderRouter>, recorder: Recorder) -> Self {
        let delay = &node.config.delay;
        Self {
            horizon: delay.horizon.0.max(LEAST_HORIZON),
            lanes: Lanes::new(delay.capacity),
            cursors: Cursors::default(),
            open_rows: OpenRows::new(),
            backlogs_at: None,
            refused: None,
            comparisons: 0,
            compare_after: None,
            has_had_turn: false,
            dispatched: hashbrown::HashMap::new(),
            answered: Vec::new(),
            holds: 0,
            cancelled: HashSet::new(),
            reading: false,
            timer: None,
            draining: None,
            stopped: false,
            node,
            router,
            recorder,
        }
    }

    fn horizon_end(&self) -> Timestamp {
        self.node.store.now().plus(self.horizon)
    }

    /// Inserts one command. False if there is no room for it.
    fn insert(&mut self, action: &Arc<Action>, transport: &Arc<str>, due: Due) -> bool {
        let at = due.due_at;
        self.insert_at(action, transport, due, at)
    }

    /// The same, with another time of delivery.
    fn insert_at(&mut self, action: &Arc<Action>, transport: &Arc<str>, due: Due, at: Timestamp) -> bool {
        let key = (due.action_no, due.agent_no);
        let at = at.max(action.valid_from);
        if self.dispatched.get(&key).is_some_and(|known| (due.run, due.attempts) <= *known) {
            return true;
        }
        let entry = Entry { action: action.clone(), transport: transport.clone(), due };
        match self.lanes.insert(entry, at) {
            Inserted::Taken => true,
            Inserted::Displaced(displaced) => {
                self.give_back(&displaced.transport, &displaced.due);
                true
            }
            // Reading must not stop at the commands of a transport whose sender takes nothing:
            // those of others come after them.
            Inserted::Full(entry) if self.lanes.is_behind(&entry.transport, self.node.store.now()) => {
                self.give_back_later(&entry.transport, &entry.due);
                true
            }
            Inserted::Full(_) => {
                self.refused = Some((self.node.store.now(), at));
                false
            }
        }
    }

    /// The same. A command that finds no room is read again later.
    fn insert_or_give_back(&mut self, action: &Arc<Action>, transport: &Arc<str>, due: Due, at: Timestamp) {
        if !self.insert_at(action, transport, due.clone(), at) {
            self.give_back(transport, &due);
        }
    }

    /// Delivers what is due, and sets the timer for what comes next.
    fn dispatch(&mut self, ctx: &mut Context<Self>) {
        crate::fault_point!("delay_scheduler");
        let transports = if self.stopped { Vec::new() } else { self.lanes.with_credits() };
        for transport in transports {
            loop {
                let now = self.node.store.now();
                let mut due = self.lanes.pop_due(&transport, now, CHUNK);
                if due.is_empty() {
                    break;
                }
                self.refused = None;
                // A reconciler closes cancelled and expired commands. Paused ones are read again on
                // resume.
                let goes_on =
                    |action: &Action| !action.is_cancelled() && !action.is_paused() && action.expires_at > now;
                due.retain(|entry| goes_on(&entry.action));
                due.iter().for_each(|entry| self.node.metrics.dispatched(now.since(entry.due.due_at)));
                self.send_chunk(transport.clone(), due, ctx);
            }
        }
        self.node.metrics.delay_entries(self.lanes.len(), self.lanes.next_due());
        self.set_timer(ctx);
        self.finish_drain();
    }

    fn send_chunk(&mut self, transport: Arc<str>, entries: Vec<Entry>, ctx: &mut Context<Self>) {
        if entries.is_empty() {
            return;
        }
        let known = |entry: &Entry| ((entry.due.action_no, entry.due.agent_no), (entry.due.run, entry.due.attempts));
        self.dispatched.extend(entries.iter().map(known));
        let commands =
            entries.iter().map(|entry| DueCommand { due: entry.due.clone(), action: entry.action.clone() }).collect();
        self.lanes.spend(&transport);
        let answer = self.router.send(Dispatch { transport: transport.clone(), commands });
        ctx.spawn(answer.into_actor(self).map(move |answer, scheduler, ctx| {
            crate::fault_point!("delay_scheduler.answered");
            scheduler.lanes.give_credit(&transport);
            scheduler.answered.extend(entries.iter().map(|entry| (entry.due.action_no, entry.due.agent_no)));
            scheduler.forget_answered();
            // If the router itself crashed, the whole chunk comes back.
            let back = answer.unwrap_or_else(|_| {
                log::warn!(commands = entries.len(); "due commands are tried again, since the router crashed");
                let again = |Entry { action, due, .. }| (DueCommand { due, action }, RETRY_INTERVAL);
                entries.into_iter().map(again).collect()
            });
            let now = scheduler.node.store.now();
            for (command, wait) in back {
                let at = command.not_before().max(now.plus(wait));
                let DueCommand { due, action } = command;
                scheduler.dispatched.remove(&(due.action_no, due.agent_no));
                scheduler.insert_or_give_back(&action, &transport, due, at);
            }
            scheduler.dispatch(ctx);
            scheduler.read(ctx);
        }));
    }

    /// Forgets the commands that the router has answered for, unless a read is under way.
    fn forget_answered(&mut self) {
        if !self.reading {
            for key in std::mem::take(&mut self.answered) {
                self.dispatched.remove(&key);
            }
        }
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let next = if self.stopped { None } else { self.lanes.next_to_send() };
        match (next, &self.timer) {
            (Some(next), Some((set, _))) if *set <= next => {}
            (None, None) => {}
            (next, _) => {
                if let Some((_, timer)) = self.timer.take() {
                    ctx.cancel_future(timer);
                }
                if let Some(next) = next {
                    // One millisecond more: the store truncates times to milliseconds, and nothing
                    // may be delivered early.
                    let wait = next.since(self.node.store.now()).min(LONGEST_SLEEP) + Duration::from_millis(1);
                    let timer = ctx.run_later(wait, |scheduler, ctx| {
                        scheduler.timer = None;
                        scheduler.dispatch(ctx);
                        scheduler.read(ctx);
                    });
                    self.timer = Some((next, timer));
                }
            }
        }
    }

    /// Writes `waiting` rows for commands whose agents are not connected here.
    fn hold(&mut self, action: &Arc<Action>, away: Vec<(i64, Timestamp)>, ctx: &mut Context<Self>) {
        if away.is_empty() {
            return;
        }
        let count = away.len();
        self.holds += count;
        let action = action.clone();
        let (store, recorder) = (self.node.store.clone(), self.recorder.clone());
        // The commands are committed before the sessions are read. A node with a session that isn't
        // visible here yet reads them with its backlog.
        let written = async move {
            let agents: Vec<i64> = away.iter().map(|(agent_no, _)| *agent_no).collect();
            let elsewhere: HashSet<i64> = store.session_elsewhere(&agents).await.ok()?.into_iter().collect();
            let here = away.into_iter().filter(|(agent_no, _)| !elsewhere.contains(agent_no));
            let hold = |(agent_no, due_at)| report_of(&action, agent_no, Event::Hold { due_at });
            let reports: Vec<Report> = here.map(hold).collect();
            if reports.is_empty() {
                return Some(());
            }
            recorder.put(reports).await.ok().map(|_| ())
        };
        ctx.spawn(written.into_actor(self).map(move |written, scheduler, ctx| {
            scheduler.holds -= count;
            if written.is_none() {
                // A later comparison finds them: they have neither outcome nor open row.
                log::warn!(commands = count; "commands of absent agents are looked at again later");
            }
            scheduler.read(ctx);
            scheduler.finish_drain();
        }));
    }

    fn finish_drain(&mut self) {
        if self.lanes.chunks() == 0
            && self.holds == 0
            && let Some(drained) = self.draining.take()
        {
            drained.send(()).ok();
        }
    }
}

impl Actor for DelayScheduler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look_again();
        ctx.run_interval(COMPARE_INTERVAL, |scheduler, _| scheduler.look_again());
        ctx.run_interval(READ_AHEAD_INTERVAL, |scheduler, ctx| scheduler.read(ctx));
    }
}

impl Supervised for DelayScheduler {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Commands that were in memory are in the store, and sessions read those of their backlogs again. Nothing is left
        // to drain.
        self.node.signals.look_at_backlogs();
        self.draining.take().map(|drained| drained.send(()));
        let fresh = Self::new(self.node.clone(), self.router.clone(), self.recorder.clone());
        *self = Self { stopped: self.stopped, ..fresh };
    }
}

impl Handler<Committed> for DelayScheduler {
    type Result = ();

    fn handle(&mut self, committed: Committed, ctx: &mut Self::Context) {
        self.take_committed(committed, ctx);
        self.dispatch(ctx);
        self.read(ctx);
    }
}

impl Handler<Rescheduled> for DelayScheduler {
    type Result = ();

    fn handle(&mut self, Rescheduled(again): Rescheduled, ctx: &mut Self::Context) {
        let horizon = self.horizon_end();
        let soon: Vec<Due> = again.into_iter().filter(|due| due.due_at <= horizon).collect();
        self.take_again(soon, ctx);
    }
}

impl Handler<Cancelled> for DelayScheduler {
    type Result = ();

    fn handle(&mut self, cancelled: Cancelled, ctx: &mut Self::Context) {
        for (no, _) in &cancelled.0 {
            self.cursors.by_action.remove(no);
        }
        // The queue is swept a moment later, once for many cancels.
        if self.lanes.len() > 0 {
            if self.cancelled.is_empty() {
                ctx.run_later(CANCEL_SWEEP_INTERVAL, |scheduler, ctx| {
                    let cancelled = std::mem::take(&mut scheduler.cancelled);
                    scheduler.lanes.cancel_where(|(action_no, _)| cancelled.contains(action_no));
                    scheduler.refused = None;
                    scheduler.read(ctx);
                });
            }
            self.cancelled.extend(cancelled.0.iter().map(|(no, _)| *no));
        }
    }
}

impl Handler<Resumed> for DelayScheduler {
    type Result = ();

    fn handle(&mut self, Resumed(nos): Resumed, _: &mut Self::Context) {
        let now = self.node.store.now();
        for no in nos {
            if let Some(cursor) = self.cursors.by_action.get_mut(&no) {
                cursor.go_back(cursor.dispatched.unwrap_or(0), now, Timestamp(i64::MIN));
            }
        }
        // Finds commands with an open row.
        self.open_rows.read_news();
        self.look_again();
    }
}

impl Handler<PeerNews> for DelayScheduler {
    type Result = ();

    fn handle(&mut self, PeerNews { commands, open, everything }: PeerNews, ctx: &mut Self::Context) {
        let now = self.node.store.now();
        for (no, after) in commands {
            let reading = self.node.signals.open_actions().reading();
            let cursor = self
                .cursors
                .by_action
                .entry(no)
                .or_insert_with(|| Cursor { dispatched: Some(0), ..Cursor::new(after, false, reading) });
            // While it is being read, it is read once more.
            cursor.hinted = true;
            cursor.behind.get_or_insert(now);
            cursor.next_due = Timestamp(i64::MIN);
        }
        if open || everything {
            self.open_rows.read_news();
        }
        if everything {
            self.look_again();
        }
        self.read(ctx);
    }
}

impl Handler<OpenActionsRead> for DelayScheduler {
    type Result = ();

    fn handle(&mut self, OpenActionsRead(snapshot): OpenActionsRead, ctx: &mut Self::Context) {
        if self.compare_after.take_if(|after| snapshot.reading > *after).is_some() && !self.stopped {
            self.compare(&snapshot);
            self.read(ctx);
        }
    }
}

impl Handler<Drain> for DelayScheduler {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        // Undelivered commands stay pending in the store.
        self.stopped = true;
        self.lanes.stop(self.node.store.now());
        log::info!(commands = self.lanes.len(); "commands that wait for their time stay in the store");
        let (sender, drained) = oneshot::channel();
        self.draining = Some(sender);
        self.finish_drain();
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
