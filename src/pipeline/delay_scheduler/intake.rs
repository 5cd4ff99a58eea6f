//! How commands come into the scheduler: from the command store's hints, and from the store. Tested through the actor
//! in `tests.rs`.

use super::cursor::Cursor;
use super::{DelayScheduler, HOLDS_AT_A_TIME};
use crate::domain::action::Action;
use crate::domain::agent::STREAM;
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::pipeline::messages::Committed;
use crate::signals::Snapshot;
use crate::store::{Due, DueCursor, StoreError, UndispatchedPage};
use actix::prelude::*;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Open rows are read a second time every this many comparisons. Only lost rows need it.
const SECOND_READING: u32 = 6;
/// How long a command that doesn't fit waits for room, unless it is due sooner.
const FOR_ROOM: Duration = Duration::from_secs(5);
/// How long before its due time such a command is read again. Longer than `READ_AHEAD_INTERVAL`,
/// since nothing else may wake the scheduler in time.
const READ_AHEAD: Duration = Duration::from_secs(3);
/// After a refusal, how long reads are skipped that would bring nothing nearer than the refused
/// command.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Minimum number of rows per read when room is short: one of them may be nearer than the farthest
/// in memory.
const MIN_PAGE: usize = 1_000;
/// How long a paused action is left alone. Resuming it causes a look at once.
const PAUSED: Duration = Duration::from_secs(60);
/// Maximum number of rows per read.
const PAGE: usize = 5_000;

/// The next read.
enum Next {
    /// The commands of an action from its cursor on.
    Commands(i64, i64),
    /// Open rows after this place, due up to this time. `true` marks the second reading.
    Open(DueCursor, Timestamp, bool),
}

/// The result of a read.
enum Page {
    Commands(i64, i64, Option<Arc<Action>>, UndispatchedPage),
    Open(Vec<(Arc<Action>, Arc<str>, Due)>, Option<DueCursor>, Timestamp, bool),
}

impl DelayScheduler {
    /// Takes in commands that were just committed if they join on to the cursor. Otherwise the
    /// cursor falls behind.
    pub(super) fn take_committed(&mut self, committed: Committed, ctx: &mut Context<Self>) {
        let Committed { action, after, through, commands } = committed;
        let now = self.node.store.now();
        let reading = self.node.signals.open_actions().reading();
        let cursor = self.cursors.by_action.entry(action.no).or_insert_with(|| Cursor::new(0, true, reading));
        if let Some((.., due_at)) = commands.first() {
            cursor.first.get_or_insert((after, *due_at));
        }
        if cursor.behind.is_some() || cursor.at != after {
            cursor.hinted = true;
            cursor.behind.get_or_insert(now);
            cursor.next_due = cursor.next_due.min(action.valid_from);
            return;
        }
        let taken = self.take_in(&action, commands, true, ctx);
        if let Some(cursor) = self.cursors.by_action.get_mut(&action.no) {
            match taken {
                Taken::All => cursor.at = through,
                Taken::Until(at, when, due) => {
                    cursor.at = at.max(after);
                    cursor.wait(when, due);
                }
            }
        }
    }

    /// Takes commands in, in key order, as far as there is room and the horizon reaches. For an
    /// action that isn't `owned`, only commands of agents connected here are taken in; the others
    /// belong to another node.
    fn take_in(
        &mut self,
        action: &Arc<Action>,
        commands: Vec<(i64, Arc<str>, Timestamp)>,
        owned: bool,
        ctx: &mut Context<Self>,
    ) -> Taken {
        let (now, horizon) = (self.node.store.now(), self.horizon_end());
        if action.is_paused() && !commands.is_empty() {
            return Taken::Until(0, now.plus(PAUSED), Timestamp(i64::MIN));
        }
        let mut away = Vec::new();
        let mut at = 0;
        let mut stopped = None;
        for (agent_no, transport, due_at) in commands {
            if due_at > horizon {
                // Ahead of its due time by half the horizon.
                stopped = Some((due_at.minus(self.horizon / 2).max(now), due_at));
                break;
            }
            let is_stream = &*transport == STREAM;
            let is_here = is_stream && self.node.presence.contains(agent_no);
            if !owned && !is_here {
                // Belongs to another node.
            } else if is_stream && !is_here {
                if self.holds + away.len() >= HOLDS_AT_A_TIME {
                    stopped = Some((now, due_at));
                    break;
                }
                away.push((agent_no, due_at));
            } else {
                let (action_no, priority) = (action.no, action.priority);
                let due = Due { action_no, agent_no, run: 1, attempts: 0, due_at, priority, open: false };
                if !self.insert(action, &transport, due) {
                    stopped = Some((self.when_there_is_room(due_at), due_at));
                    break;
                }
            }
            at = agent_no;
        }
        self.hold(action, away, ctx);
        stopped.map_or(Taken::All, |(when, due)| Taken::Until(at, when, due))
    }

    /// When to read a command again that found no room. If it is due, that is now.
    fn when_there_is_room(&self, due_at: Timestamp) -> Timestamp {
        let now = self.node.store.now();
        due_at.minus(READ_AHEAD).min(now.plus(FOR_ROOM)).max(now)
    }

    /// Whether commands due at `next_due` or later would only be refused. Expires after
    /// [`TRY_AGAIN`].
    fn is_crowded(&self, now: Timestamp, next_due: Timestamp) -> bool {
        self.refused.is_some_and(|(at, due)| next_due >= due && now.since(at) < TRY_AGAIN)
    }

    /// Schedules another read of a command that was displaced or found no room.
    pub(super) fn give_back(&mut self, transport: &str, due: &Due) {
        self.give_back_at(transport, due, self.when_there_is_room(due.due_at));
    }

    /// The same for a command whose sender takes nothing: not at once, even if it is due.
    pub(super) fn give_back_later(&mut self, transport: &str, due: &Due) {
        self.give_back_at(transport, due, self.node.store.now().plus(FOR_ROOM));
    }

    fn give_back_at(&mut self, transport: &str, due: &Due, when: Timestamp) {
        if due.open {
            self.open_rows.go_back(due, when);
            if transport == STREAM {
                // It may be from a backlog. A session needs no room here for what is due.
                let at = when.max(due.due_at);
                self.backlogs_at = Some(self.backlogs_at.map_or(at, |earlier| earlier.min(at)));
            }
        } else if let Some(cursor) = self.cursors.by_action.get_mut(&due.action_no) {
            cursor.go_back(due.agent_no - 1, when, due.due_at);
        }
    }

    /// Takes in commands with an open row that fall due again. Stream commands of agents that are
    /// not connected here are left to their sessions, which find them when the agents connect. For
    /// other transports, the store says whether this node sends them.
    pub(super) fn take_again(&mut self, again: Vec<Due>, ctx: &mut Context<Self>) {
        if again.is_empty() || self.stopped {
            return;
        }
        let (store, book) = (self.node.store.clone(), self.node.actions.clone());
        let presence = self.node.presence.clone();
        let looked_up = async move {
            let (here, absent): (Vec<Due>, Vec<Due>) =
                again.into_iter().partition(|due| presence.contains(due.agent_no));
            let agents: Vec<i64> = absent.iter().map(|due| due.agent_no).collect();
            let others = store.agent_get_many(&agents).await?.into_iter().filter(|agent| agent.transport != STREAM);
            let others: HashSet<i64> = others.map(|agent| agent.no).collect();
            let mut found = Vec::with_capacity(here.len());
            for due in here {
                if let Some(action) = book.get(due.action_no).await? {
                    found.push((action, due));
                }
            }
            let elsewhere: Vec<Due> = absent.into_iter().filter(|due| others.contains(&due.agent_no)).collect();
            Ok::<_, StoreError>((found, elsewhere))
        };
        ctx.spawn(looked_up.into_actor(self).map(|found, scheduler, ctx| match found {
            Ok((here, elsewhere)) => {
                let (stream, now): (Arc<str>, _) = (STREAM.into(), scheduler.node.store.now());
                for (action, due) in here.into_iter().filter(|(action, _)| !action.is_paused()) {
                    let at = due.due_at;
                    scheduler.insert_or_give_back(&action, &stream, due, at);
                }
                for due in elsewhere {
                    scheduler.open_rows.go_back(&due, now);
                }
                scheduler.dispatch(ctx);
                scheduler.read(ctx);
            }
            Err(error) => log::warn!(error:% = error.chain(); "retries are looked at again later"),
        }));
    }

    /// Starts the next read that is due. Only one runs at a time, for one page.
    pub(super) fn read(&mut self, ctx: &mut Context<Self>) {
        let now = self.node.store.now();
        if self.backlogs_at.take_if(|at| *at <= now).is_some() {
            self.node.signals.look_at_backlogs();
        }
        if self.reading || self.stopped || self.holds >= HOLDS_AT_A_TIME {
            return;
        }
        let Some(next) = self.next_read() else { return };
        self.reading = true;
        let (store, book) = (self.node.store.clone(), self.node.actions.clone());
        let limit = PAGE.min(self.lanes.room().max(MIN_PAGE));
        let read = async move {
            match next {
                Next::Commands(no, after) => {
                    let action = match book.get(no).await {
                        Err(error) if !error.is_transient() => {
                            unreadable(&book.shown(no), &error);
                            None
                        }
                        action => action?,
                    };
                    Ok(Page::Commands(no, after, action, store.command_undispatched(no, after, limit).await?))
                }
                Next::Open(after, until, second) => {
                    let page = store.command_due(after, until, limit).await?;
                    let mut found = Vec::with_capacity(page.found.len());
                    for (due, transport) in page.found {
                        match book.get(due.action_no).await {
                            Ok(Some(action)) => found.push((action, transport, due)),
                            Ok(None) => {}
                            Err(error) if error.is_transient() => return Err(error),
                            Err(error) => unreadable(&book.shown(due.action_no), &error),
                        }
                    }
                    Ok::<_, StoreError>(Page::Open(found, page.through, until, second))
                }
            }
        };
        ctx.spawn(read.into_actor(self).map(|page, scheduler, ctx| match page {
            Ok(page) => {
                scheduler.take_page(page, ctx);
                scheduler.reading = false;
                scheduler.forget_answered();
                scheduler.dispatch(ctx);
                scheduler.read(ctx);
            }
            Err(error) => {
                scheduler.reading = false;
                scheduler.forget_answered();
                log::warn!(error:% = error.chain(); "the scheduler waits for the store");
            }
        }));
    }

    fn next_read(&mut self) -> Option<Next> {
        let (now, horizon) = (self.node.store.now(), self.horizon_end());
        if let Some((place, next_due)) = self.open_rows.next(now, now.plus(self.horizon / 2))
            && !self.is_crowded(now, next_due)
        {
            return Some(Next::Open(place, horizon, false));
        }
        let nearest = self.cursors.nearest(now).filter(|(_, next_due)| !self.is_crowded(now, *next_due));
        // Alternates with first readings: a second reading may bring many rows, again and again.
        self.has_had_turn = !self.has_had_turn && nearest.is_some();
        if let Some(place) = self.open_rows.second()
            && (self.has_had_turn || nearest.is_none())
        {
            // Up to the horizon: a row written by another node may be due soon, and the first
            // reading has passed its place.
            return Some(Next::Open(place, horizon, true));
        }
        let (no, _) = nearest?;
        Some(Next::Commands(no, self.cursors.begin(no, now)?))
    }

    fn take_page(&mut self, page: Page, ctx: &mut Context<Self>) {
        match page {
            Page::Open(found, last, until, second) => {
                for (action, transport, due) in found {
                    let place = (due.due_at, due.action_no, due.agent_no);
                    if second {
                        self.insert_or_give_back(&action, &transport, due, place.0);
                        continue;
                    }
                    if !self.insert(&action, &transport, due) {
                        // The rest is read when there is room.
                        let when = self.when_there_is_room(place.0);
                        return self.open_rows.refused(place, when);
                    }
                    self.open_rows.taken(place);
                }
                if second {
                    self.open_rows.second_read_through(last);
                } else {
                    self.open_rows.read_through(last.unwrap_or((until, i64::MAX, i64::MAX)));
                }
            }
            Page::Commands(no, after, Some(action), page) if !action.is_cancelled() => {
                let now = self.node.store.now();
                let Some(cursor) = self.cursors.by_action.get_mut(&no) else { return };
                cursor.first = page.commands.first().map(|(.., due_at)| (after, *due_at));
                let owned = cursor.owned;
                let last_due = page.commands.last().map_or(now, |(.., due_at)| *due_at);
                let taken = self.take_in(&action, page.commands, owned, ctx);
                let Some(cursor) = self.cursors.by_action.get_mut(&no) else { return };
                match (taken, page.through) {
                    (Taken::Until(at, when, due), _) => {
                        cursor.at = cursor.at.max(at);
                        cursor.wait(when, due);
                    }
                    (Taken::All, Some(through)) => {
                        cursor.at = cursor.at.max(through);
                        cursor.wait(now, last_due);
                    }
                    (Taken::All, None) => cursor.behind = std::mem::take(&mut cursor.hinted).then_some(now),
                }
            }
            Page::Commands(no, ..) => {
                self.cursors.by_action.remove(&no);
            }
        }
    }

    /// Requests a reading of the open actions, with which the cursors are then compared.
    pub(super) fn look_again(&mut self) {
        self.compare_after = Some(self.node.signals.open_actions().reading());
        self.node.signals.read_open_actions();
    }

    /// Adds cursors for open actions that have none and drops those of actions that ended. Moves
    /// back the cursor of an action with missing commands that hasn't advanced since the last
    /// comparison.
    pub(super) fn compare(&mut self, snapshot: &Snapshot) {
        self.comparisons = self.comparisons.wrapping_add(1);
        let Snapshot { reading, actions: open } = snapshot;
        let now = self.node.store.now();
        let known: BTreeSet<i64> = open.iter().map(|action| action.no).collect();
        // Commands that a sender hasn't taken yet are not lost. While there are some, lost ones are
        // looked for less often.
        let looks_for_lost = !self.lanes.has_backlog(now) || self.comparisons.is_multiple_of(SECOND_READING);
        // A cursor that was made after the reading began can't be in its list.
        self.cursors.by_action.retain(|no, cursor| known.contains(no) || cursor.reading >= *reading);
        for action in open.iter().filter(|action| !action.cancelled && !action.expired) {
            let dispatched = action.dispatched_through;
            let fresh = || Cursor {
                behind: Some(now),
                next_due: action.valid_from,
                ..Cursor::new(dispatched, action.owned, *reading)
            };
            let cursor = self.cursors.by_action.entry(action.no).or_insert_with(fresh);
            // This node has become the owner.
            let is_taken_over = !std::mem::replace(&mut cursor.owned, action.owned) && action.owned;
            let is_stuck =
                looks_for_lost && action.valid_from <= now && cursor.is_stuck(dispatched, action.resolved_through, now);
            if is_taken_over || is_stuck {
                cursor.go_back(dispatched, now, action.valid_from);
            }
            cursor.dispatched = Some(dispatched);
        }
        if self.comparisons.is_multiple_of(SECOND_READING) {
            self.open_rows.read_again();
        }
    }
}

/// Logs an action that this version can't read. It must not hold up other actions.
fn unreadable(action: &str, error: &StoreError) {
    log::error!(action, error:% = error.chain(); "an action is passed over");
}

/// How much of a page was taken in.
enum Taken {
    All,
    /// Up to this agent key (0: nothing). Read the rest at the first time; it is due at the second
    /// or later.
    Until(i64, Timestamp, Timestamp),
}
