//! What the actors say to each other, in the order in which data flows.

use crate::domain::action::Action;
use crate::domain::hint::Hint;
use crate::domain::protocol::Command;
use crate::domain::time::Timestamp;
use crate::store::{CommandPage, Due};
use actix::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

/// HTTP, spool loader → resolver: there are new actions. A hint; the resolver also looks by itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resolve;

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

/// Outcomes, sessions → delay scheduler: these have an open row and fall due again. A hint, like [`Committed`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct DueAgain(pub Vec<Due>);

/// One command on its way to its agent.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Which command, run and attempt.
    pub due: Due,
    /// Its action.
    pub action: Arc<Action>,
}

impl Delivery {
    /// The earliest time at which it may be handed over. Whatever its row says, that is not before its action is valid.
    pub fn not_before(&self) -> Timestamp {
        self.due.due_at.max(self.action.valid_from)
    }

    /// What its agent is told to do.
    pub fn command(&self) -> Command {
        let Self { due, action } = self;
        Command {
            action: action.id,
            run: due.run,
            attempt: due.attempts + 1,
            name: action.name.clone(),
            operations: action.operations.clone(),
            priority: action.priority,
            timeout_ms: i64::try_from(action.policy.timeout.as_millis()).unwrap_or(i64::MAX),
            expires_at: action.expires_at,
        }
    }
}

/// Delay scheduler → sender router: these are due, in order. Answered when the senders have taken them over, with those
/// that none took over: those that are early, and those whose sender fell. They are to be tried again.
#[derive(Message)]
#[rtype(result = "Vec<(Arc<str>, Delivery)>")]
pub struct Dispatch(pub Vec<(Arc<str>, Delivery)>);

/// Sender router → a sender: hand these over, and [`Record`](super::outcomes::Record) what becomes of each.
///
/// The answer means: they are mine now. A sender that can't reach an agent records
/// [`Event::Hold`](crate::domain::command::Event::Hold); one whose attempt failed
/// [`Event::AttemptFailed`](crate::domain::command::Event::AttemptFailed).
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Deliver(pub Vec<Delivery>);

/// HTTP → delay scheduler, sender router → senders: these actions were ended by a user; agents should hear of it.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Cancelled(pub Vec<(i64, Uuid)>);

/// HTTP → delay scheduler: these actions go on after a pause; what was passed over is to be read again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resumed(pub Vec<i64>);

/// Anyone → hints: other nodes may wait for this. A hint.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Tell(pub Vec<Hint>);

/// Hints → delay scheduler: another node says that there is something to be looked at.
#[derive(Debug, Default, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Hinted {
    /// Actions with new commands, and the agent key after which these begin.
    pub commands: Vec<(i64, i64)>,
    /// There are new open rows.
    pub open: bool,
    /// All open actions are to be looked at.
    pub everything: bool,
}

/// HTTP → stream sender: this agent is disabled or removed; its connection is to be closed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Banned(pub i64);

/// Hints → stream sender: these agents have newer connections at other nodes: (agent, epoch).
#[derive(Message)]
#[rtype(result = "()")]
pub struct Moved(pub Vec<(i64, i64)>);

/// Sessions, hints → stream sender: what an older connection of this agent had is in the store again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Backlog(pub i64);

/// HTTP, sessions → membership: this agent is new, or what is said of it is. A hint; it also looks by itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Changed(pub i64);

/// Outcomes, HTTP → housekeeper: these actions have changed. A hint; it also looks by itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Touched(pub Vec<i64>);

/// App → each actor on the way out, source first: finish what is under way. Answered when that is done.
#[derive(Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;
