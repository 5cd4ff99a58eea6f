//! Holds what was counted outside, and what the tables say, to what is promised; knows nothing of how it came about.

use crate::support::Sql;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is left when everything is over.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Actions that were accepted.
    pub accepted: Vec<String>,
    /// How many agents there are; every action is for all of them.
    pub agents: usize,
    /// How often each agent ran each action, as the agents counted.
    pub runs: HashMap<(String, String), usize>,
    /// Of each stored action: its commands, its commands with a final outcome, and what its counters say.
    pub stored: BTreeMap<String, Stored>,
    /// Actions whose times say nothing of what came first: the clock went back while they were on their way.
    pub over_a_step_back: BTreeSet<String>,
    /// Rows that don't fit together.
    pub exceptions: Vec<(&'static str, i64)>,
}

/// What the tables say of an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub commands: i64,
    pub succeeded: i64,
    /// Outcomes that say something else than `succeeded`.
    pub otherwise: i64,
    pub counted: i64,
    pub counted_succeeded: i64,
    /// Handed over before it was valid, or after it had expired.
    pub untimely: i64,
}

/// Puts a number where it belongs.
type Set = fn(&mut Stored, i64);

impl Evidence {
    /// `runs` are by (agent, parameters), which are the action's id in quotes.
    pub fn gather(accepted: Vec<String>, agents: usize, runs: HashMap<(String, String), usize>, sql: &mut Sql) -> Self {
        let runs = runs.into_iter().map(|((agent, id), times)| ((agent, id.trim_matches('"').to_owned()), times));
        let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
        let by_action = "FROM actions a LEFT JOIN outcomes o ON o.action_no = a.no AND o.is_final GROUP BY a.id";
        let columns: [(&str, Set); 6] = [
            (
                "SELECT a.id, 0, count(c.agent_no) FROM actions a LEFT JOIN commands c ON c.action_no = a.no GROUP BY a.id",
                |stored, n| stored.commands = n,
            ),
            (&format!("SELECT a.id, 0, count(*) FILTER (WHERE o.status = 2) {by_action}"), |stored, n| {
                stored.succeeded = n
            }),
            (&format!("SELECT a.id, 0, count(*) FILTER (WHERE o.status <> 2) {by_action}"), |stored, n| {
                stored.otherwise = n
            }),
            (
                "SELECT a.id, 0, coalesce(sum(c.total), 0) FROM actions a LEFT JOIN action_counts c ON c.action_no = a.no \
              GROUP BY a.id",
                |stored, n| stored.counted = n,
            ),
            (
                "SELECT a.id, 0, coalesce(sum(c.succeeded), 0) FROM actions a LEFT JOIN action_counts c \
              ON c.action_no = a.no GROUP BY a.id",
                |stored, n| stored.counted_succeeded = n,
            ),
            (
                &format!(
                    "SELECT a.id, 0, count(*) FILTER (WHERE o.sent_at < a.valid_from OR o.sent_at >= a.expires_at) {by_action}"
                ),
                |stored, n| stored.untimely = n,
            ),
        ];
        for (query, set) in columns {
            for (id, _, number) in sql.groups(query) {
                set(stored.entry(id).or_default(), number);
            }
        }
        Self { accepted, agents, runs: runs.collect(), stored, exceptions: sql.exceptions(), ..Self::default() }
    }

    /// Each thing that was promised and isn't so.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let agents = self.agents as i64;
        let mut ran: BTreeMap<&str, usize> = BTreeMap::new();
        for ((agent, id), times) in &self.runs {
            *ran.entry(id).or_default() += 1;
            if *times != 1 {
                found.push(format!("{agent} ran {id} {times} times"));
            }
            if !self.accepted.contains(id) {
                found.push(format!("{agent} ran {id}, which nobody handed in"));
            }
        }
        for id in &self.accepted {
            let Some(stored) = self.stored.get(id) else {
                found.push(format!("{id} was accepted and is not there"));
                continue;
            };
            let mut must = |what: &str, is: i64, wanted: i64| {
                if is != wanted {
                    found.push(format!("{id}: {what}: {is} instead of {wanted}"));
                }
            };
            must("agents that ran it", ran.get(id.as_str()).copied().unwrap_or(0) as i64, agents);
            must("commands", stored.commands, agents);
            must("final outcomes: succeeded", stored.succeeded, agents);
            must("final outcomes: anything else", stored.otherwise, 0);
            must("counted commands", stored.counted, stored.commands);
            must("counted as succeeded", stored.counted_succeeded, stored.succeeded);
            if !self.over_a_step_back.contains(id) {
                must("delivered too early or too late", stored.untimely, 0);
            }
        }
        for id in self.stored.keys().filter(|id| !self.accepted.contains(id)) {
            found.push(format!("{id} is there and was never handed in"));
        }
        found.extend(self.exceptions.iter().map(|(what, number)| format!("{what}: {number}")));
        found
    }
}

/// A history of two actions and two agents, in which all is well.
fn good() -> Evidence {
    let accepted = vec!["one".to_owned(), "two".to_owned()];
    let runs = ["a", "b"].iter().flat_map(|agent| accepted.iter().map(|id| ((agent.to_string(), id.clone()), 1)));
    let stored = Stored { commands: 2, succeeded: 2, counted: 2, counted_succeeded: 2, ..Stored::default() };
    let all = accepted.iter().map(|id| (id.clone(), stored)).collect();
    Evidence { runs: runs.collect(), agents: 2, stored: all, exceptions: Vec::new(), accepted, ..Evidence::default() }
}

#[test]
fn the_checker_finds_each_violation_in_a_doctored_history() {
    assert_eq!(good().violations(), Vec::<String>::new());
    let own = |agent: &str, id: &str| (agent.to_owned(), id.to_owned());
    let two = |evidence: &mut Evidence, change: fn(&mut Stored)| change(evidence.stored.get_mut("two").unwrap());
    let mut doctored: Vec<(&str, Evidence)> = Vec::new();
    let mut add = |finding, doctor: &dyn Fn(&mut Evidence)| {
        let mut evidence = good();
        doctor(&mut evidence);
        doctored.push((finding, evidence));
    };
    add("b ran two 2 times", &|e| *e.runs.get_mut(&own("b", "two")).unwrap() = 2);
    add("two: agents that ran it: 1", &|e| e.runs.retain(|run, _| *run != own("b", "two")));
    add("two was accepted and is not there", &|e| e.stored.retain(|id, _| id != "two"));
    add("b ran three, which nobody handed in", &|e| e.runs.extend([(own("b", "three"), 1)]));
    add("three is there and was never handed in", &|e| e.stored.extend([("three".to_owned(), Stored::default())]));
    add("two: commands: 3", &|e| two(e, |stored| stored.commands = 3));
    add("anything else: 1", &|e| two(e, |stored| stored.otherwise = 1));
    add("counted commands: 1", &|e| two(e, |stored| stored.counted = 1));
    add("counted as succeeded: 1", &|e| two(e, |stored| stored.counted_succeeded = 1));
    add("too early or too late: 1", &|e| two(e, |stored| stored.untimely = 1));
    add("more than one final outcome: 1", &|e| e.exceptions.push(("commands with more than one final outcome", 1)));
    let mut stepped = good();
    two(&mut stepped, |stored| stored.untimely = 1);
    stepped.over_a_step_back.insert("two".into());
    assert_eq!(stepped.violations(), Vec::<String>::new());
    for (finding, evidence) in doctored {
        let found = evidence.violations();
        assert!(found.iter().any(|violation| violation.contains(finding)), "{finding}: {found:?}");
    }
}
