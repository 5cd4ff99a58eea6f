//! What a batch of reports changes: computed in memory, in the order of the reports, before a
//! database writes it.

use super::outcomes::Report;
use crate::domain::command::{Answer, Change, CommandState, Event, Known, Open, OpenChange, Outcome, RunEnd, decide};
use crate::domain::counts::Counts;
use crate::domain::text::replace_nul;
use crate::domain::time::Timestamp;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
                // What is known is what is stored, or was put before in this batch.
                if after.open.take().is_some() {
                    self.open.insert(key, None);
                }
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

/// Which commands of a batch are read before their reports are recorded. Of the others, reporters hold the first run, and
/// nothing is stored but the command itself: the outcome's key guards them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Commands to read.
    pub(super) read: BTreeSet<Key>,
    /// The others.
    pub(super) skipped: BTreeSet<Key>,
}

impl Reading {
    /// As the reporters say.
    pub(super) fn of(reports: &[Report]) -> Self {
        let (mut read, mut skipped) = (BTreeSet::new(), BTreeSet::new());
        for report in reports {
            let key = (report.action_no, report.agent_no);
            // After the first one, something is stored.
            if !ends_first_run(report) || !skipped.insert(key) {
                read.insert(key);
            }
        }
        skipped.retain(|key| !read.contains(key));
        Self { read, skipped }
    }

    /// The reporters were wrong about these.
    pub(super) fn read_too(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.skipped.remove(&key);
            self.read.insert(key);
        }
    }

    /// The reporters may be wrong about any of them.
    pub(super) fn read_all(&mut self) {
        self.read.append(&mut self.skipped);
    }

    /// What is known of all commands, with what was read.
    pub(super) fn known(&self, mut read: HashMap<Key, Known>) -> HashMap<Key, Known> {
        read.extend(self.skipped.iter().map(|key| (*key, Known { exists: true, ..Known::default() })));
        read
    }
}

/// Whether the report is fresh and ends the command with its first run.
fn ends_first_run(report: &Report) -> bool {
    // What a `cancelled` one counts as depends on the action.
    let last_run = |end: &RunEnd| match end.status {
        CommandState::Succeeded => true,
        CommandState::Cancelled => false,
        _ => report.policy.max_runs == 1,
    };
    report.skip_lookup && matches!(&report.event, Event::Result(end) if end.run == 1 && last_run(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::Policy;
    use crate::testing::end;
    use std::time::Duration;

    fn report(agent_no: i64, status: CommandState, skip_lookup: bool) -> Report {
        let policy = Policy { max_runs: 2, max_deliveries: None, timeout: Duration::from_secs(1) };
        let event = Event::Result(Box::new(end(1, status, Timestamp(1))));
        Report { action_no: 1, agent_no, policy, event, skip_lookup }
    }

    #[test]
    fn only_commands_are_read_of_which_something_may_be_stored() {
        use CommandState::{Cancelled, Failed, Succeeded};
        let reports = [
            report(1, Succeeded, true),
            report(2, Failed, true),
            report(3, Cancelled, true),
            report(4, Succeeded, false),
            report(5, Succeeded, true),
            report(5, Succeeded, true),
            report(6, Succeeded, true),
        ];
        let mut reading = Reading::of(&reports);
        let keys = |agents: &[i64]| agents.iter().map(|agent| (1, *agent)).collect::<BTreeSet<Key>>();
        assert_eq!(reading, Reading { read: keys(&[2, 3, 4, 5]), skipped: keys(&[1, 6]) });
        reading.read_too([(1, 6)]);
        assert_eq!(reading, Reading { read: keys(&[2, 3, 4, 5, 6]), skipped: keys(&[1]) });
        let known = reading.known(HashMap::new());
        assert!(known.len() == 1 && known[&(1, 1)].exists);
        reading.read_all();
        assert_eq!(reading, Reading { read: keys(&[1, 2, 3, 4, 5, 6]), skipped: keys(&[]) });
    }
}
