//! Metadata: the newest value of each key of each agent, and when agents were last heard of.

use super::error::StoreResult;
use crate::domain::metadata::Values;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// How old a stored `last_seen` gets before a new one is stored. Small beside the minutes that people ask for,
/// and large beside how often an agent is heard of: an agent's row is long.
pub(super) const SEEN_WRITTEN: Duration = Duration::from_secs(60);

/// Values of an agent to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewValues {
    /// The agent's key.
    pub agent_no: i64,
    /// The values by key.
    pub values: Arc<Values>,
}

/// An agent was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The agent's key.
    pub agent_no: i64,
    /// When.
    pub at: Timestamp,
    /// It checked in, over HTTP or through a broker: it counts as online for two minutes.
    pub checked_in: bool,
}

/// A value as users see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MetadataView {
    /// The value; null if there is an error.
    #[schema(value_type = Option<serde_json::Value>)]
    pub value: Option<Box<RawValue>>,
    /// Why there is no value.
    pub error: Option<String>,
    /// When it was collected, by the server's clock.
    pub collected_at: Timestamp,
    /// The agent gave a time in the future, and this is when the value arrived.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub clamped: bool,
}

/// Values of an agent.
#[derive(Clone, Debug)]
pub struct AgentMetadata {
    /// The agent's key.
    pub agent_no: i64,
    /// The agent's name.
    pub name: String,
    /// Its values by key.
    pub values: BTreeMap<String, MetadataView>,
}

/// A page of agents that match a target.
#[derive(Clone, Debug)]
pub struct MetadataPage {
    /// Those with values that were written, in key order.
    pub agents: Vec<AgentMetadata>,
    /// The agent key up to which the page goes, if there may be more.
    pub through: Option<i64>,
}

/// Metadata. The same on both databases.
#[async_trait]
pub trait Metadata {
    /// Stores values, and when agents were heard of. A value is left out if a newer one is stored, or if its agent
    /// is removed. `values` has each agent once, in the order of their keys.
    ///
    /// Returns whether somebody watches metadata at another node.
    async fn metadata_write(&self, values: Vec<NewValues>, seen: Vec<Seen>) -> StoreResult<bool>;

    /// The keys of these agents.
    async fn metadata_keys(&self, agent_nos: &[i64]) -> StoreResult<Vec<(i64, String)>>;

    /// The values of the agents with these names: of all keys, or of `keys`. Agents without are left out.
    async fn metadata_of(&self, names: &[String], keys: Option<&[String]>) -> StoreResult<Vec<AgentMetadata>>;

    /// The values that were written after `since`, of at most `limit` agents that match a target, in key order after
    /// the key `after`. Considers only the agents in `among`, if given.
    async fn metadata_since(
        &self,
        target: &Target,
        among: Option<&[i64]>,
        since: Timestamp,
        after: i64,
        limit: usize,
    ) -> StoreResult<MetadataPage>;

    /// Tells the other nodes whether somebody watches metadata at this one. On SQLite there are none.
    async fn metadata_watch(&self, watches: bool) -> StoreResult<()>;
}
