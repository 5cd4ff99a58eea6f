//! What is to be delivered: which commands are due, and which node delivers them.
//!
//! A command without outcome and open row (*untouched*) is found through its action. One that could
//! not be delivered when it was due, or whose delivery failed, has an open row, and is found by
//! that row's due time.

use super::error::StoreResult;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use std::sync::Arc;

/// A command to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The action's key.
    pub action_no: i64,
    /// The agent's key.
    pub agent_no: i64,
    /// The run, counted from 1.
    pub run: i32,
    /// Failed delivery attempts of this run so far.
    pub attempts: i32,
    /// When it is due.
    pub due_at: Timestamp,
    /// The action's priority. Higher is delivered first.
    pub priority: i32,
    /// Whether it has an open row.
    pub open: bool,
}

/// A position in the order in which open rows are due: (due time, action, agent).
pub type DueCursor = (Timestamp, i64, i64);

/// A page of open rows.
#[derive(Clone, Debug, Default)]
pub struct DuePage {
    /// Those that this node delivers, with their agents' transports.
    pub found: Vec<(Due, Arc<str>)>,
    /// The place of the last row that was examined. `None` when there are no more rows at the moment.
    pub through: Option<DueCursor>,
}

/// A page of commands that wait for agents that don't connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrayPage {
    /// (action, agent, run)
    pub commands: Vec<(i64, i64, i32)>,
    /// The transport and the key of the last agent that was examined. `None` when there are no more at the moment.
    pub through: Option<(String, i64)>,
}

/// A page of an action's untouched commands.
#[derive(Clone, Debug, Default)]
pub struct UndispatchedPage {
    /// (agent, transport, due time), in key order.
    pub commands: Vec<(i64, Arc<str>, Timestamp)>,
    /// The agent key up to which commands were examined. `None` when there are no more commands at
    /// the moment.
    pub through: Option<i64>,
}

/// What is due. On SQLite the only node delivers everything that it has a sender for.
#[async_trait]
pub trait Dispatch {
    /// The untouched ones among the next `limit` commands of an action after the agent key `after`.
    async fn command_undispatched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UndispatchedPage>;

    /// The commands of an agent that are due up to `horizon`: first those due now, by priority
    /// (highest first) and due time; then the others by due time.
    ///
    /// Includes commands that lie at a broker for the agent (`queued`). Leaves out commands that the
    /// agent has (`sent`), and those of actions that are paused, cancelled, expired or ended.
    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>>;

    /// Examines the next `limit` open rows `retry` after the position `after` and due up to
    /// `horizon`, in the order of (due time, action, agent), and returns those that this node
    /// delivers. Rows `waiting` are found by their agents, see [`Dispatch::agent_with_due`].
    ///
    /// This node delivers a command if it holds the agent's session. Where the transport is not a
    /// stream, it is the action's owner that delivers, or, if the owner has no sender for the
    /// transport, the first node that has one.
    async fn command_due(&self, after: DueCursor, horizon: Timestamp, limit: usize) -> StoreResult<DuePage>;

    /// Those of these agents that have an open row `waiting` or `retry` due up to `horizon`, of an
    /// action that is neither paused, cancelled, expired nor ended.
    async fn agent_with_due(&self, agent_nos: &[i64], horizon: Timestamp) -> StoreResult<Vec<i64>>;

    /// Examines the next `limit` agents of other transports than streams after this (transport, key), and returns their
    /// commands with a row `waiting`, which nobody would find: an earlier version wrote it, or the agent was connected
    /// nonetheless.
    async fn command_stray(&self, after: &(String, i64), limit: usize) -> StoreResult<StrayPage>;

    /// Transports that no node has a sender for, each with its number of due commands. Counts at
    /// most `limit` commands in all.
    async fn command_unserved(&self, limit: usize) -> StoreResult<Vec<(String, i64)>>;

    /// Commands (action, agent) of actions that this node owns, which their agents have and whose
    /// result is overdue at `now`, earliest first.
    async fn command_overdue(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<(i64, i64)>>;
}
