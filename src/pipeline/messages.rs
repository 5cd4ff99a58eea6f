//! The messages between the actors of the pipeline, in the order in which data flows.

use crate::domain::action::Action;
use crate::domain::time::Timestamp;
use crate::senders::DueCommand;
use crate::store::CommandPage;
use actix::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// Resolver → command store: one page of commands to write.
pub struct NewPage {
    /// The action.
    pub action: Arc<Action>,
    /// The commands to write.
    pub page: CommandPage,
    /// The same commands in the scheduler's form: (agent, transport, due time).
    pub commands: Vec<(i64, Arc<str>, Timestamp)>,
}

/// Command store → delay scheduler: these commands are committed. A hint: if it is lost or there is
/// no room, the scheduler reads them from the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Committed {
    /// The action.
    pub action: Arc<Action>,
    /// The agent key after which the page begins.
    pub after: i64,
    /// The agent key at which the page ends.
    pub through: i64,
    /// (agent, transport, due time), in key order.
    pub commands: Vec<(i64, Arc<str>, Timestamp)>,
}

/// Delay scheduler → sender router: these commands of one transport are due, in order. Answered when
/// its sender has taken them over. The answer lists those to try again, each after a wait: commands
/// that are early, that the sender has no room for, or that a crashed sender had.
#[derive(Message)]
#[rtype(result = "Vec<(DueCommand, Duration)>")]
pub struct Dispatch {
    /// The transport of their agents.
    pub transport: Arc<str>,
    /// The commands.
    pub commands: Vec<DueCommand>,
}
