//! What the senders over message brokers have in common.
//!
//! ```text
//!  scheduler ─▶ BrokerTransport ─┐                       ┌─▶ agent
//!                                ├─▶ Carrier ─▶ broker ──┤
//!       outcomes ◀─── Intake ◀───┴──────────── broker ◀──┘
//! ```
//!
//! [`BrokerTransport`] publishes commands and cancels. [`Intake`] takes the messages from agents, and
//! answers them. A [`Carrier`] is one broker: it sends, and puts aside what can't be used. The module
//! of the broker brings messages to the intake, and acknowledges each one only once the intake says
//! that it is [`Taken::Done`]: by then everything is durable.
//!
//! A broker's confirmation is no `sent`: the command is `queued`, and stays `pending` for users,
//! until its agent says `received`. While the broker can't be reached, nothing is counted as an
//! attempt. An agent's `hello` is answered with all that is open for it, whatever lies in its queue:
//! so a queue that the broker lost costs nothing.

mod answer;
mod intake;
mod known;
mod reach;
mod tasks;
#[cfg(test)]
mod tests;
mod transport;

pub(crate) use intake::{Intake, Taken};
pub(crate) use known::agents_of;
pub(crate) use reach::Reach;
pub(crate) use tasks::{Tasks, told_to};
pub(crate) use transport::BrokerTransport;

use async_trait::async_trait;

/// Why a broker did not take a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CarrierError {
    /// It can't be reached, or did not confirm in time.
    #[error("{0}")]
    Away(String),
    /// It has no room now.
    #[error("{0}")]
    Full(String),
    /// It will never take it.
    #[error("{0}")]
    Refused(String),
}

/// How messages get to one broker.
#[async_trait]
pub(crate) trait Carrier: Send + Sync + 'static {
    /// The largest message that the broker takes, in bytes.
    fn max_message(&self) -> usize;

    /// Sends a message to an agent, whose queue is made if it is missing. Returns once the broker
    /// has the message safe. Of messages with the same `id`, a broker may drop all but the first, if
    /// that one still lies in the queue. Takes at most half a minute.
    async fn send(&self, agent: &str, message: String, id: Option<&str>) -> Result<(), CarrierError>;

    /// Puts a message from an agent (`None`: from nobody that is known) where people find it, with
    /// the reason.
    async fn bury(&self, agent: Option<&str>, message: &[u8], reason: &str) -> Result<(), CarrierError>;

    /// The sender stops: finishes what is under way.
    async fn close(&self) {}
}
