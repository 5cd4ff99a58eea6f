//! Nodes: the processes that share the store.

use super::error::StoreResult;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;

/// A node as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct NodeView {
    /// What its settings call it.
    pub name: String,
    /// Its process; another one at each start.
    pub incarnation: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it last said that it lives, by the database's clock.
    pub heartbeat: Timestamp,
    /// Whether the answering node has seen another heartbeat of it within `node.dead_after`, by its
    /// own clock.
    pub alive: bool,
    /// Agents that are connected to it.
    pub agents: i64,
    /// What it has senders for.
    pub transports: Vec<String>,
}

/// This process among its peers. On SQLite there is one node.
#[async_trait]
pub trait Nodes {
    /// Registers this process and its transports, and takes over the work of dead nodes.
    async fn node_start(&self, name: &str, transports: &[String]) -> StoreResult<()>;

    /// Unregisters this process: its actions and sessions are free at once. After it, writes of
    /// this process fail.
    async fn node_stop(&self) -> StoreResult<()>;

    /// Waits until another process has taken over from this one. From then on, writes of this
    /// process fail.
    ///
    /// On SQLite: waits forever.
    async fn node_lost(&self);

    /// Lists the nodes that share the store, oldest first.
    async fn node_list(&self) -> StoreResult<Vec<NodeView>>;
}
