//! How commands come into the scheduler: from the command store's hints, and from the store.

use super::super::messages::Committed;
use super::{Cursor, DelayScheduler, FIRST, HOLDS_AT_A_TIME};
use crate::domain::action::Action;
use crate::domain::agent::STREAM;
use crate::domain::time::Timestamp;
use crate::store::{Due, DuePlace, OpenAction, StoreError, UntouchedPage};
use actix::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How often open rows that come due within the horizon are read, at most.
pub(super) const READ_AHEAD: Duration = Duration::from_secs(2);
/// How often all open actions are looked at, for what was lost.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Every how many looks open rows are read a second time: only what was lost needs it.
const SECOND_READING: u32 = 6;
/// How long what doesn't fit waits for room, if it is due before.
const FOR_ROOM: Duration = Duration::from_secs(1);
/// How long it waits at most.
const FOR_ROOM_AHEAD: Duration = Duration::from_secs(5);
/// Rows per read, where room is short: one that is nearer than the farthest may be among them.
const LITTLE: usize = 100;
/// How long a paused action is left alone; it is looked at at once when it goes on.
const PAUSED: Duration = Duration::from_secs(60);
/// Rows per read.
const PAGE: usize = 5_000;

/// What is read next.
enum Next {
    /// The commands of an action from its cursor on.
    Commands(i64, i64),
    /// Open rows from this place on, due up to this time; `true`: the second reading.
    Open(DuePlace, Timestamp, bool),
}

/// What a read brought.
enum Page {
    Commands(i64, Option<Arc<Action>>, UntouchedPage),
    Open(Vec<(Arc<Action>, Arc<str>, Due)>, Option<DuePlace>, Timestamp, bool),
}

impl DelayScheduler {
    /// Takes in what was just committed, if it joins on to what is here; else the cursor is behind.
    pub(super) fn take_committed(&mut self, committed: Committed, ctx: &mut Context<Self>) {
        let Committed { action, after, through, commands } = committed;
        let now = self.parts.store.now();
        let cursor = self.cursors.entry(action.no).or_insert(Cursor {
            at: 0,
            behind: None,
            next_due: Timestamp(0),
            hinted: false,
            back: None,
            dispatched: 0,
            owned: true,
        });
        if cursor.behind.is_some() || cursor.at != after {
            cursor.hinted = true;
            cursor.behind.get_or_insert(now);
            return;
        }
        let taken = self.take_in(&action, commands, true, ctx);
        if let Some(cursor) = self.cursors.get_mut(&action.no) {
            match taken {
                Taken::All => cursor.at = through,
                Taken::Until(at, when, due) => {
                    cursor.at = at.max(after);
                    cursor.behind = Some(when);
                    cursor.next_due = due;
                }
            }
        }
    }

    /// Takes commands in, in key order, as far as there is room and the horizon reaches. Those of an action that isn't
    /// `owned` are only taken in if their agents are here; the others are another node's.
    fn take_in(
        &mut self,
        action: &Arc<Action>,
        commands: Vec<(i64, Arc<str>, Timestamp)>,
        owned: bool,
        ctx: &mut Context<Self>,
    ) -> Taken {
        let (now, horizon) = (self.parts.store.now(), self.horizon());
        if action.is_paused() && !commands.is_empty() {
            return Taken::Until(0, now.plus(PAUSED), Timestamp(0));
        }
        let mut away = Vec::new();
        let mut at = 0;
        let mut stopped = None;
        for (agent_no, transport, due_at) in commands {
            if due_at > horizon {
                // Ahead of its time by half the horizon.
                stopped = Some((due_at.minus(self.parts.horizon / 2).max(now), due_at));
                break;
            }
            let is_stream = &*transport == STREAM;
            let is_here = is_stream && self.parts.presence.contains(agent_no);
            if !owned && !is_here {
                // Not ours.
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

    /// When a command that finds no room is to be looked at again; if it is due, that is as soon as there is some.
    fn when_there_is_room(&self, due_at: Timestamp) -> Timestamp {
        let now = self.parts.store.now();
        due_at.minus(FOR_ROOM).min(now.plus(FOR_ROOM_AHEAD)).max(now)
    }

    /// Whether what is due no sooner than `next_due` would only be refused. (Looked at now and then all the same.)
    fn is_crowded(&self, now: Timestamp, next_due: Timestamp) -> bool {
        self.refused.is_some_and(|(at, due)| next_due >= due && now.since(at) < FOR_ROOM)
    }

    /// What was displaced is the store's again: it is to be read once more.
    pub(super) fn give_back(&mut self, due: &Due) {
        let when = self.when_there_is_room(due.due_at);
        if due.open {
            let before = (due.due_at, due.action_no, due.agent_no - 1);
            self.open_back = Some(self.open_back.map_or((before, when), |(at, then)| (at.min(before), then.min(when))));
        } else if let Some(cursor) = self.cursors.get_mut(&due.action_no) {
            cursor.go_back(due.agent_no - 1, when);
            cursor.next_due = cursor.next_due.min(due.due_at);
        }
    }

    /// Takes in commands with an open row that fall due again.
    pub(super) fn take_again(&mut self, again: Vec<Due>, ctx: &mut Context<Self>) {
        if again.is_empty() || self.stopped {
            return;
        }
        let (store, book) = (self.parts.store.clone(), self.parts.book.clone());
        let presence = self.parts.presence.clone();
        let looked_up = async move {
            let mut transports: HashMap<i64, Arc<str>> = HashMap::new();
            let absent: Vec<i64> = again.iter().map(|due| due.agent_no).filter(|no| !presence.contains(*no)).collect();
            for agent in store.agent_get_many(&absent).await? {
                transports.insert(agent.no, agent.transport.into());
            }
            let stream: Arc<str> = STREAM.into();
            let mut found = Vec::with_capacity(again.len());
            for due in again {
                let transport = if presence.contains(due.agent_no) {
                    stream.clone()
                } else {
                    match transports.get(&due.agent_no) {
                        // Removed, or a stream that is not connected here: its session finds the row when it comes.
                        None => continue,
                        Some(transport) if &**transport == STREAM => continue,
                        Some(transport) => transport.clone(),
                    }
                };
                if let Some(action) = book.get(due.action_no).await? {
                    found.push((action, transport, due));
                }
            }
            Ok::<_, StoreError>(found)
        };
        ctx.spawn(looked_up.into_actor(self).map(|found, scheduler, ctx| match found {
            Ok(found) => {
                for (action, transport, due) in found.into_iter().filter(|(action, ..)| !action.is_paused()) {
                    scheduler.insert(&action, &transport, due);
                }
                scheduler.dispatch(ctx);
            }
            Err(error) => log::warn!(error = error.to_string().as_str(); "retries are looked at again later"),
        }));
    }

    /// Reads what is due to be read, one page at a time.
    pub(super) fn read(&mut self, ctx: &mut Context<Self>) {
        if self.reading || self.stopped || self.holds >= HOLDS_AT_A_TIME {
            return;
        }
        let Some(next) = self.next_read() else { return };
        self.reading = true;
        let (store, book) = (self.parts.store.clone(), self.parts.book.clone());
        let limit = PAGE.min(self.queue.room().max(LITTLE));
        let read = async move {
            match next {
                Next::Commands(no, after) => {
                    let action = match book.get(no).await {
                        Err(error) if !error.is_transient() => {
                            unreadable(no, &error);
                            None
                        }
                        action => action?,
                    };
                    Ok(Page::Commands(no, action, store.command_untouched(no, after, limit).await?))
                }
                Next::Open(after, until, second) => {
                    let rows = store.command_due(after, until, limit).await?;
                    let full = rows.len() >= limit;
                    let last = rows.last().filter(|_| full).map(|(due, _)| (due.due_at, due.action_no, due.agent_no));
                    let mut found = Vec::with_capacity(rows.len());
                    for (due, transport) in rows {
                        match book.get(due.action_no).await {
                            Ok(Some(action)) => found.push((action, transport, due)),
                            Ok(None) => {}
                            Err(error) if error.is_transient() => return Err(error),
                            Err(error) => unreadable(due.action_no, &error),
                        }
                    }
                    Ok::<_, StoreError>(Page::Open(found, last, until, second))
                }
            }
        };
        ctx.spawn(read.into_actor(self).map(|page, scheduler, ctx| {
            scheduler.reading = false;
            match page {
                Ok(page) => {
                    scheduler.take_page(page, ctx);
                    scheduler.dispatch(ctx);
                    scheduler.read(ctx);
                }
                Err(error) => log::warn!(error = error.to_string().as_str(); "the scheduler waits for the store"),
            }
        }));
    }

    /// Reads all open rows that are due a second time; when that is under way, once more when it is done, lest it never
    /// comes beyond its beginning.
    pub(super) fn read_open_again(&mut self) {
        match self.second_reading {
            Some(_) => self.read_once_more = true,
            None => self.second_reading = Some(FIRST),
        }
    }

    fn next_read(&mut self) -> Option<Next> {
        let (now, horizon) = (self.parts.store.now(), self.horizon());
        if let Some((place, when)) = self.open_back
            && when <= now
        {
            self.open_back = None;
            self.open_read_through = self.open_read_through.min(place);
        }
        if self.open_read_through.0 < now.plus(self.parts.horizon / 2) && self.open_not_before <= now {
            return Some(Next::Open(self.open_read_through, horizon, false));
        }
        if let Some(place) = self.second_reading {
            return Some(Next::Open(place, now, true));
        }
        let behind = |cursor: &Cursor| {
            cursor.behind.is_some_and(|when| when <= now) || cursor.back.is_some_and(|(_, when)| when <= now)
        };
        // The nearest first, lest what has time fills the room; of those alike each has its turn.
        let waiting = self.cursors.iter().filter(|(_, cursor)| behind(cursor));
        let turn = |(no, cursor): &(&i64, &Cursor)| (cursor.next_due, **no <= self.last_read, **no);
        let (no, next_due) = waiting.min_by_key(turn).map(|(no, cursor)| (*no, cursor.next_due))?;
        if self.is_crowded(now, next_due) {
            return None;
        }
        self.last_read = no;
        let cursor = self.cursors.get_mut(&self.last_read)?;
        if let Some((at, _)) = cursor.back.take() {
            cursor.at = cursor.at.min(at);
        }
        Some(Next::Commands(self.last_read, cursor.at))
    }

    fn take_page(&mut self, page: Page, ctx: &mut Context<Self>) {
        match page {
            Page::Open(found, last, until, second) => {
                for (action, transport, due) in found {
                    let place = (due.due_at, due.action_no, due.agent_no);
                    if !self.insert(&action, &transport, due) && !second {
                        // Up to here; the rest when there is room.
                        self.open_not_before = self.when_there_is_room(place.0);
                        return;
                    }
                    if !second {
                        self.open_read_through = place;
                    }
                }
                if second {
                    self.second_reading = last;
                    if last.is_none() && std::mem::take(&mut self.read_once_more) {
                        self.second_reading = Some(FIRST);
                    }
                } else {
                    self.open_read_through = last.unwrap_or((until, i64::MAX, i64::MAX));
                }
            }
            Page::Commands(no, Some(action), page) if !action.is_cancelled() => {
                let now = self.parts.store.now();
                let Some(owned) = self.cursors.get(&no).map(|cursor| cursor.owned) else { return };
                let taken = self.take_in(&action, page.commands, owned, ctx);
                let Some(cursor) = self.cursors.get_mut(&no) else { return };
                match (taken, page.through) {
                    (Taken::Until(at, when, due), _) => {
                        cursor.at = cursor.at.max(at);
                        cursor.behind = Some(when);
                        cursor.next_due = due;
                    }
                    (Taken::All, Some(through)) => {
                        cursor.at = cursor.at.max(through);
                        cursor.behind = Some(now);
                    }
                    (Taken::All, None) => cursor.behind = std::mem::take(&mut cursor.hinted).then_some(now),
                }
            }
            Page::Commands(no, ..) => {
                self.cursors.remove(&no);
            }
        }
    }

    /// Looks at all open actions: knows those it didn't know, forgets those that ended, and goes back in those where
    /// nothing has moved since the last time though commands are missing.
    pub(super) fn look_again(&mut self, ctx: &mut Context<Self>) {
        if self.stopped {
            return;
        }
        let store = self.parts.store.clone();
        let list = async move {
            let mut open: Vec<OpenAction> = Vec::new();
            loop {
                let after = open.last().map_or(0, |action| action.no);
                let page = store.action_list_open(after, PAGE).await?;
                let full = page.len() >= PAGE;
                open.extend(page);
                if !full {
                    return Ok::<_, StoreError>(open);
                }
            }
        };
        ctx.spawn(list.into_actor(self).map(|open, scheduler, ctx| match open {
            Ok(open) => {
                scheduler.compare(&open);
                scheduler.read(ctx);
            }
            Err(error) => log::warn!(error = error.to_string().as_str(); "open actions are looked at again later"),
        }));
    }

    fn compare(&mut self, open: &[OpenAction]) {
        let now = self.parts.store.now();
        let known: BTreeSet<i64> = open.iter().map(|action| action.no).collect();
        self.cursors.retain(|no, _| known.contains(no));
        for action in open.iter().filter(|action| !action.cancelled && !action.expired) {
            let dispatched = action.dispatched_through;
            let fresh = Cursor {
                at: dispatched,
                behind: Some(now),
                next_due: Timestamp(0),
                hinted: false,
                back: None,
                dispatched,
                owned: action.owned,
            };
            let cursor = self.cursors.entry(action.no).or_insert(fresh);
            // What is not due yet, and what waits for its time beyond the horizon, is not missing.
            let waits = action.valid_from > now || cursor.behind.is_some_and(|when| when <= now);
            // What was another node's is this one's now.
            let is_taken_over = !std::mem::replace(&mut cursor.owned, action.owned) && action.owned;
            let is_stuck = !waits && dispatched < action.resolved_through && cursor.dispatched == dispatched;
            if is_taken_over || is_stuck {
                cursor.go_back(dispatched, now);
                cursor.next_due = Timestamp(0);
            }
            cursor.dispatched = dispatched;
        }
        if self.looks.is_multiple_of(SECOND_READING) {
            self.second_reading.get_or_insert(FIRST);
        }
        self.looks = self.looks.wrapping_add(1);
    }
}

/// An action that this version can't read keeps nobody else waiting.
fn unreadable(no: i64, error: &StoreError) {
    log::error!(action = no, error = error.to_string().as_str(); "an action is passed over");
}

/// How much of a page was taken in.
enum Taken {
    All,
    /// Up to this agent key (0: nothing); the rest is to be looked at then, and is due no sooner than that.
    Until(i64, Timestamp, Timestamp),
}
