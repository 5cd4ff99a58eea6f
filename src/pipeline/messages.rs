//! What the actors of the pipeline send each other, in the order in which data flows. Types alone,
//! so nothing to test.

use crate::domain::action::Action;
use crate::domain::time::Timestamp;
use crate::senders::Delivery;
use crate::store::CommandPage;
use actix::prelude::*;
use std::sync::Arc;

/// Resolver → command store: one page of commands to be written.
pub struct NewPage {
    /// The action.
    pub action: Arc<Action>,
    /// What is to be written.
    pub page: CommandPage,
    /// The same commands as the scheduler wants them: (agent, transport, due time).
    pub commands: Vec<(i64, Arc<str>, Timestamp)>,
}

/// Command store → delay scheduler: these commands are committed. A hint: if it is lost, or there is no room, the scheduler
/// reads them from the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Committed {
    /// The action.
    pub action: Arc<Action>,
    /// The agent key after which the page begins.
    pub after: i64,
    /// The agent key up to which it goes.
    pub through: i64,
    /// (agent, transport, due time), in key order.
    pub commands: Vec<(i64, Arc<str>, Timestamp)>,
}

/// Delay scheduler → sender router: these are due, in order. Answered when the senders have taken them over, with those
/// that none took over: those that are early, and those whose sender crashed. They are to be tried again.
#[derive(Message)]
#[rtype(result = "Vec<(Arc<str>, Delivery)>")]
pub struct Dispatch(pub Vec<(Arc<str>, Delivery)>);
