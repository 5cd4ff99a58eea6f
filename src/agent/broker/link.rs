//! What a broker provides: one connection that takes and brings messages.

use async_trait::async_trait;

/// Why a connection to a broker can't be made or does not hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::agent) struct LinkError(pub(in crate::agent) String);

impl LinkError {
    /// With the text of an error and its causes.
    pub(in crate::agent) fn of<E: std::error::Error + 'static>(doing: &str, error: &E) -> Self {
        use crate::error_chain::ErrorChain;
        Self(format!("{doing}: {}", error.chain()))
    }
}

/// A message from the server.
#[derive(Debug)]
pub(in crate::agent) struct Message<A> {
    pub(in crate::agent) payload: Vec<u8>,
    /// With which it is acknowledged.
    pub(in crate::agent) ack: A,
}

/// A broker, before and between connections.
#[async_trait]
pub(in crate::agent) trait Broker: Send {
    /// Its connections.
    type Link: Link;

    /// Connects. The caller limits the time.
    async fn connect(&mut self) -> Result<Self::Link, LinkError>;
}

/// One connection. After an error, it isn't used again.
#[async_trait]
pub(in crate::agent) trait Link: Send {
    /// Names a message that was brought.
    type Ack: Send + Sync;

    /// The largest message that the broker takes, in bytes.
    fn max_message(&self) -> usize;

    /// Publishes a message to the server. Returns once the broker has it safe.
    async fn publish(&mut self, message: String) -> Result<(), LinkError>;

    /// The next message for this agent. `room` more are welcome; a few more may come. Dropping the
    /// future loses nothing.
    async fn next(&mut self, room: usize) -> Result<Message<Self::Ack>, LinkError>;

    /// The message is done: the broker forgets it.
    async fn ack(&mut self, ack: Self::Ack) -> Result<(), LinkError>;

    /// The agent still works at the message: the broker doesn't bring it again yet.
    async fn keep(&mut self, ack: &Self::Ack) -> Result<(), LinkError>;

    /// Sends what is under way, and closes.
    async fn close(&mut self);
}
