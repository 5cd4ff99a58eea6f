//! The messages between sessions and the stream sender.

use crate::senders::due_command::DueCommand;
use actix::prelude::*;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Stream sender → a session.
#[derive(Debug)]
pub(super) enum ToSession {
    /// Deliver these commands.
    Commands(Vec<DueCommand>),
    /// A user cancelled these actions.
    Cancelled(Arc<[(i64, Uuid)]>),
    /// The agent has a newer connection.
    Replaced,
    /// The server stops.
    Leave,
    /// The agent is disabled or removed.
    Disabled,
}

/// Sender router → stream sender: these commands are due. Answered when they are with the sessions,
/// or written down as waiting.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeliverToSessions(pub Vec<DueCommand>);

/// Session → stream sender: this agent is connected. Answered after the store has committed it.
/// Then the session can read the backlog.
#[derive(Message)]
#[rtype(result = "Result<Connected, NotConnected>")]
pub struct Connect {
    /// The agent.
    pub agent_no: i64,
    /// The token that it authenticated with.
    pub token: Uuid,
    /// The epoch with which the same connection was signed on before.
    pub after: Option<i64>,
    /// The agent's process, if it says which.
    pub instance: Option<Uuid>,
}

/// Why a connection is not signed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotConnected {
    /// This process stops, or the store is unavailable.
    Away,
    /// The agent is disabled or removed, or its token is no longer valid.
    NotAllowed,
    /// The agent has a newer connection.
    Replaced,
    /// Another process uses the agent's token. It replaced this one, and is connected.
    Duplicate,
}

/// A session's end of its connection to the stream sender.
pub struct Connected {
    /// Messages to the session.
    pub(super) inbox: mpsc::Receiver<ToSession>,
    /// Set when something didn't fit into the inbox: the store has more commands.
    pub more: Arc<AtomicBool>,
    /// Set when the agent has a newer connection. Works even if the inbox is full.
    pub replaced: Arc<AtomicBool>,
    /// The connection's epoch in the store.
    pub epoch: i64,
    /// Signs the connection off.
    pub(super) _sign_off: SignOff,
}

/// Tells the stream sender on drop that a connection is gone. This covers a task that panicked and
/// one that never learned that it was signed on.
pub(super) struct SignOff {
    pub(super) sender: Recipient<Disconnect>,
    pub(super) agent_no: i64,
    pub(super) serial: u64,
    pub(super) epoch: Option<i64>,
}

impl Drop for SignOff {
    fn drop(&mut self) {
        let Self { agent_no, serial, epoch, .. } = *self;
        self.sender.do_send(Disconnect { agent_no, serial, epoch });
    }
}

/// Session → stream sender: this connection is gone. All that it held is recorded or still in the
/// store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The agent.
    pub agent_no: i64,
    /// The connection's number in this process.
    pub serial: u64,
    /// Its epoch, if the store has answered.
    pub epoch: Option<i64>,
}

/// The stream sender's end of a connection.
pub(super) struct Handle {
    pub(super) serial: u64,
    pub(super) token: Uuid,
    pub(super) instance: Option<Uuid>,
    /// The connection's epoch. `None` until the store has answered; it then counts as the newest.
    pub(super) epoch: Option<i64>,
    pub(super) inbox: mpsc::Sender<ToSession>,
    pub(super) more: Arc<AtomicBool>,
    pub(super) replaced: Arc<AtomicBool>,
}
