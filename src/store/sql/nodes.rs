//! Nodes: their rows.

use crate::domain::time::Timestamp;
use crate::store::NodeView;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

/// All nodes, each with how many agents are connected to it.
pub(in crate::store) const NODES: &str = "SELECT n.name, n.incarnation, n.started_at, n.heartbeat, \
     CAST(n.transports AS TEXT) AS transports, (SELECT count(*) FROM agent_sessions s WHERE s.incarnation = n.incarnation) AS agents \
     FROM nodes n ORDER BY n.started_at, n.incarnation";

/// A node.
#[derive(QueryableByName)]
pub(in crate::store) struct NodeRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    incarnation: String,
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = BigInt)]
    heartbeat: i64,
    #[diesel(sql_type = BigInt)]
    agents: i64,
    #[diesel(sql_type = Text)]
    transports: String,
}

impl NodeRow {
    /// Its incarnation and its last heartbeat.
    pub(in crate::store) fn beat(&self) -> (String, i64) {
        (self.incarnation.clone(), self.heartbeat)
    }

    /// As users see it.
    pub(in crate::store) fn view(self, alive: bool) -> NodeView {
        let Self { name, incarnation, started_at, heartbeat, agents, transports } = self;
        // What can't be read was written by a later version.
        let transports = serde_json::from_str(&transports).unwrap_or_default();
        let (started_at, heartbeat) = (Timestamp(started_at), Timestamp(heartbeat));
        NodeView { name, incarnation, started_at, heartbeat, alive, agents, transports }
    }
}
