//! What a batch of reports changes, gathered in the order in which it happened, before a database writes it.

use super::Report;
use crate::domain::command::{Answer, Change, CommandState, Event, Known, Open, OpenChange, Outcome, RunEnd, decide};
use crate::domain::counts::Counts;
use crate::domain::text::replace_nul;
use crate::domain::time::Timestamp;
use rand::RngExt;
use std::collections::{BTreeMap, HashMap};

/// (action, agent)
pub(super) type Key = (i64, i64);

/// What is to be added to the counters, by action.
pub(super) type Deltas = BTreeMap<i64, Counts>;

/// See the module.
#[derive(Default)]
pub(super) struct Changes {
    /// New outcomes.
    pub(super) outcomes: Vec<(Key, Outcome)>,
    /// Open rows to be written, or (`None`) deleted.
    pub(super) open: BTreeMap<Key, Option<Open>>,
    /// Results for runs that were decided before.
    pub(super) late: Vec<(Key, RunEnd)>,
    /// The counters.
    pub(super) deltas: Deltas,
    /// What the reporters are told, in the order of their reports.
    pub(super) answers: Vec<Answer>,
}

impl Changes {
    /// Of reports about commands of which nothing is written but that there are.
    pub(super) fn of_undispatched(reports: &[Report], now: Timestamp) -> Self {
        let mut changes = Self::default();
        for report in reports {
            let known = Known { exists: true, ..Known::default() };
            let change = decide(&known, report.event.clone(), &report.policy, now, 0.0);
            changes.apply((report.action_no, report.agent_no), known, change);
        }
        changes
    }

    /// Of reports about commands of which this is known.
    pub(super) fn of(reports: &[Report], mut known: HashMap<Key, Known>, now: Timestamp) -> Self {
        let mut changes = Self::default();
        let mut rng = rand::rng();
        for report in reports {
            let key = (report.action_no, report.agent_no);
            let before = known.get(&key).copied().unwrap_or_default();
            let change = decide(&before, report.event.clone(), &report.policy, now, rng.random());
            known.insert(key, changes.apply(key, before, change));
        }
        changes
    }

    /// Takes one change in, and says how the command stands after it.
    fn apply(&mut self, key: Key, before: Known, change: Change) -> Known {
        let mut after = before;
        match change.open {
            OpenChange::Keep => {}
            OpenChange::Put(open) => {
                after.open = Some(open);
                self.open.insert(key, Some(open));
            }
            OpenChange::Delete => {
                after.open = None;
                self.open.insert(key, None);
            }
        }
        if let Some(mut outcome) = change.outcome {
            // A sender that somebody added may say anything.
            outcome.end.error.iter_mut().for_each(replace_nul);
            after.last = Some((outcome.end.run, outcome.is_final.then_some(outcome.end.status)));
            self.outcomes.push((key, outcome));
        }
        if let Some(mut end) = change.late {
            end.error.iter_mut().for_each(replace_nul);
            self.late.push((key, end));
        }
        if before.state() != after.state() {
            self.deltas.entry(key.0).or_default().move_one(before.state(), after.state());
        }
        self.answers.push(change.answer);
        after
    }
}

/// The keys of the commands that the reports are about, in the reports' order.
pub(super) fn keys(reports: &[Report]) -> Vec<Key> {
    reports.iter().map(|report| (report.action_no, report.agent_no)).collect()
}

/// Whether the report ends a command with its first run, and its reporter knows of nothing else about it.
pub(super) fn ends_first_run(report: &Report) -> bool {
    // What a `cancelled` one counts as depends on the action.
    let last_run = |end: &RunEnd| match end.status {
        CommandState::Succeeded => true,
        CommandState::Cancelled => false,
        _ => report.policy.max_runs == 1,
    };
    report.skip_lookup && matches!(&report.event, Event::Result(end) if end.run == 1 && last_run(end))
}
