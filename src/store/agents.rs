//! Agents: enrolling, what they say of themselves, matching them with targets, changing and
//! removing them.

use super::error::StoreResult;
use crate::domain::agent::{AgentContact, AgentRef, Enrollment};
use crate::domain::audit::Author;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

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
    /// What operators say of it.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Box<RawValue>,
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
}

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

    /// The labels after the change.
    pub(super) fn labels_after(&self, mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        for (key, value) in &self.labels {
            match value {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key),
            };
        }
        labels
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

    /// Stores an agent's labels (if given), facts and version. False if they are stored already:
    /// nothing is written.
    async fn agent_refresh(
        &self,
        agent_no: i64,
        labels: Option<&BTreeMap<String, String>>,
        facts: &serde_json::Map<String, serde_json::Value>,
        version: &str,
    ) -> StoreResult<bool>;

    /// Inserts many agents without tokens. Agents whose names are taken are skipped.
    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()>;

    /// The agent with this key, unless it is removed.
    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>>;

    /// The agents with these keys that are not removed, in key order.
    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>>;

    /// How to reach these agents, in key order. Leaves out those that are disabled or removed.
    async fn agent_contacts(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentContact>>;

    /// Agents that match a target, with their transports, in key order after the key `after`.
    /// Agents that are disabled or removed never match.
    async fn agent_match(&self, target: &Target, after: i64, limit: usize) -> StoreResult<Vec<(i64, Arc<str>)>>;

    /// The number of agents that match a target.
    async fn agent_count(&self, target: &Target) -> StoreResult<i64>;

    /// Lists agents as users see them, in the order of their names after `after`: those that match,
    /// or without a target all that are not removed.
    async fn agent_list(
        &self,
        target: Option<&Target>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<AgentView>>;

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

    /// Lists the keys of removed agents whose commands are not closed yet.
    ///
    /// Nobody owns an agent, so the oldest node alone gets them.
    async fn agent_list_leaving(&self, limit: usize) -> StoreResult<Vec<i64>>;

    /// Records that the commands of a removed agent are closed: it is no longer listed as leaving.
    ///
    /// Does nothing if it was removed after `before`, because a page with a command for it may
    /// still be under way.
    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()>;
}
