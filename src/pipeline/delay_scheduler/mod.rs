//! Delivers commands when they are due.
//!
//! Only what is due within `delay.horizon`, and whose agent can be reached from here, is in memory; the rest waits in the
//! store. Three ways lead in:
//! - a *cursor* per open action over its commands in key order (due times grow with the key). The command store's
//!   [`Committed`] moves it on without reading; where that doesn't join on, or there is no room, or the rest is not due
//!   yet, the cursor stays *behind* and reads from the store when its time has come;
//! - open rows that fall due again, by [`Rescheduled`] and read ahead of time from the store;
//! - now and then everything that should have gone out long ago is read again: a lost hint costs latency and nothing else.
//!
//! Where room is short the nearest are in memory: what is nearer displaces the farthest, which goes back to the store, and
//! its cursor back to before it.
//!
//! What is paused or cancelled is passed over when it is due, from that moment on. What was paused is read again when it is
//! resumed. Delays, `valid_from`, spreads and retries all pass through here. Timeouts and expiry are not scheduled here. They
//! need to be accurate to seconds only, so a reconciler finds them by an index.
//!
//! Commands of agents that have no connection here get an open row `waiting`, and are found when the agent connects.
//! What is due goes to the sender router in order of (due time, priority, arrival), in chunks, a few at a time.
//!
//! Crash: it restarts with empty state, each cursor at the action's `dispatched_through`. What was in flight may go out
//! twice; agents run it once.

mod cursor;
mod intake;
mod open_rows;
#[cfg(test)]
mod tests;

use super::messages::{Committed, Dispatch};
use super::sender_router::SenderRouter;
use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::command::Event;
use crate::domain::delay::{DelayQueue, InsertError, WhenFull};
use crate::domain::time::Timestamp;
use crate::runtime::Drain;
use crate::senders::{Delivery, Recorder, report_of};
use crate::signals::{Cancelled, OpenActionsRead, PeerNews, Rescheduled, Resumed};
use crate::store::{Due, Report};
use actix::prelude::*;
use cursor::{Cursor, Cursors};
use open_rows::OpenRows;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How much goes to the router at a time.
const CHUNK: usize = 1_000;
/// Chunks that the router has not answered yet.
const CHUNKS_AT_A_TIME: usize = 4;
/// How many commands may be on their way to a `waiting` row.
const HOLDS_AT_A_TIME: usize = 20_000;
/// How long what was cancelled may stay in memory.
const CANCEL_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The wait before a command whose chunk the router gave back is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Sleep no longer than this: the machine's clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// How often open rows that come due within the horizon are read, at most.
const READ_AHEAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often all open actions are compared with the cursors, for what was lost.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);
/// Commands are read ahead at least so far: a read takes time, and comes every few seconds.
const LEAST_HORIZON: Duration = Duration::from_secs(5);

/// What is known of a command in memory.
#[derive(Clone, Debug)]
struct Entry {
    action: Arc<Action>,
    transport: Arc<str>,
    due: Due,
}

/// See the module.
pub struct DelayScheduler {
    node: Arc<Node>,
    router: Addr<SenderRouter>,
    recorder: Recorder,
    /// How far ahead of their time commands are in memory.
    horizon: Duration,
    queue: DelayQueue<(i64, i64), Entry>,
    cursors: Cursors,
    open_rows: OpenRows,
    /// When something found no room, and when that is due; none has been made since.
    refused: Option<(Timestamp, Timestamp)>,
    /// Comparisons with the open actions so far.
    comparisons: u32,
    /// The first reading of the open actions after this one is to be compared with the cursors.
    compare_after: Option<u64>,
    /// The last read was one of open rows for the second time.
    has_had_turn: bool,
    /// Commands in chunks that the router has: their run, and attempts before. An answer during a read is kept in mind
    /// until that is done: it may bring them as they were before.
    dispatched: HashMap<(i64, i64), (i32, i32)>,
    answered: Vec<(i64, i64)>,
    chunks: usize,
    holds: usize,
    /// Cancelled actions of which something may be in memory.
    cancelled: HashSet<i64>,
    reading: bool,
    timer: Option<(Timestamp, SpawnHandle)>,
    draining: Option<oneshot::Sender<()>>,
    stopped: bool,
}

impl DelayScheduler {
    /// With nothing in memory.
    pub fn new(node: Arc<Node>, router: Addr<SenderRouter>, recorder: Recorder) -> Self {
        let delay = &node.config.delay;
        Self {
            horizon: delay.horizon.0.max(LEAST_HORIZON),
            queue: DelayQueue::new(delay.capacity, WhenFull::Displace),
            cursors: Cursors::default(),
            open_rows: OpenRows::new(),
            refused: None,
            comparisons: 0,
            compare_after: None,
            has_had_turn: false,
            dispatched: HashMap::new(),
            answered: Vec::new(),
            chunks: 0,
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

    /// Puts one command in; false when there is no room for it.
    fn insert(&mut self, action: &Arc<Action>, transport: &Arc<str>, due: Due) -> bool {
        let at = due.due_at;
        self.insert_at(action, transport, due, at)
    }

    /// The same, to go out at a time of its own.
    fn insert_at(&mut self, action: &Arc<Action>, transport: &Arc<str>, due: Due, at: Timestamp) -> bool {
        let key = (due.action_no, due.agent_no);
        let at = at.max(action.valid_from);
        if self.dispatched.get(&key).is_some_and(|known| (due.run, due.attempts) <= *known) {
            return true;
        }
        let entry = Entry { action: action.clone(), transport: transport.clone(), due };
        match self.queue.insert(key, at, action.priority, entry) {
            Ok(None) | Err(InsertError::Known(_) | InsertError::Stopped(_)) => true,
            Ok(Some(displaced)) => {
                self.give_back(&displaced.value.due);
                true
            }
            Err(InsertError::Full(_)) => {
                self.refused = Some((self.node.store.now(), at));
                false
            }
        }
    }

    /// The same; what finds no room is read again later.
    fn insert_or_give_back(&mut self, action: &Arc<Action>, transport: &Arc<str>, due: Due, at: Timestamp) {
        if !self.insert_at(action, transport, due.clone(), at) {
            self.give_back(&due);
        }
    }

    /// Delivers what is due, and sets the timer for what comes next.
    fn dispatch(&mut self, ctx: &mut Context<Self>) {
        crate::fault_point!("delay_scheduler");
        while !self.stopped && self.chunks < CHUNKS_AT_A_TIME {
            let now = self.node.store.now();
            let mut due = self.queue.pop_due(now, CHUNK);
            if due.is_empty() {
                break;
            }
            self.refused = None;
            // What a user ended or what expired gets its outcome from the housekeeper; what is paused is read again.
            let goes_on = |action: &Action| !action.is_cancelled() && !action.is_paused() && action.expires_at > now;
            due.retain(|entry| goes_on(&entry.value.action));
            let entries: Vec<Entry> = due.into_iter().map(|entry| entry.value).collect();
            entries.iter().for_each(|entry| self.node.metrics.dispatched(now.since(entry.due.due_at)));
            self.send_chunk(entries, ctx);
        }
        self.node.metrics.delay_entries(self.queue.len(), self.queue.next_due());
        self.set_timer(ctx);
        self.finish_drain();
    }

    fn send_chunk(&mut self, entries: Vec<Entry>, ctx: &mut Context<Self>) {
        if entries.is_empty() {
            return;
        }
        let known = |entry: &Entry| ((entry.due.action_no, entry.due.agent_no), (entry.due.run, entry.due.attempts));
        self.dispatched.extend(entries.iter().map(known));
        let deliveries = entries
            .iter()
            .map(|entry| (entry.transport.clone(), Delivery { due: entry.due.clone(), action: entry.action.clone() }))
            .collect();
        self.chunks += 1;
        let answer = self.router.send(Dispatch(deliveries));
        ctx.spawn(answer.into_actor(self).map(move |answer, scheduler, ctx| {
            crate::fault_point!("delay_scheduler.answered");
            scheduler.chunks -= 1;
            scheduler.answered.extend(entries.iter().map(|entry| (entry.due.action_no, entry.due.agent_no)));
            scheduler.forget_answered();
            // All of it, if the router itself crashed.
            let back = answer.unwrap_or_else(|_| {
                entries
                    .into_iter()
                    .map(|Entry { action, transport, due }| (transport, Delivery { due, action }))
                    .collect()
            });
            if !back.is_empty() {
                log::warn!(commands = back.len(); "due commands came back and are tried again");
                let again = scheduler.node.store.now().plus(RETRY_INTERVAL);
                for (transport, delivery) in back {
                    let at = delivery.not_before().max(again);
                    let Delivery { due, action } = delivery;
                    scheduler.dispatched.remove(&(due.action_no, due.agent_no));
                    scheduler.insert_or_give_back(&action, &transport, due, at);
                }
            }
            scheduler.dispatch(ctx);
            scheduler.read(ctx);
        }));
    }

    /// Forgets what the router has answered for, unless a read is under way.
    fn forget_answered(&mut self) {
        if !self.reading {
            for key in std::mem::take(&mut self.answered) {
                self.dispatched.remove(&key);
            }
        }
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let next = if self.stopped || self.chunks >= CHUNKS_AT_A_TIME { None } else { self.queue.next_due() };
        match (next, &self.timer) {
            (Some(next), Some((set, _))) if *set <= next => {}
            (None, None) => {}
            (next, _) => {
                if let Some((_, timer)) = self.timer.take() {
                    ctx.cancel_future(timer);
                }
                if let Some(next) = next {
                    // A millisecond more: the store's time is cut to milliseconds, and nothing may go out early.
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

    /// Writes `waiting` rows for commands whose agents are not here.
    fn hold(&mut self, action: &Arc<Action>, away: Vec<(i64, Timestamp)>, ctx: &mut Context<Self>) {
        if away.is_empty() {
            return;
        }
        let count = away.len();
        self.holds += count;
        let action = action.clone();
        let (store, recorder) = (self.node.store.clone(), self.recorder.clone());
        // The commands are committed, and then the sessions are read: a node whose session isn't seen here yet reads them
        // with its backlog.
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
                // The slow reading finds them: they have neither outcome nor open row.
                log::warn!(commands = count; "commands of absent agents are looked at again later");
            }
            scheduler.read(ctx);
            scheduler.finish_drain();
        }));
    }

    fn finish_drain(&mut self) {
        if self.chunks == 0
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
        // What was in hand is in the store; nothing is left to be drained.
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
        // Its memory is given back a moment later, that of many at once.
        if !self.queue.is_empty() {
            if self.cancelled.is_empty() {
                ctx.run_later(CANCEL_SWEEP_INTERVAL, |scheduler, ctx| {
                    let cancelled = std::mem::take(&mut scheduler.cancelled);
                    scheduler.queue.cancel_where(|(action_no, _), _| cancelled.contains(action_no));
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
        // Those with an open row.
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
        // What is not delivered stays pending in the store.
        self.stopped = true;
        self.queue.stop(self.node.store.now());
        log::info!(commands = self.queue.len(); "commands that wait for their time stay in the store");
        let (sender, drained) = oneshot::channel();
        self.draining = Some(sender);
        self.finish_drain();
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
