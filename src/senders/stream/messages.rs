//! What sessions and the stream sender say to each other. How a dropped connection signs off is tested with the sender.

use crate::senders::contract::Delivery;
use actix::prelude::*;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Stream sender → a session.
#[derive(Debug)]
pub(super) enum ToSession {
    /// Deliver these.
    Commands(Vec<Delivery>),
    /// A user cancelled these.
    Cancelled(Arc<[(i64, Uuid)]>),
    /// A newer connection of this agent is here.
    Replaced,
    /// The server goes away.
    Leave,
    /// The agent is disabled or removed.
    Disabled,
}

/// Session → stream sender: this agent is connected. Answered when the store knows; then the backlog can be read.
#[derive(Message)]
#[rtype(result = "Result<Connected, NotConnected>")]
pub struct Connect {
    /// The agent.
    pub agent_no: i64,
    /// The token that it has shown.
    pub token: Uuid,
    /// The same connection was signed on before, with this epoch.
    pub after: Option<i64>,
}

/// Why a connection is not signed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotConnected {
    /// This process stops, or the store could not be asked.
    Away,
    /// The agent is disabled or removed, or its token is not valid any more.
    NotAllowed,
    /// The agent has a newer connection.
    Replaced,
}

/// A session's end of its connection to the stream sender.
pub struct Connected {
    /// What is to be done.
    pub(super) inbox: mpsc::Receiver<ToSession>,
    /// Set when something didn't fit into the inbox: the store has more.
    pub more: Arc<AtomicBool>,
    /// Set when a newer connection of the agent is here, also if the inbox had no room to say so.
    pub replaced: Arc<AtomicBool>,
    /// Which of the agent's connections it is, for the store.
    pub epoch: i64,
    /// Signs the connection off.
    pub(super) _sign_off: SignOff,
}

/// Tells the stream sender that a connection is gone, however it went: its task may have panicked, or may never have
/// learned that it was signed on.
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

/// Session → stream sender: this connection is gone, and all that it held is recorded, or is found in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The agent.
    pub agent_no: i64,
    /// Which of its connections to this process.
    pub serial: u64,
    /// The same for the store, if it has said so.
    pub epoch: Option<i64>,
}

/// The stream sender's end of a connection.
pub(super) struct Handle {
    pub(super) serial: u64,
    pub(super) token: Uuid,
    /// Which of the agent's connections it is; while the store has not said so, none before it is newer.
    pub(super) epoch: Option<i64>,
    pub(super) inbox: mpsc::Sender<ToSession>,
    pub(super) more: Arc<AtomicBool>,
    pub(super) replaced: Arc<AtomicBool>,
}
