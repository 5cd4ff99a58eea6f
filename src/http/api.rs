//! State that the handlers of this process share.

use super::body_room::BodyRooms;
use super::connections::Connections;
use super::known_tokens::KnownTokens;
use super::limits::Limits;
use super::unserved::Unserved;
use crate::context::Node;
use crate::domain::protocol::MAX_FRAME;
use crate::runtime::Supervision;
use crate::senders::stream::SessionDeps;
use crate::service::metadata::Feeds;
use std::sync::Arc;

/// The shared state of the handlers.
#[derive(Clone)]
pub struct Api {
    /// The context of this process.
    pub node: Arc<Node>,
    /// The limits per caller.
    pub limits: Limits,
    /// Which tokens were valid and unknown a while ago.
    pub(super) known_tokens: KnownTokens,
    /// Room for bodies in memory.
    pub(super) bodies: BodyRooms,
    /// The count and the limit of connections.
    pub connections: Connections,
    /// For agents' connections.
    pub sessions: SessionDeps,
    /// What is told to those who watch metadata.
    pub feeds: Feeds,
    /// Whether agents may connect to this node.
    pub serves_stream: bool,
    /// Commands that no node has a sender for, as counted a moment ago.
    pub unserved: Arc<Unserved>,
    /// The actors' states.
    pub supervision: Supervision,
}

impl Api {
    /// State for a server with up to `connections` connections.
    pub fn new(sessions: SessionDeps, supervision: Supervision, serves_stream: bool, connections: usize) -> Self {
        let node = sessions.node.clone();
        let http = &node.config.http;
        let limits = Limits::new(http.token_rate, http.token_streams);
        let bodies = BodyRooms::new(http.max_body.as_usize().max(MAX_FRAME));
        let connections = Connections::new(connections, node.metrics.clone());
        let (feeds, unserved) = (Feeds::default(), Arc::default());
        let known_tokens = KnownTokens::default();
        Self { node, limits, known_tokens, bodies, connections, sessions, feeds, serves_stream, unserved, supervision }
    }

    /// The largest body in bytes.
    pub(super) fn max_body(&self) -> usize {
        self.node.config.http.max_body.as_usize()
    }
}
