//! What [`Signals`](super::Signals) sends to actors. Types alone, so nothing to test: the tests of `board.rs` send each.

use super::open_actions::Snapshot;
use crate::domain::hint::Hint;
use crate::store::Due;
use actix::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

/// Signals → delay scheduler: these commands have an open row and fall due again. If it is lost, or there is no room, the
/// scheduler reads them from the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Rescheduled(pub Vec<Due>);

/// Signals → delay scheduler, senders: users cancelled these actions, as (key, public id). Agents should hear of it.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Cancelled(pub Vec<(i64, Uuid)>);

/// Signals → delay scheduler: these actions were resumed. What was passed over is to be read again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resumed(pub Vec<i64>);

/// Signals → delay scheduler: another node committed something.
#[derive(Debug, Default, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PeerNews {
    /// Actions with new commands, and the agent key after which these begin.
    pub commands: Vec<(i64, i64)>,
    /// There are new open rows.
    pub open: bool,
    /// Anything may have changed.
    pub everything: bool,
}

/// Signals → delay scheduler: the open actions were read.
#[derive(Message)]
#[rtype(result = "()")]
pub struct OpenActionsRead(pub Arc<Snapshot>);

/// Signals → stream sender: this agent is disabled or removed. Its connection is to be closed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AgentDisabled(pub i64);

/// Signals → stream sender: these agents have newer connections at other nodes, as (agent, epoch).
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionSuperseded(pub Vec<(i64, i64)>);

/// Signals → stream sender: what an older connection of this agent held is in the store again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct BacklogChanged(pub i64);

/// Signals → peer notifier: other nodes may wait for this.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Publish(pub Vec<Hint>);
