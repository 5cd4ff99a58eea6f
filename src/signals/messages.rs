//! The messages that [`Signals`](super::Signals) sends to actors.

use super::open_actions::Snapshot;
use crate::domain::command::RunEnd;
use crate::domain::hint::Hint;
use crate::store::Due;
use actix::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Signals → delay scheduler: these commands have an open row and fall due again. If the message is
/// lost or there is no room, the scheduler reads them from the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Rescheduled(pub Vec<Due>);

/// Signals → delay scheduler, senders: users cancelled these actions, as (key, public id). Senders
/// notify the agents.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Cancelled(pub Vec<(i64, Uuid)>);

/// Signals → delay scheduler: these actions were resumed. Read again what was passed over.
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

/// Signals → stream sender: this agent is disabled or removed. Close its connection.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AgentDisabled(pub i64);

/// Signals → stream sender: these agents have newer connections at other nodes, as (agent, epoch).
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionSuperseded(pub Vec<(i64, i64)>);

/// Signals → stream sender: the store has commands for these agents that their sessions may not know
/// of.
#[derive(Message)]
#[rtype(result = "()")]
pub struct BacklogChanged(pub Vec<i64>);

/// Signals → listeners that users registered: results of commands were recorded. A hint: if a
/// listener's mailbox is full, or the process crashes, it is lost.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct OutcomesRecorded(pub Arc<[RecordedOutcome]>);

/// How a run of a command ended.
#[derive(Clone, Debug)]
pub struct RecordedOutcome {
    /// The action's key.
    pub action_no: i64,
    /// The agent's key.
    pub agent_no: i64,
    /// The end of the run.
    pub end: RunEnd,
    /// Whether another run follows.
    pub runs_again: bool,
}

/// Metadata → signals: values were written. No message of an actor, but the same for all whom it concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataWritten {
    /// The agents with new values.
    pub agents: Vec<i64>,
    /// For each live action, those of them with a key that its target mentions.
    pub live: BTreeMap<i64, Vec<i64>>,
    /// Somebody watches at another node.
    pub is_watched_elsewhere: bool,
}

/// Signals → peer notifier: other nodes may need these hints.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Publish(pub Vec<Hint>);
