//! What is in flight to one connected agent, and what waits for it: the plain part of a session, without a runtime.
//!
//! A command is *queued* until the agent has room, then *flying* until its result is stored. At most `capacity` fly at a
//! time. What a session holds for longer than [`OPEN_ROW_AFTER`] gets an open row, so that the store knows where it is; most
//! commands are over before that, and cost their two inserts and nothing else.

use crate::domain::action::{Action, GRACE};
use crate::domain::command::{Event, RunEnd};
use crate::domain::protocol::{Command, MAX_FRAME, RunRef, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use crate::senders::contract::{Delivery, hold_report, report_of};
use crate::store::Report;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// How long a command may be in a session without an open row.
pub const OPEN_ROW_AFTER: Duration = Duration::from_secs(1);
/// How long after delivering `received` must come.
pub const RECEIVED_TIMEOUT: Duration = Duration::from_secs(30);
/// How many commands wait for room; more stay in the store.
pub const QUEUE: usize = 256;
/// What was read from the store is offered within this time, or goes to the agent once more, which costs no more than that.
const STALE: Duration = Duration::from_secs(5);
/// How long what was early stays in the store at most before it is looked at again: the database's clock may be set.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The most unfinished commands that an agent may take, whatever it says.
pub const MAX_CAPACITY: usize = 1_000;
/// Bytes of operations that may be on their way to an agent: an agent that doesn't read them has them in this process's
/// memory. As much as the largest frame: one that reads says `received` long before that is a bottleneck.
const IN_TRANSIT: usize = MAX_FRAME;

/// (−priority, due, action): who goes first.
type Turn = (Reverse<i32>, Timestamp, i64);

#[derive(Debug)]
struct Queued {
    delivery: Delivery,
    since: Instant,
}

#[derive(Debug)]
struct Flying {
    action: Arc<Action>,
    due_at: Timestamp,
    attempts: i32,
    /// Nothing is written about it, as far as this session knows.
    skip_lookup: bool,
    /// Its open row is written, or on its way.
    recorded: bool,
    delivered_at: Instant,
    received_at: Option<Timestamp>,
    /// Its result is on its way to the store.
    ended: bool,
    /// `received` did not come: the attempt has failed, and what that means is on its way to the store.
    given_up: bool,
    /// From here on nobody waits for its result.
    until: Option<Instant>,
}

impl Flying {
    /// Bytes that are on their way to the agent.
    fn in_transit(&self) -> usize {
        if self.received_at.is_some() || self.ended { 0 } else { self.action.operations.get().len() }
    }

    fn wait_from(&mut self, clock: Instant) {
        // A second more than the housekeeper waits: what the store says then comes first.
        self.until.get_or_insert(clock + self.action.policy.timeout + GRACE + Duration::from_secs(1));
    }
}

/// What became of an offered command.
#[derive(Debug)]
pub enum Offered {
    /// It waits for room.
    Queued,
    /// It is here already.
    Known,
    /// There is no room for this one, itself or another that it displaced: it must stay in the store.
    Back(Delivery),
}

/// See the module.
#[derive(Debug)]
pub struct InFlight {
    agent_no: i64,
    capacity: usize,
    queue: BTreeMap<Turn, Queued>,
    flying: HashMap<RunRef, Flying>,
    /// Which run of an action's command is queued or flying.
    runs: HashMap<i64, i32>,
    /// Runs that ended here within [`STALE`], and within the one before: a read that began earlier may still bring them.
    over: [HashSet<(i64, i32)>; 2],
    over_since: Option<Instant>,
    /// Reports about commands that were put back, since their action is paused or they are early.
    put_back: Vec<Report>,
    /// When the first of those that were early is due.
    early_until: Option<Instant>,
}

impl InFlight {
    /// Empty, for an agent that takes `capacity` commands at a time.
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
        }
    }

    /// How many commands wait for room.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many commands are at the agent or on their way to it.
    pub fn flying(&self) -> usize {
        self.flying.len()
    }

    /// Takes a command that is due, if it isn't here and there is room. What goes first displaces what goes last. While the
    /// `store_has_more`, only what goes before the last one here is taken: something that waits in the store may go
    /// before the rest, and the queue stays the beginning of all that waits.
    pub fn offer(&mut self, delivery: Delivery, store_has_more: bool, now: Instant) -> Offered {
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

    /// What is to be recorded of commands that [`deliver`](Self::deliver) put back.
    pub fn take_put_back(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.put_back)
    }

    /// The commands to deliver now, while the agent has room. What was cancelled or has expired is dropped: the
    /// housekeeper closes it. What is paused goes back to the store, and so does what is early, however it came here: the
    /// database's clock may have been set back.
    pub fn deliver(&mut self, now: Timestamp, clock: Instant) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.queue.is_empty() {
            return commands;
        }
        let mut in_transit: usize = self.flying.values().map(Flying::in_transit).sum();
        while self.flying.len() < self.capacity && in_transit < IN_TRANSIT {
            let Some((_, Queued { delivery, .. })) = self.queue.pop_first() else { break };
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
            let Delivery { due, action } = delivery;

            let flying = Flying {
                skip_lookup: due.run == 1 && !due.open,
                due_at: due.due_at,
                attempts: due.attempts,
                recorded: false,
                delivered_at: clock,
                received_at: None,
                ended: false,
                given_up: false,
                until: None,
                action,
            };
            in_transit += flying.in_transit();
            self.flying.insert(RunRef { action: flying.action.id, run: due.run }, flying);
        }
        commands
    }

    /// The agent says that it has this run; false if this session didn't hand it over.
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
        // An older run of the same command is being killed by the newer one.
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

    /// Whatever was recorded about this run, it is not this session's concern any more.
    pub fn forget(&mut self, run: RunRef) {
        if let Some(flying) = self.flying.remove(&run)
            && self.runs.get(&flying.action.no) == Some(&run.run)
        {
            self.runs.remove(&flying.action.no);
        }
    }

    /// What happened to this run is stored: if that was a delivery attempt that came to nothing, it takes up no room any more.
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

    /// The store says that this run is over: it isn't to be delivered again, whatever was read before.
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

    /// Removes all that belongs to actions that were ended by a user; answers which of them the agent has.
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

    /// Whether what was put back early may be due now, and is to be read from the store again.
    pub fn take_early(&mut self, clock: Instant) -> bool {
        self.early_until.take_if(|until| clock >= *until).is_some()
    }

    /// When there is something to do by the clock alone: a window ends, or `received` is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let flying = self.flying.values().filter(|flying| !flying.ended).filter_map(|flying| {
            match (flying.received_at, flying.recorded) {
                (Some(_), true) => flying.until,
                (None, true) => Some(flying.delivered_at + RECEIVED_TIMEOUT),
                (_, false) => Some(flying.delivered_at + OPEN_ROW_AFTER),
            }
        });
        let queued =
            self.queue.values().filter(|queued| !queued.delivery.due.open).map(|queued| queued.since + OPEN_ROW_AFTER);
        flying.chain(queued).chain(self.early_until).min()
    }

    /// Open rows for what is here for longer than the window, and attempts that came to nothing.
    pub fn look_at_clock(&mut self, clock: Instant) -> Vec<(Option<RunRef>, Report)> {
        let mut reports = Vec::new();
        // The housekeeper has given these up; the agent kills them by itself.
        let over = |flying: &Flying| !flying.ended && flying.until.is_some_and(|until| clock >= until);
        let over: Vec<RunRef> = self.flying.iter().filter(|(_, flying)| over(flying)).map(|(run, _)| *run).collect();
        over.into_iter().for_each(|run| self.forget(run));
        for (run, flying) in &mut self.flying {
            let age = clock.saturating_duration_since(flying.delivered_at);
            if flying.ended {
                continue;
            }
            if flying.received_at.is_none() && age >= RECEIVED_TIMEOUT {
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
                // Received later than the window: its row is written anew then.
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

    /// A received run whose `received` came after its window: the store should say `sent`.
    pub fn late_received(&mut self, run: RunRef) -> Option<Report> {
        let flying = self.flying.get(&run)?;
        let at = flying.received_at.filter(|_| flying.recorded && !flying.ended)?;
        let event = Event::Sent { run: run.run, attempts: flying.attempts, at };
        Some(report_of(&flying.action, self.agent_no, event))
    }

    /// Gives everything up: what the store should know of each command when the connection is gone.
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

/// The report for a result.
pub fn result_report(
    action: &Action,
    agent_no: i64,
    result: &RunResult,
    attempts: i32,
    sent_at: Option<Timestamp>,
    skip_lookup: bool,
    now: Timestamp,
) -> Report {
    if result.status == RunStatus::Expired {
        let event = Event::FoundExpired { run: result.run, expires_at: action.expires_at };
        return report_of(action, agent_no, event);
    }
    let error = result.results.iter().find(|operation| !operation.ok).map(|operation| {
        let why = operation.error.as_deref().unwrap_or("it failed without saying why");
        format!("{}: {why}", operation.module)
    });
    let end = RunEnd {
        run: result.run,
        status: result.status.into(),
        attempts,
        sent_at,
        started_at: result.started_at,
        finished_at: now,
        // Read from JSON a moment ago; an empty list says less, but doesn't lose the outcome.
        results: Some(serde_json::to_string(&result.results).unwrap_or_else(|_| "[]".into())),
        error,
    };
    let event = Event::Result(Box::new(end));
    Report { skip_lookup, ..report_of(action, agent_no, event) }
}
