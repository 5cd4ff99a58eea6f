//! The messages between the actors of the pipeline, in the order in which data flows.

use crate::domain::action::Action;
use crate::domain::time::Timestamp;
use crate::senders::Delivery;
use crate::store::CommandPage;
use actix::prelude::*;
use std::sync::Arc;

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

/// Delay scheduler → sender router: these commands are due, in order. Answered when the senders
/// have taken them over. The answer lists those to try again: commands that are early, and those of
/// a crashed sender.
#[derive(Message)]
#[rtype(result = "Vec<(Arc<str>, Delivery)>")]
pub struct Dispatch(pub Vec<(Arc<str>, Delivery)>);
