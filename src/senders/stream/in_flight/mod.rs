//! The commands of one connected agent, in flight or waiting: the part of a session that needs no
//! runtime.
//!
//! A command is *queued* until the agent has room, then *flying* until its result is stored. At
//! most `capacity` commands fly at a time. A command that the session holds for longer than
//! [`OPEN_ROW_AFTER`] gets an open row, so that the store knows where it is. Most commands are over
//! before that, and cost their two inserts and nothing else.

use crate::domain::action::{Action, GRACE};
use crate::domain::command::Event;
use crate::domain::protocol::{Command, RunRef, RunResult};
use crate::domain::time::Timestamp;
use crate::senders::due_command::{DueCommand, hold_report, report_of};
use crate::store::Report;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod results;
#[cfg(test)]
mod tests;

pub use results::result_report;

/// How long a command may be in a session without an open row.
pub const OPEN_ROW_AFTER: Duration = Duration::from_secs(1);
/// How long after delivery `received` must come, for a small command.
pub const RECEIVED_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes a second that a slow connection carries: what comes behind a large command has more time.
const SLOW: usize = 128 * 1024;
/// Maximum number of commands that wait for room. More stay in the store.
pub const QUEUE: usize = 256;
/// Rows read from the store are offered within this time. A later one may be delivered again, which
/// costs one message.
const STALE: Duration = Duration::from_secs(5);
/// The longest wait before a command that was early is read again: the database's clock may be set.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of unfinished commands at an agent, whatever capacity it announces.
pub const MAX_CAPACITY: usize = 1_000;
/// Bytes of commands that may be on their way to an agent without [room](InFlight::set_room) for them. If the agent doesn't
/// read, they are in this process's memory. One that reads says `received` long before this is a bottleneck.
pub const FREE: usize = 32 * 1024;

/// (−priority, due, action): the order of delivery.
type Turn = (Reverse<i32>, Timestamp, i64);

#[derive(Debug)]
struct Queued {
    delivery: DueCommand,
    since: Instant,
}

#[derive(Debug)]
struct Flying {
    action: Arc<Action>,
    due_at: Timestamp,
    attempts: i32,
    /// As far as this session knows, the store has no row about the run.
    skip_lookup: bool,
    /// Its open row is written, or being written.
    recorded: bool,
    delivered_at: Instant,
    /// When `received` must have come.
    received_by: Instant,
    received_at: Option<Timestamp>,
    /// Its result is being stored.
    ended: bool,
    /// `received` did not come: the attempt has failed, and its report is being stored.
    given_up: bool,
    /// When to stop waiting for its result.
    until: Option<Instant>,
}

impl Flying {
    /// Bytes on their way to the agent.
    fn in_transit(&self) -> usize {
        if self.received_at.is_some() || self.ended { 0 } else { size_of(&self.action) }
    }

    fn wait_from(&mut self, clock: Instant) {
        // One second longer than the `overdue` reconciler waits, so that the store's decision comes
        // first.
        self.until.get_or_insert(clock + self.action.policy.timeout + GRACE + Duration::from_secs(1));
    }
}

/// About as many bytes a command of this action has in a frame.
pub fn size_of(action: &Action) -> usize {
    action.operations.get().len() + action.name.len() + 256
}

/// The result of offering a command.
#[derive(Debug)]
pub enum Offered {
    /// It waits for room.
    Queued,
    /// The session has it already.
    Known,
    /// There is no room for this command, which was offered or displaced. It must stay in the
    /// store.
    Back(DueCommand),
}

/// See the module.
#[derive(Debug)]
pub struct InFlight {
    agent_no: i64,
    capacity: usize,
    queue: BTreeMap<Turn, Queued>,
    flying: HashMap<RunRef, Flying>,
    /// The run of each action's command that is queued or flying.
    runs: HashMap<i64, i32>,
    /// Runs that ended here within the current [`STALE`] period and the one before. A read that
    /// began earlier may still bring them.
    over: [HashSet<(i64, i32)>; 2],
    over_since: Option<Instant>,
    /// Reports about commands that were put back, because their action is paused or they are early.
    put_back: Vec<Report>,
    /// When the first of the early commands is due.
    early_until: Option<Instant>,
    /// Bytes that may be on their way to the agent beside [`FREE`].
    room: usize,
    /// Until then, `received` may lie unread in the socket.
    deaf_until: Option<Instant>,
}

impl InFlight {
    /// An empty queue for an agent that takes `capacity` commands at a time.
    pub fn new(agent_no: i64, capacity: u32) -> Self {
        let capacity = usize::try_from(capacity).unwrap_or(MAX_CAPACITY).min(MAX_CAPACITY);
        Self {
            agent_no,
            capacity,
            queue: BTreeMap::new(),
            flying: HashMap::new(),
            runs: HashMap::new(),
            over: Default::default(),
            over_since: None,
            put_back: Vec::new(),
            early_until: None,
            room: 0,
            deaf_until: None,
        }
    }

    /// The agent is not read now: what it says may be that it has received something.
    pub fn is_not_read(&mut self, clock: Instant) {
        self.deaf_until = Some(clock + RECEIVED_TIMEOUT);
    }

    /// When a command without `received` is late.
    fn late_at(&self, flying: &Flying) -> Instant {
        self.deaf_until.map_or(flying.received_by, |until| until.max(flying.received_by))
    }

    /// Sets how many bytes may be on their way to the agent, beside a few.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
    }

    /// Bytes on their way to the agent.
    pub fn in_transit(&self) -> usize {
        self.flying.values().map(Flying::in_transit).sum()
    }

    /// The size of the next command, if it is too large for the room that there is, and nothing else is on its way.
    pub fn wants_room(&self) -> Option<usize> {
        let (_, queued) = self.queue.first_key_value()?;
        let size = size_of(&queued.delivery.action);
        let waits = self.flying.len() < self.capacity && size > FREE + self.room && self.in_transit() == 0;
        waits.then_some(size)
    }

    /// Whether the agent has not received what was sent to it in time, and there is much of that.
    pub fn is_unread(&self, clock: Instant) -> bool {
        let is_late = |flying: &Flying| flying.in_transit() > 0 && clock >= self.late_at(flying);
        self.in_transit() > FREE && self.flying.values().any(is_late)
    }

    /// Number of commands that wait for room.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Number of commands at the agent or on their way to it.
    pub fn flying(&self) -> usize {
        self.flying.len()
    }

    /// Takes a due command if it isn't known and there is room. If the queue is full, a more urgent
    /// command displaces the least urgent one. While the `store_has_more`, only commands more
    /// urgent than the last one here are taken: others in the store may be more urgent than the
    /// rest, and the queue must stay the beginning of all waiting commands.
    pub fn offer(&mut self, delivery: DueCommand, store_has_more: bool, now: Instant) -> Offered {
        let no = delivery.action.no;
        self.turn_over(now);
        if self.over.iter().any(|over| over.contains(&(no, delivery.due.run))) {
            return Offered::Known;
        }
        match self.runs.get(&no) {
            Some(run) if *run >= delivery.due.run => return Offered::Known,
            Some(_) => self.forget_action(no),
            None => {}
        }
        let turn = (Reverse(delivery.action.priority), delivery.due.due_at, no);
        let is_before_last = self.queue.last_key_value().is_some_and(|(last, _)| turn < *last);
        if !is_before_last && (store_has_more || self.queue.len() >= QUEUE) {
            return Offered::Back(delivery);
        }
        self.runs.insert(no, delivery.due.run);
        self.queue.insert(turn, Queued { delivery, since: now });
        match self.queue.len() > QUEUE {
            true => self.queue.pop_last().map_or(Offered::Queued, |((_, _, no), displaced)| {
                self.runs.remove(&no);
                Offered::Back(displaced.delivery)
            }),
            false => Offered::Queued,
        }
    }

    fn forget_action(&mut self, no: i64) {
        self.runs.remove(&no);
        self.queue.retain(|(_, _, queued), _| *queued != no);
        self.flying.retain(|_, flying| flying.action.no != no);
    }

    /// Takes the reports about commands that [`deliver`](Self::deliver) put back.
    pub fn take_put_back(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.put_back)
    }

    /// The commands to deliver now, as far as the agent has room. Cancelled and expired commands
    /// are dropped: a reconciler closes them. Paused and early ones go back to the store. A command
    /// may be early because the database's clock was set back.
    pub fn deliver(&mut self, now: Timestamp, clock: Instant) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.queue.is_empty() {
            return commands;
        }
        let mut in_transit = self.in_transit();
        while self.flying.len() < self.capacity {
            let Some(next) = self.queue.first_entry() else { break };
            let action = &next.get().delivery.action;
            if in_transit + size_of(action) > FREE + self.room && !action.is_paused() && !action.is_cancelled() {
                break;
            }
            let Queued { delivery, .. } = next.remove();
            if delivery.action.is_paused() && !delivery.action.is_cancelled() {
                self.runs.remove(&delivery.action.no);
                self.put_back.extend((!delivery.due.open).then(|| hold_report(&delivery)));
                continue;
            }
            let not_before = delivery.not_before();
            if not_before > now && !delivery.action.is_cancelled() {
                self.runs.remove(&delivery.action.no);
                self.put_back.extend((!delivery.due.open).then(|| hold_report(&delivery)));
                let wait = (not_before.since(now) + Duration::from_millis(1)).min(RECHECK_INTERVAL);
                self.early_until = Some(self.early_until.map_or(clock + wait, |until| until.min(clock + wait)));
                continue;
            }
            if delivery.action.is_cancelled() || delivery.action.expires_at <= now {
                self.runs.remove(&delivery.action.no);
                continue;
            }
            commands.push(delivery.command());
            let DueCommand { due, action } = delivery;

            in_transit += size_of(&action);
            let flying = Flying {
                skip_lookup: due.run == 1 && !due.open,
                due_at: due.due_at,
                attempts: due.attempts,
                recorded: false,
                delivered_at: clock,
                received_by: clock + RECEIVED_TIMEOUT + Duration::from_secs((in_transit / SLOW) as u64),
                received_at: None,
                ended: false,
                given_up: false,
                until: None,
                action,
            };
            self.flying.insert(RunRef { action: flying.action.id, run: due.run }, flying);
        }
        commands
    }

    /// The agent has received this run. False if this session didn't deliver it.
    pub fn received(&mut self, run: RunRef, now: Timestamp, clock: Instant) -> bool {
        match self.flying.get_mut(&run) {
            Some(flying) => {
                flying.wait_from(clock);
                flying.received_at.get_or_insert(now);
                true
            }
            None => false,
        }
    }

    /// Takes in a run that the agent has from an earlier connection.
    pub fn adopt(&mut self, action: Arc<Action>, run: i32, now: Timestamp, clock: Instant) {
        // The newer run of the same command is killing this one.
        if self.runs.get(&action.no).is_some_and(|known| *known > run) {
            return;
        }
        self.forget_action(action.no);
        self.runs.insert(action.no, run);
        let run = RunRef { action: action.id, run };
        let mut flying = Flying {
            skip_lookup: false,
            due_at: action.valid_from,
            attempts: 0,
            recorded: false,
            delivered_at: clock,
            received_by: clock,
            received_at: Some(now),
            ended: false,
            given_up: false,
            until: None,
            action,
        };
        flying.wait_from(clock);
        self.flying.insert(run, flying);
    }

    /// The report for a result of a run that this session delivered.
    pub fn ended(&mut self, result: &RunResult, now: Timestamp) -> Option<Report> {
        let flying = self.flying.get_mut(&result.run_ref())?;
        flying.ended = true;
        flying.received_at.get_or_insert(now);
        let skip_lookup = flying.skip_lookup && !flying.recorded;
        Some(result_report(
            &flying.action,
            self.agent_no,
            result,
            flying.attempts,
            flying.received_at,
            skip_lookup,
            now,
        ))
    }

    /// Forgets a run that is no longer this session's concern, whatever was recorded about it.
    pub fn forget(&mut self, run: RunRef) {
        if let Some(flying) = self.flying.remove(&run)
            && self.runs.get(&flying.action.no) == Some(&run.run)
        {
            self.runs.remove(&flying.action.no);
        }
    }

    /// A report about this run is stored. If it was about a failed attempt, the run no longer takes
    /// up room.
    pub fn settled(&mut self, run: RunRef) {
        if self.flying.get(&run).is_some_and(|flying| flying.given_up) {
            self.forget(run);
        }
    }

    /// Whether a command of this action is queued or flying.
    pub fn has(&self, action: uuid::Uuid) -> bool {
        self.flying.keys().any(|run| run.action == action)
            || self.queue.values().any(|queued| queued.delivery.action.id == action)
    }

    /// The store says that this run is over. It must not be delivered again, even if an earlier
    /// read brings it.
    pub fn finish(&mut self, run: RunRef, now: Instant) {
        self.turn_over(now);
        if let Some(flying) = self.flying.get(&run) {
            self.over[0].insert((flying.action.no, run.run));
        }
        self.forget(run);
    }

    fn turn_over(&mut self, now: Instant) {
        if now.saturating_duration_since(*self.over_since.get_or_insert(now)) >= STALE {
            self.over_since = Some(now);
            self.over = [HashSet::new(), std::mem::take(&mut self.over[0])];
        }
    }

    /// Removes all commands of these cancelled actions, and returns the actions that the agent has.
    pub fn cancel(&mut self, nos: &[i64]) -> Vec<uuid::Uuid> {
        let here: Vec<uuid::Uuid> = self
            .flying
            .values()
            .filter(|flying| nos.contains(&flying.action.no) && !flying.ended)
            .map(|flying| flying.action.id)
            .collect();
        self.queue.retain(|(_, _, no), _| !nos.contains(no));
        self.flying.retain(|_, flying| flying.ended || !nos.contains(&flying.action.no));
        self.runs.retain(|no, _| !nos.contains(no));
        here
    }

    /// Whether an early command that was put back may be due now, and should be read again.
    pub fn take_early(&mut self, clock: Instant) -> bool {
        self.early_until.take_if(|until| clock >= *until).is_some()
    }

    /// The next time to call [`look_at_clock`](Self::look_at_clock): a window ends, or `received`
    /// is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let flying = self.flying.values().filter(|flying| !flying.ended).filter_map(|flying| {
            match (flying.received_at, flying.recorded) {
                (Some(_), true) => flying.until,
                (None, true) => Some(self.late_at(flying)),
                (_, false) => Some(flying.delivered_at + OPEN_ROW_AFTER),
            }
        });
        let queued =
            self.queue.values().filter(|queued| !queued.delivery.due.open).map(|queued| queued.since + OPEN_ROW_AFTER);
        flying.chain(queued).chain(self.early_until).min()
    }

    /// Reports for commands that have been here for longer than the window, and for failed
    /// attempts.
    pub fn look_at_clock(&mut self, clock: Instant) -> Vec<(Option<RunRef>, Report)> {
        let mut reports = Vec::new();
        // The `overdue` reconciler has given these up, and the agent kills them on its own.
        let over = |flying: &Flying| !flying.ended && flying.until.is_some_and(|until| clock >= until);
        let over: Vec<RunRef> = self.flying.iter().filter(|(_, flying)| over(flying)).map(|(run, _)| *run).collect();
        over.into_iter().for_each(|run| self.forget(run));
        let deaf_until = self.deaf_until;
        for (run, flying) in &mut self.flying {
            let age = clock.saturating_duration_since(flying.delivered_at);
            if flying.ended {
                continue;
            }
            if flying.received_at.is_none()
                && clock >= flying.received_by
                && deaf_until.is_none_or(|until| clock >= until)
            {
                flying.ended = true;
                flying.given_up = true;
                let event = Event::AttemptFailed {
                    run: run.run,
                    attempts: flying.attempts + 1,
                    error: "the agent did not say that it received the command".into(),
                    retry_after: None,
                };
                reports.push((Some(*run), report_of(&flying.action, self.agent_no, event)));
            } else if !flying.recorded && age >= OPEN_ROW_AFTER {
                // If `received` comes after the window, `late_received` writes the row anew.
                flying.recorded = true;
                let event = match flying.received_at {
                    Some(at) => Event::Sent { run: run.run, attempts: flying.attempts, at },
                    None => Event::Hold { due_at: flying.due_at },
                };
                let settles = flying.received_at.is_some().then_some(*run);
                reports.push((settles, report_of(&flying.action, self.agent_no, event)));
            }
        }
        for queued in self.queue.values_mut() {
            if !queued.delivery.due.open && clock.saturating_duration_since(queued.since) >= OPEN_ROW_AFTER {
                queued.delivery.due.open = true;
                reports.push((None, hold_report(&queued.delivery)));
            }
        }
        reports
    }

    /// The report for a run whose `received` came after its window: the store should say `sent`.
    pub fn late_received(&mut self, run: RunRef) -> Option<Report> {
        let flying = self.flying.get(&run)?;
        let at = flying.received_at.filter(|_| flying.recorded && !flying.ended)?;
        let event = Event::Sent { run: run.run, attempts: flying.attempts, at };
        Some(report_of(&flying.action, self.agent_no, event))
    }

    /// Clears everything, and returns what the store should know of each command after the
    /// connection.
    pub fn close(&mut self) -> Vec<Report> {
        let agent_no = self.agent_no;
        let flying = std::mem::take(&mut self.flying).into_iter().filter(|(_, flying)| !flying.ended);
        let mut reports: Vec<Report> = flying
            .map(|(run, flying)| {
                let event = match flying.received_at {
                    Some(at) => Event::Sent { run: run.run, attempts: flying.attempts, at },
                    None => Event::Hold { due_at: flying.due_at },
                };
                report_of(&flying.action, agent_no, event)
            })
            .collect();
        let queue = std::mem::take(&mut self.queue);
        reports
            .extend(queue.into_values().filter(|q| !q.delivery.due.open).map(|queued| hold_report(&queued.delivery)));
        self.runs.clear();
        reports
    }
}
