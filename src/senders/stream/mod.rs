//! The stream sender: delivers commands to agents that are connected by WebSocket.
//!
//! [`StreamSender`] is the actor; it knows which connection belongs to which agent. Each connection
//! is a task of its own ([`connection`]). It greets the agent, then a session serves the agent and
//! tracks what is in flight to it ([`in_flight`]).

pub mod connection;
mod deps;
mod done;
mod greeting;
pub mod in_flight;
mod messages;
mod outbox;
pub(crate) mod records;
pub(crate) mod reports;
mod room;
mod sender;
mod session;
mod sessions;
#[cfg(test)]
mod tests;

pub use deps::SessionDeps;
pub use in_flight::MAX_CAPACITY;
pub use messages::{Connect, Connected, DeliverToSessions, Disconnect, NotConnected};
pub(crate) use records::LOOK_AHEAD;
pub use sender::StreamSender;
pub use sessions::{Opening, SessionChange, SessionSink, SessionWriter, Sessions};
