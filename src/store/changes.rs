//! What a batch of reports changes: computed in memory, in the order of the reports, before a
//! database writes it.

use super::outcomes::Report;
use crate::domain::command::{Answer, Change, CommandState, Event, Known, Open, OpenChange, Outcome, RunEnd, decide};
use crate::domain::counts::Counts;
use crate::domain::text::replace_nul;
use crate::domain::time::Timestamp;
use rand::RngExt;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// (action, agent)
pub(super) type Key = (i64, i64);

/// Additions to the counters, by action.
pub(super) type Deltas = BTreeMap<i64, Counts>;

/// See the module.
#[derive(Default)]
pub(super) struct Changes {
    /// New outcomes.
    pub(super) outcomes: Vec<(Key, Outcome)>,
    /// Open rows to write, or (`None`) to delete.
    pub(super) open: BTreeMap<Key, Option<Open>>,
    /// Results for runs that were decided before.
    pub(super) late: Vec<(Key, RunEnd)>,
    /// The counters.
    pub(super) deltas: Deltas,
    /// The answers, in the order of the reports.
    pub(super) answers: Vec<Answer>,
}

impl Changes {
    /// Of reports about commands that exist and have neither outcome nor open row.
    pub(super) fn of_undispatched(reports: &[Report], now: Timestamp) -> Self {
        let mut changes = Self::default();
        for report in reports {
            let known = Known { exists: true, ..Known::default() };
            let change = decide(&known, report.event.clone(), &report.policy, now, 0.0);
            changes.apply((report.action_no, report.agent_no), known, change);
        }
        changes
    }

    /// Of reports about commands of which this is stored.
    pub(super) fn of(reports: &[Report], mut known: HashMap<Key, Known>, now: Timestamp) -> Self {
        let mut changes = Self::default();
        let mut rng = rand::rng();
        for report in reports {
            let key = (report.action_no, report.agent_no);
            let before = known.get(&key).cloned().unwrap_or_default();
            let change = decide(&before, report.event.clone(), &report.policy, now, rng.random());
            known.insert(key, changes.apply(key, before, change));
        }
        changes
    }

    /// Adds one change. Returns the state of the command after it.
    fn apply(&mut self, key: Key, before: Known, change: Change) -> Known {
        let mut after = before.clone();
        match change.open {
            OpenChange::Keep => {}
            OpenChange::Put(mut open) => {
                open.error = open.error.map(|error| without_nul(&error));
                after.open = Some(open.clone());
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

/// A sender that somebody added may say anything.
fn without_nul(error: &str) -> Arc<str> {
    let mut text = error.to_owned();
    replace_nul(&mut text);
    text.into()
}

/// The keys of the commands that the reports are about, in the reports' order.
pub(super) fn keys(reports: &[Report]) -> Vec<Key> {
    reports.iter().map(|report| (report.action_no, report.agent_no)).collect()
}

/// Whether the report is fresh and ends the command with its first run.
pub(super) fn ends_first_run(report: &Report) -> bool {
    // What a `cancelled` one counts as depends on the action.
    let last_run = |end: &RunEnd| match end.status {
        CommandState::Succeeded => true,
        CommandState::Cancelled => false,
        _ => report.policy.max_runs == 1,
    };
    report.skip_lookup && matches!(&report.event, Event::Result(end) if end.run == 1 && last_run(end))
}
