//! The agent over a message broker: the same journal, runner and outbox as over a stream, and a
//! session that speaks in messages.
//!
//! What differs from a stream:
//! - **Messages wait.** The broker keeps them while the agent is away, so their `server_time` may be
//!   hours old. The agent learns the server's time from the `welcome` that repeats the `clock` of
//!   its own `hello`. A process that has not got one drops commands: it can't know whether they
//!   have expired, and the answer to its `hello` repeats all of them. A later connection of the
//!   same process keeps the clock that it has.
//! - **Commands are acknowledged late**: once the journal has them and the broker has `received`.
//!   What is lost before that comes again.
//! - **The agent's capacity is its own business.** Messages are read ahead, a few at a time, and
//!   passed to the runner when it has room, the most urgent first. So a cancel reaches a busy agent.
//!
//! [`Link`] is all that a broker has to provide: `nats` and `amqp` implement it.

#[cfg(feature = "amqp")]
mod amqp;
mod connection;
mod held;
mod link;
#[cfg(feature = "nats")]
mod nats;
mod session;

#[cfg(feature = "amqp")]
pub(super) use amqp::AmqpBroker;
pub(super) use connection::BrokerConnection;
pub(super) use link::Broker;
#[cfg(test)]
pub(super) use link::{Link, LinkError, Message};
#[cfg(feature = "nats")]
pub(super) use nats::NatsBroker;
