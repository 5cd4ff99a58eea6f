//! Random lives of an action, in the store and in a model of a few lines: after every call the counts, the rows and what
//! users see are the same. What one event does to one command is `decide`'s word in both; how batches, restarts of
//! counting, duplicates and shortcuts come out is not.

use crate::Backend;
use crate::support::{Taken, accept, agents, end, me, page, property};
use odoshi::domain::command::{Answer, CommandState, Event, Known, OpenChange, OpenState, Outcome, RunEnd, decide};
use odoshi::domain::counts::Counts;
use odoshi::domain::time::Timestamp;
use odoshi::store::{Inserted, Report, Store, Unfinished};
use proptest::prelude::*;
use serde_json::json;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

const AGENTS: usize = 8;

/// A run, seen from the one that is due.
type Relative = i32;

#[derive(Clone, Debug)]
enum What {
    Result(Relative, CommandState, i32),
    Sent(Relative, i32),
    Hold,
    Queued(Relative),
    Postponed(Relative),
    AttemptFailed(Relative, i32),
    Overdue,
    Expired,
    /// And whether it has, by now.
    FoundExpired(Relative, bool),
    Cancelled,
    Undeliverable,
}

#[derive(Clone, Debug)]
enum Call {
    /// So many commands more; whether it joins on; whether it is the last.
    Page(usize, bool, bool),
    /// Which agent, what, and whether its reporter says that it is fresh.
    Record(Vec<(usize, What, bool)>),
    Advance(usize),
    Pass(i64),
    Cancel,
    Expire,
    Complete,
}

fn what() -> impl Strategy<Value = What> {
    let run = || prop_oneof![8 => Just(0), 1 => Just(-1), 1 => Just(1), 1 => Just(-2)];
    let status = prop::sample::select(vec![
        CommandState::Cancelled,
        CommandState::Succeeded,
        CommandState::Failed,
        CommandState::Failed,
        CommandState::TimedOut,
    ]);
    prop_oneof![
        6 => (run(), status, 0..3).prop_map(|(run, status, attempts)| What::Result(run, status, attempts)),
        4 => (run(), 0..3).prop_map(|(run, attempts)| What::Sent(run, attempts)),
        3 => Just(What::Hold),
        2 => run().prop_map(What::Queued),
        2 => run().prop_map(What::Postponed),
        4 => (run(), 1..4).prop_map(|(run, attempts)| What::AttemptFailed(run, attempts)),
        2 => Just(What::Overdue),
        1 => Just(What::Expired),
        1 => (run(), any::<bool>()).prop_map(|(run, has)| What::FoundExpired(run, has)),
        1 => Just(What::Cancelled),
        1 => Just(What::Undeliverable),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => (0..4usize, prop::bool::weighted(0.8), prop::bool::weighted(0.2))
            .prop_map(|(number, joins, last)| Call::Page(number, joins, last)),
        12 => prop::collection::vec((0..AGENTS, what(), any::<bool>()), 1..8).prop_map(Call::Record),
        // Results that come for the first time, all of them: the shortcut.
        4 => prop::collection::vec((0..AGENTS, Just(What::Result(0, CommandState::Succeeded, 1)), Just(true)), 1..5)
            .prop_map(Call::Record),
        3 => (1..5usize).prop_map(Call::Advance),
        3 => prop_oneof![Just(20), Just(90)].prop_map(Call::Pass),
        1 => prop::bool::weighted(0.3).prop_map(|cancel| if cancel { Call::Cancel } else { Call::Complete }),
        1 => prop::bool::weighted(0.2).prop_map(|expire| if expire { Call::Expire } else { Call::Complete }),
    ]
}

/// One command in the model.
#[derive(Clone, Debug, Default)]
struct Command {
    known: Known,
    outcomes: Vec<Outcome>,
    late: BTreeSet<i64>,
}

impl Command {
    fn apply(&mut self, event: Event, taken: &Taken, cancelled: bool, now: Timestamp) -> Answer {
        self.known.cancelled = cancelled;
        let change = decide(&self.known, event, &taken.policy, now, 0.5);
        match change.open {
            OpenChange::Keep => {}
            OpenChange::Put(open) => self.known.open = Some(open),
            OpenChange::Delete => self.known.open = None,
        }
        if let Some(outcome) = change.outcome {
            self.known.last = Some((outcome.end.run, outcome.is_final.then_some(outcome.end.status)));
            self.outcomes.push(outcome);
        }
        if let Some(late) = change.late
            && !self.outcomes.iter().any(|outcome| outcome.end.run == late.run && outcome.end.results.is_some())
        {
            self.late.insert(late.run.into());
        }
        change.answer
    }

    fn untouched(&self) -> bool {
        self.outcomes.is_empty() && self.known.open.is_none()
    }

    /// Delivery attempts of the run that is or was the last, and runs begun.
    fn attempts_and_runs(&self) -> (i32, i32) {
        let (run, failed, worked) = match (self.outcomes.last(), &self.known.open) {
            (Some(Outcome { end, is_final: true }), _) => {
                let ran = [CommandState::Succeeded, CommandState::Failed, CommandState::TimedOut].contains(&end.status);
                (end.run, end.attempts, ran || end.sent_at.is_some())
            }
            (_, Some(open)) => (open.run, open.attempts, open.state == OpenState::Sent),
            _ => (1, 0, false),
        };
        (failed + i32::from(worked), if worked { run } else { run - 1 })
    }
}

struct Life<'a, B> {
    backend: &'a B,
    fleet: &'a [i64],
    taken: Taken,
    commands: BTreeMap<i64, Command>,
    through: i64,
    dispatched: i64,
    over: bool,
    cancelled: bool,
    expired: bool,
    ended: bool,
}

impl<B: Backend> Life<'_, B> {
    fn store(&self) -> &dyn Store {
        self.backend.store()
    }

    async fn call(&mut self, call: &Call, offset: &Cell<i64>) -> Result<(), TestCaseError> {
        match call {
            Call::Page(number, joins, last) => {
                let rest: Vec<i64> = self.fleet.iter().copied().filter(|no| *no > self.through).take(*number).collect();
                let after = if *joins { self.through } else { self.through + 1 };
                let page = page(self.taken.no, after, &rest, *last);
                let through = page.through;
                let inserted = self.store().command_insert(vec![page]).await.unwrap();
                let writes = *joins && !self.over;
                prop_assert_eq!(inserted, [if writes { Inserted::Written } else { Inserted::StalePage }]);
                if writes {
                    self.through = through;
                    self.over = *last;
                    let known = Known { exists: true, ..Known::default() };
                    self.commands
                        .extend(rest.iter().map(|no| (*no, Command { known: known.clone(), ..Command::default() })));
                }
            }
            Call::Record(items) => self.record(items).await?,
            Call::Advance(limit) => {
                let through = self.store().action_advance(vec![self.taken.no], *limit).await.unwrap().remove(0);
                prop_assert!(through >= self.dispatched && through <= self.through);
                prop_assert!(!self.commands.iter().any(|(no, command)| *no <= through && command.untouched()));
                let beyond: Vec<_> = self.commands.range(self.dispatched + 1..).take(*limit).collect();
                let stuck = beyond.first().is_some_and(|(_, command)| command.untouched());
                prop_assert!(stuck || through > self.dispatched || self.dispatched == self.through, "no progress");
                self.dispatched = through;
            }
            Call::Pass(secs) => {
                offset.set(offset.get() + secs * 1_000);
                self.backend.set_offset(offset.get());
            }
            Call::Cancel => {
                self.store().action_cancel(self.taken.id, &me()).await.unwrap();
                self.over = true;
                self.cancelled |= !self.ended;
            }
            Call::Expire => {
                prop_assert_eq!(self.store().action_expire(self.taken.no).await.unwrap(), !self.over);
                self.expired |= !self.over;
                self.over = true;
            }
            Call::Complete => {
                let ended = self.store().action_complete(vec![self.taken.no]).await.unwrap();
                let all = self.commands.values().all(|command| command.known.state().is_final());
                prop_assert_eq!(!ended.is_empty(), self.over && all && !self.ended);
                self.ended |= !ended.is_empty();
            }
        }
        Ok(())
    }

    fn report(&self, now: Timestamp, (agent, what, fresh): &(usize, What, bool)) -> Report {
        let no = self.fleet[*agent];
        let known = self.commands.get(&no).map(|command| command.known.clone()).unwrap_or_default();
        let due = known.current_run().or(known.last.map(|(run, _)| run)).unwrap_or(1);
        let event = match what {
            What::Result(run, status, attempts) => {
                let end = RunEnd { attempts: *attempts, ..end(due + run, *status, now) };
                Event::Result(Box::new(RunEnd { sent_at: (*attempts > 1).then_some(now), ..end }))
            }
            What::Sent(run, attempts) => Event::Sent { run: due + run, attempts: *attempts, at: now },
            What::Hold => Event::Hold { due_at: now },
            What::Queued(run) => Event::Queued { run: due + run, due_at: now },
            What::Postponed(run) => Event::Postponed { run: due + run, until: now },
            What::AttemptFailed(run, attempts) => {
                Event::AttemptFailed { run: due + run, attempts: *attempts, error: "away".into(), retry_after: None }
            }
            What::Overdue => Event::Overdue,
            What::Expired => Event::Expired,
            What::FoundExpired(run, has) => {
                let expires_at = Timestamp(now.0 + if *has { -1 } else { 3_600_000 });
                Event::FoundExpired { run: due + run, expires_at }
            }
            What::Cancelled => Event::Cancelled,
            What::Undeliverable => Event::Undeliverable { error: "gone".into() },
        };
        Report { skip_lookup: *fresh, ..self.taken.report(no, event) }
    }

    async fn record(&mut self, items: &[(usize, What, bool)]) -> Result<(), TestCaseError> {
        let now = self.store().now();
        let reports: Vec<Report> = items.iter().map(|item| self.report(now, item)).collect();
        let answers = self.store().outcome_record(&reports).await.unwrap();
        prop_assert_eq!(answers.len(), reports.len());
        for (report, answer) in reports.into_iter().zip(answers) {
            let mut absent = Command::default();
            let command = self.commands.get_mut(&report.agent_no).unwrap_or(&mut absent);
            let expected = command.apply(report.event, &self.taken, self.cancelled, now);
            match (expected, answer) {
                // The store draws a jitter of its own.
                (Answer::Again { run, attempts, .. }, Answer::Again { run: r, attempts: a, due_at }) => {
                    prop_assert_eq!((run, attempts), (r, a));
                    if let Some(open) = &mut command.known.open {
                        open.due_at = due_at;
                    }
                }
                (expected, answer) => prop_assert_eq!(expected, answer),
            }
        }
        Ok(())
    }

    /// The store and the model agree.
    async fn check(&self) -> Result<(), TestCaseError> {
        let (store, no) = (self.store(), self.taken.no);
        let mut counts = Counts { resolved: self.over, ..Counts::default() };
        for command in self.commands.values() {
            counts.add_new(1);
            counts.move_one(CommandState::Pending, command.known.state());
        }
        let view = store.action_view(self.taken.id).await.unwrap().unwrap();
        prop_assert_eq!(view.counts, counts);
        prop_assert_eq!(Counts { resolved: self.over, ..self.backend.group_by(no).await }, counts);

        let views = self.taken.list(store).await;
        prop_assert_eq!(views.len(), self.commands.len());
        for (view, (agent, command)) in views.iter().zip(&self.commands) {
            let shown = (view.status, (view.attempts, view.runs), view.finished_at.is_some());
            let known = &command.known;
            prop_assert_eq!(shown, (known.state(), command.attempts_and_runs(), known.state().is_final()));
            let last = command.outcomes.last();
            let sent_at = match last {
                Some(Outcome { end, is_final: true }) => end.sent_at,
                _ => known.open.as_ref().and_then(|open| open.sent_at),
            };
            prop_assert_eq!(view.sent_at, sent_at);
            let waits_after = known.open.as_ref().and_then(|open| open.error.as_deref());
            let error = waits_after.or_else(|| last.and_then(|outcome| outcome.end.error.as_deref()));
            prop_assert_eq!(view.error.as_deref(), error);
            prop_assert_eq!(view.results.is_some(), last.is_some_and(|outcome| outcome.end.results.is_some()));
            let late = self.backend.late_runs(no, *agent).await;
            prop_assert_eq!(late, command.late.iter().copied().collect::<Vec<_>>());
        }

        let keys = |wanted: &dyn Fn(&Command) -> bool| {
            self.commands.iter().filter(|(_, command)| wanted(command)).map(|(no, _)| *no).collect::<Vec<_>>()
        };
        let sent = |command: &Command| command.known.state() == CommandState::Sent;
        let is_final = |command: &Command| command.known.state().is_final();
        prop_assert_eq!(self.backend.open_rows(no).await, keys(&|command| command.known.open.is_some()));
        let unfinished = async |which| store.command_unfinished(no, which, 0, 100).await.unwrap();
        prop_assert_eq!(unfinished(Unfinished::All).await, keys(&|command| !is_final(command)));
        let pending = keys(&|command| !is_final(command) && !sent(command));
        prop_assert_eq!(unfinished(Unfinished::Pending).await, pending.clone());
        let untouched = store.command_undispatched(no, 0, 100).await.unwrap().commands;
        let untouched: Vec<i64> = untouched.into_iter().map(|(no, ..)| no).collect();
        prop_assert_eq!(untouched, keys(&Command::untouched));

        let now = store.now();
        let overdue = store.command_overdue(now, 100_000).await.unwrap();
        let overdue: BTreeSet<i64> = overdue.into_iter().filter(|key| key.0 == no).map(|key| key.1).collect();
        let late = keys(&|command| sent(command) && command.known.open.as_ref().is_some_and(|open| open.due_at <= now));
        prop_assert_eq!(overdue, late.into_iter().collect());

        let mut backlog = Vec::new();
        for agent in self.fleet {
            let due = store.command_backlog(*agent, Timestamp(now.0 + 3_600_000), 100_000).await.unwrap();
            backlog.extend(due.into_iter().filter(|due| due.action_no == no));
        }
        let mut expected = if self.cancelled || self.expired || self.ended { Vec::new() } else { pending };
        for due in backlog {
            prop_assert!(!expected.is_empty() && expected.remove(0) == due.agent_no);
            let known = &self.commands[&due.agent_no].known;
            let open = known.open.as_ref().map_or((1, 0, false), |open| (open.run, open.attempts, true));
            prop_assert_eq!((due.run, due.attempts, due.open), open);
        }
        prop_assert_eq!(expected, Vec::<i64>::new());
        Ok(())
    }
}

pub async fn counts_are_exact_after_every_call_and_states_are_those_of_the_model(backend: &mut impl Backend) {
    let backend = &*backend;
    let fleet = agents(backend.store(), AGENTS).await;
    let offset = Cell::new(0);
    let inputs = (1..4i32, prop::option::of(1..4i32), prop::collection::vec(call(), 1..24));
    property(25, inputs, async |(max_runs, max_deliveries, calls)| {
        let mut changes = json!({"max_runs": max_runs, "timeout": "30s", "expires_after": "365d"});
        if let Some(most) = max_deliveries {
            changes["max_deliveries"] = most.into();
        }
        let taken = accept(backend.store(), changes).await;
        let (commands, fleet) = (BTreeMap::new(), &fleet[..]);
        let (through, dispatched, over, cancelled, expired, ended) = (0, 0, false, false, false, false);
        let mut life = Life { backend, fleet, taken, commands, through, dispatched, over, cancelled, expired, ended };
        for call in &calls {
            life.call(call, &offset).await?;
            life.check().await?;
        }
        // Leaves nothing behind that the next ones would have to look through.
        backend.store().action_cancel(taken.id, &me()).await.unwrap();
        let rest: Vec<Report> = life.commands.keys().map(|no| taken.report(*no, Event::Cancelled)).collect();
        backend.store().outcome_record(&rest).await.unwrap();
        prop_assert_eq!(backend.store().action_complete(vec![taken.no]).await.unwrap().len(), usize::from(!life.ended));
        Ok(())
    });
}
