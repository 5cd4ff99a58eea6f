//! Sessions: which node holds an agent's connection.
//!
//! The store numbers the connections of an agent (their *epochs*): each one gets a higher number
//! than all before it, even when nothing is left of those. So the newest is always known, whatever
//! the clocks say. An agent that is disabled or removed, or whose token is not valid, opens none.
//!
//! A newer connection replaces the one before it. Two processes with one agent's token, such as a machine and its clone,
//! would replace each other for ever. So a process that another one has replaced is refused while that one is connected.

use super::error::StoreResult;
use async_trait::async_trait;
use uuid::Uuid;

/// A connection to open.
#[derive(Clone, Copy, Debug)]
pub struct SessionOpening {
    /// The agent's key.
    pub agent_no: i64,
    /// The token that the agent showed. `None` skips the check.
    pub token: Option<Uuid>,
    /// The epoch that the agent had before, when it is the same connection again. It is opened only
    /// if no newer one was.
    pub after: Option<i64>,
    /// The agent's process, if it says which.
    pub instance: Option<Uuid>,
}

/// The result of opening a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is the agent's newest connection, with this epoch.
    As(i64),
    /// The agent is disabled or removed, or its token is not valid.
    NotAllowed,
    /// The agent has a newer connection.
    Replaced,
    /// Another process uses the agent's token. It replaced this one, and is connected.
    Duplicate,
}

/// A connection that this node holds.
#[derive(Clone, Copy, Debug)]
pub struct SessionHeld {
    /// The agent's key.
    pub agent_no: i64,
    /// The token that the agent showed. `None` skips the check.
    pub token: Option<Uuid>,
    /// Its epoch.
    pub epoch: i64,
}

/// The state of a connection that this node holds, according to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It is the agent's newest connection and stored.
    Current,
    /// It is the agent's newest connection. It was not stored, and is now.
    Restored,
    /// The agent is disabled or removed, or its token is not valid.
    NotAllowed,
    /// The agent has a newer connection.
    Replaced,
}

/// Sessions of agents with stream connections.
#[async_trait]
pub trait Sessions {
    /// Stores that this node holds these connections, at most one per agent, and gives each a
    /// higher epoch than any earlier connection of its agent. Returns one answer per connection, in
    /// the given order.
    async fn session_open(&self, sessions: &[SessionOpening]) -> StoreResult<Vec<Opened>>;

    /// Compares connections that this node holds with the store, and stores those that are missing.
    /// Returns one state per connection, in the given order.
    async fn session_check(&self, held: &[SessionHeld]) -> StoreResult<Vec<SessionState>>;

    /// Removes these connections (agent, epoch) of this node, and older ones of the same agents.
    ///
    /// Connections that another node holds, and newer ones, stay.
    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()>;

    /// Those of these agents whose connection another node holds. On SQLite: none.
    async fn session_elsewhere(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>>;
}
