//! Agents: enrolling, what they say of themselves, matching them with targets, changing and
//! removing them.

use super::error::StoreResult;
use crate::domain::agent::{AgentContact, AgentRef, Enrollment, STREAM};
use crate::domain::audit::Author;
use crate::domain::json::JsonObject;
use crate::domain::target::{Target, Within};
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Agents that one statement looks at, where nobody waits.
const SEARCHED: usize = 20_000;

/// How long after a check-in over HTTP an agent counts as online.
pub(super) const CHECK_IN_COUNTS: Duration = Duration::from_secs(120);

/// How old a stored check-in gets before the next one is stored. Small beside [`CHECK_IN_COUNTS`],
/// so that an agent that polls never looks offline.
pub(super) const CHECK_IN_WRITTEN: Duration = Duration::from_secs(30);

/// An agent as users see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AgentView {
    /// Its unique name.
    pub name: String,
    /// `online`: a session on a live node, or a check-in within two minutes; else `offline`.
    pub status: &'static str,
    /// How commands reach it.
    pub transport: String,
    /// Where, if the transport needs to know.
    pub address: Option<String>,
    /// What it and operators say of it.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Box<RawValue>,
    /// Those of the labels that operators set, and (null) those that they took away.
    #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_labels: Option<Box<RawValue>>,
    /// What it says of itself.
    #[schema(value_type = Object)]
    pub facts: Box<RawValue>,
    /// Of the agent program; empty before it has said so.
    pub version: String,
    /// When it was enrolled or added.
    pub enrolled_at: Timestamp,
    /// When it was last heard of; `None` before the first contact.
    pub last_seen: Option<Timestamp>,
    /// Gets nothing while it is.
    pub disabled: bool,
    /// When a second process with this agent's token was refused last. One machine may be a clone of another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate_at: Option<Timestamp>,
}

/// Which agents to list. Removed ones never are.
#[derive(Clone, Debug, Default)]
pub struct Among {
    /// Those that match; all without it.
    pub target: Option<Target>,
    /// Those that are disabled, or those that are not. By default all, but with a target those that are not.
    pub disabled: Option<bool>,
}

impl Among {
    /// Where in the fleet they can be.
    pub(super) fn within(&self) -> Within {
        self.target.as_ref().map_or(Within::Fleet, Target::within)
    }
}

/// A part of the fleet to search, in the order of keys. How long that takes depends on how many agents are looked at,
/// and not on how many match.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The key after which it begins.
    pub after: i64,
    /// Maximum number of agents to find.
    pub limit: usize,
    /// Maximum number of agents to look at.
    pub searched: usize,
}

/// What was found in a part of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T, K = i64> {
    /// The agents, or how many there are.
    pub agents: T,
    /// The key up to which the fleet is searched; `None` at its end.
    pub through: Option<K>,
}

/// Keys of agents, in order, with their transports.
pub type Matching = Vec<(i64, Arc<str>)>;

/// Changes to an agent. `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct AgentPatch {
    /// Labels to set, or (`None`) to remove. Other labels stay.
    pub labels: BTreeMap<String, Option<String>>,
    /// The new address, or (`Some(None)`) none.
    pub address: Option<Option<String>>,
    /// Whether it is disabled: it receives no commands.
    pub disabled: Option<bool>,
}

impl AgentPatch {
    /// The changes in words, for the audit log.
    pub(super) fn told(&self) -> String {
        let labels = self.labels.iter().map(|(key, value)| match value {
            Some(value) => format!("labels.{key} = {value:?}"),
            None => format!("labels.{key} taken away"),
        });
        let address = self.address.iter().map(|address| match address {
            Some(address) => format!("address = {address:?}"),
            None => "address taken away".to_owned(),
        });
        let disabled = self.disabled.iter().map(|disabled| format!("disabled = {disabled}"));
        labels.chain(address).chain(disabled).collect::<Vec<_>>().join(", ")
    }

    /// Whether it changes anything of these.
    pub(super) fn changes(&self, address: Option<&str>, disabled: bool) -> bool {
        self.address.as_ref().is_some_and(|new| new.as_deref() != address)
            || self.disabled.is_some_and(|new| new != disabled)
    }

    /// The labels after the change.
    pub(super) fn labels_after(&self, mut labels: Labels) -> Labels {
        for (key, value) in &self.labels {
            match (value, labels.set.get(key)) {
                (Some(value), _) => drop(labels.set.insert(key.clone(), Some(value.clone()))),
                // What the agent reports comes back.
                (None, Some(Some(_))) => drop(labels.set.remove(key)),
                (None, None) if labels.reported.contains_key(key) => drop(labels.set.insert(key.clone(), None)),
                (None, _) => {}
            }
        }
        labels
    }
}

/// An agent's labels: operators set some, and the agent reports some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    /// What the agent reports.
    pub(super) reported: BTreeMap<String, String>,
    /// Those of operators, which go before: set, or (`None`) taken away.
    pub(super) set: BTreeMap<String, Option<String>>,
}

impl Labels {
    /// Those of a new agent.
    pub(super) fn new(agent: &NewAgent) -> Self {
        let labels = agent.enrollment.labels.clone().unwrap_or_default();
        // Other agents report nothing: somebody added them.
        if agent.transport == STREAM && agent.secret.is_none() {
            return Self { reported: labels, set: BTreeMap::new() };
        }
        let set = labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
        Self { reported: BTreeMap::new(), set }
    }

    /// Both, as targets see them.
    pub(super) fn all(&self) -> BTreeMap<String, String> {
        let mut all = self.reported.clone();
        for (key, value) in &self.set {
            match value {
                Some(value) => all.insert(key.clone(), value.clone()),
                None => all.remove(key),
            };
        }
        all
    }

    /// The labels once the agent has reported these. A label that was taken away is forgotten when the agent no longer
    /// reports it.
    pub(super) fn after_report(mut self, reported: BTreeMap<String, String>) -> Self {
        self.set.retain(|key, value| value.is_some() || reported.contains_key(key));
        Self { reported, set: self.set }
    }
}

/// What an agent reports of itself. What it leaves out stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Its labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its facts.
    pub facts: Option<JsonObject>,
    /// The version of its program.
    pub version: String,
}

impl From<&Enrollment> for Said {
    fn from(enrollment: &Enrollment) -> Self {
        let Enrollment { labels, facts, version, .. } = enrollment.clone();
        Self { labels, facts, version }
    }
}

/// What is stored of what an agent has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) labels: Labels,
    /// As JSON.
    pub(super) facts: String,
    pub(super) version: String,
}

impl Known {
    /// The same after a report.
    pub(super) fn after(self, said: &Said) -> Self {
        let labels = match &said.labels {
            Some(reported) => self.labels.after_report(reported.clone()),
            None => self.labels,
        };
        let facts = said.facts.as_ref().map_or(self.facts, |facts| facts.as_str().to_owned());
        Self { labels, facts, version: said.version.clone() }
    }
}

/// An agent to insert without a token (for benchmarks, and for agents that don't connect by
/// themselves).
#[derive(Clone, Debug)]
pub struct NewAgent {
    /// Its name, labels, facts and version.
    pub enrollment: Enrollment,
    /// The transport by which it receives commands.
    pub transport: String,
    /// Its address, if the transport needs one.
    pub address: Option<String>,
    /// The secret that signs webhooks to it.
    pub secret: Option<String>,
}

/// The result of enrolling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// The agent is enrolled with this token.
    New(AgentRef),
    /// Another agent has this name.
    Taken,
}

/// Agents. The same on both databases.
#[async_trait]
pub trait Agents: Send + Sync {
    /// Enrolls an agent with the hash of its token, unless the name is taken.
    async fn agent_enroll(&self, agent: &NewAgent, token_hash: Vec<u8>, by: &Author) -> StoreResult<Enrolled> {
        self.agent_enroll_once(agent, token_hash, None, by).await
    }

    /// Enrolls an agent with the hash of its token under a nonce, so that it can repeat a call
    /// whose answer was lost.
    ///
    /// If the name is taken by an agent that enrolled under the same nonce and has never used its
    /// token, that token is revoked, and the agent gets this one and its new labels, facts and
    /// version.
    async fn agent_enroll_once(
        &self,
        agent: &NewAgent,
        token_hash: Vec<u8>,
        nonce_hash: Option<Vec<u8>>,
        by: &Author,
    ) -> StoreResult<Enrolled>;

    /// Stores what an agent reports. Labels that operators set stay. False if it is stored already: nothing is written.
    async fn agent_refresh(&self, agent_no: i64, said: Said) -> StoreResult<bool>;

    /// Inserts many agents without tokens. Agents whose names are taken are skipped.
    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()>;

    /// The agent with this key, unless it is removed.
    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>>;

    /// The agents with these keys that are not removed, in key order.
    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>>;

    /// How to reach these agents, in key order. Leaves out those that are disabled or removed.
    async fn agent_contacts(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentContact>>;

    /// Searches a part of the fleet for agents that match a target. Agents that are disabled or removed never match.
    async fn agent_search(&self, target: &Target, part: Part) -> StoreResult<Found<Matching>>;

    /// Agents that match a target, in key order after the key `after`, by as many searches as it takes.
    async fn agent_match(&self, target: &Target, after: i64, limit: usize) -> StoreResult<Matching> {
        let (mut agents, mut after) = (Vec::new(), after);
        loop {
            let part = Part { after, limit: limit - agents.len(), searched: SEARCHED };
            let found = self.agent_search(target, part).await?;
            agents.extend(found.agents);
            match found.through {
                Some(through) if agents.len() < limit => after = through,
                _ => return Ok(agents),
            }
        }
    }

    /// Counts these agents in a part of the fleet: the `searched` ones after the key `after`.
    async fn agent_count(&self, among: &Among, after: i64, searched: usize) -> StoreResult<Found<i64>>;

    /// Lists up to `limit` of these agents as users see them, in the order of their names after `after`, among the
    /// `searched` next ones.
    async fn agent_list(
        &self,
        among: &Among,
        after: Option<&str>,
        limit: usize,
        searched: usize,
    ) -> StoreResult<Found<Vec<AgentView>, String>>;

    /// The agent with this name, as users see it, unless it is removed.
    async fn agent_view(&self, name: &str) -> StoreResult<Option<AgentView>>;

    /// Changes an agent. Returns its key and what it is now, or `None` if there is no agent with
    /// this name.
    async fn agent_update(&self, name: &str, patch: &AgentPatch, by: &Author) -> StoreResult<Option<(i64, AgentView)>>;

    /// Removes an agent: it matches no target any more, its tokens are revoked, and its name is
    /// free. Returns its key.
    ///
    /// Its commands are closed later, see [`Agents::agent_list_leaving`].
    async fn agent_remove(&self, name: &str, by: &Author) -> StoreResult<Option<i64>>;

    /// Lists the keys of removed agents whose commands are not closed yet, in key order after the key `after`.
    ///
    /// Nobody owns an agent, so the oldest node alone gets them.
    async fn agent_list_leaving(&self, after: i64, limit: usize) -> StoreResult<Vec<i64>>;

    /// Records that the commands of a removed agent are closed: it is no longer listed as leaving.
    ///
    /// Does nothing if it was removed after `before`, because a page with a command for it may
    /// still be under way.
    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_of_operators_go_before_those_that_the_agent_reports() {
        let agent = NewAgent {
            enrollment: Enrollment { labels: Some(map(&[("role", "web"), ("site", "a")])), ..Enrollment::default() },
            transport: STREAM.into(),
            address: None,
            secret: None,
        };
        let patch = |labels: &[(&str, Option<&str>)]| AgentPatch {
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect(),
            ..AgentPatch::default()
        };
        let changed =
            patch(&[("role", Some("db")), ("tier", Some("1")), ("site", None)]).labels_after(Labels::new(&agent));
        assert_eq!(changed.all(), map(&[("role", "db"), ("tier", "1")]));
        // It restarts with the same labels, with others, and with none.
        let same = changed.clone().after_report(map(&[("role", "web"), ("site", "a")]));
        assert_eq!(same, changed);
        let others = same.after_report(map(&[("role", "x"), ("rack", "7")]));
        assert_eq!(others.all(), map(&[("role", "db"), ("tier", "1"), ("rack", "7")]));
        // It reports again what was taken away, after it had not.
        let again = others.after_report(map(&[("site", "b")]));
        assert_eq!(again.all(), map(&[("role", "db"), ("tier", "1"), ("site", "b")]));
        let none = again.clone().after_report(BTreeMap::new());
        assert_eq!(none.all(), map(&[("role", "db"), ("tier", "1")]));
        // What an operator takes back: his own label, then the agent's own; and one that nobody has.
        let back = again.after_report(map(&[("role", "web")]));
        let patch = patch(&[("role", None), ("nobody", None), ("tier", None)]);
        let back = patch.labels_after(back);
        assert_eq!((back.all(), back.set.len()), (map(&[("role", "web")]), 0));
        assert_eq!(patch.labels_after(back).all(), BTreeMap::new());
    }

    #[test]
    fn what_a_report_leaves_out_stays() {
        let known = Known {
            labels: Labels { reported: map(&[("a", "1")]), set: BTreeMap::new() },
            facts: r#"{"os":"linux"}"#.into(),
            version: "1".into(),
        };
        let nothing = Said { version: "1".into(), ..Said::default() };
        assert_eq!(known.clone().after(&nothing), known);
        let empty = Said { labels: Some(BTreeMap::new()), facts: Some(JsonObject::default()), version: "2".into() };
        let known = known.after(&empty);
        assert_eq!((known.labels, known.facts.as_str(), known.version.as_str()), (Labels::default(), "{}", "2"));
    }
}
