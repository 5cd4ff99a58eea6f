//! The agent's connection to RabbitMQ.
//!
//! It needs few rights: to read its own queue, and to write to the exchange of results with its own
//! routing key. So it declares nothing. If somebody has removed its queue, `hello` has a server make it
//! again, and the agent waits for it.

use super::link::{Broker, Link, LinkError, Message};
use crate::agent::config::AgentConfig;
use crate::amqp_client::{AmqpAccess, short};
use crate::domain::broker::{MAX_MESSAGE, RESULTS_EXCHANGE, commands_to, token};
use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::Acker;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages that the broker sends ahead.
const PREFETCH: u16 = 64;
/// Timeout of the broker's confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the connection is looked at while nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a queue that is not there is looked for.
const QUEUE_RETRY: Duration = Duration::from_secs(2);
/// How long closing the connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A RabbitMQ broker.
pub(in crate::agent) struct AmqpBroker {
    access: AmqpAccess,
    name: String,
    queue: ShortString,
    key: ShortString,
    user: ShortString,
}

impl AmqpBroker {
    /// From the agent's settings. Blocks, since it reads files.
    pub(in crate::agent) fn new(config: &AgentConfig) -> Result<Self, String> {
        let mut access = AmqpAccess::new(&config.server).map_err(|error| format!("server: {error}"))?;
        if let Some(path) = &config.password_file {
            let with = access.with_password_file(path, &config.name);
            access = with.map_err(|error| format!("password_file: {error}"))?;
        }
        if let Some(path) = &config.ca_file {
            access = access.with_authorities(path).map_err(|error| format!("ca_file: {error}"))?;
        }
        let names = [commands_to(&config.name), token(&config.name), config.name.clone()].map(|name| short(&name));
        let [Some(queue), Some(key), Some(user)] = names else {
            return Err(format!("name: \"{}\" is too long for the name of a queue", config.name));
        };
        Ok(Self { access, name: config.name.clone(), queue, key, user })
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    type Link = AmqpLink;

    async fn connect(&mut self) -> Result<AmqpLink, LinkError> {
        let connection = self.access.connect(format!("odoshi agent {}", self.name)).await.map_err(LinkError)?;
        let connection = Arc::new(connection);
        let failed = |doing: &'static str| move |error: lapin::Error| LinkError::of(doing, &error);
        let messages = match read(&connection, self.queue.clone()).await {
            Ok(messages) => Messages::Open(messages),
            Err(error) if is_missing(&error) => {
                log::warn!(agent = self.name.as_str(); "the queue of this agent is not there; a server makes it");
                let (connection, queue) = (connection.clone(), self.queue.clone());
                Messages::Missing(tokio::spawn(async move { wait_for(&connection, queue).await }))
            }
            Err(error) => return Err(LinkError::of("read the queue of this agent", &error)),
        };
        let publishing = connection.create_channel().await.map_err(failed("make a channel"))?;
        publishing.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed("make a channel"))?;
        Ok(AmqpLink { connection, messages, publishing, key: self.key.clone(), user: self.user.clone() })
    }
}

/// Begins to read a queue.
async fn read(connection: &Connection, queue: ShortString) -> Result<Consumer, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
}

/// Begins to read a queue as soon as it is there.
async fn wait_for(connection: &Connection, queue: ShortString) -> Result<Consumer, lapin::Error> {
    loop {
        tokio::time::sleep(QUEUE_RETRY).await;
        match read(connection, queue.clone()).await {
            Err(error) if is_missing(&error) => {}
            ended => return ended,
        }
    }
}

fn is_missing(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)
}

/// The queue of this agent.
enum Messages {
    Open(Consumer),
    /// It is not there, and is waited for.
    Missing(JoinHandle<Result<Consumer, lapin::Error>>),
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Self::Missing(waiting) = self {
            waiting.abort();
        }
    }
}

/// One connection.
pub(in crate::agent) struct AmqpLink {
    connection: Arc<Connection>,
    messages: Messages,
    /// With one message under way at a time.
    publishing: Channel,
    key: ShortString,
    user: ShortString,
}

#[async_trait]
impl Link for AmqpLink {
    type Ack = Acker;

    fn max_message(&self) -> usize {
        MAX_MESSAGE
    }

    async fn publish(&mut self, message: String) -> Result<(), LinkError> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_user_id(self.user.clone());
        let properties = properties.with_delivery_mode(PERSISTENT).with_content_type("application/json".into());
        let (exchange, key) = (RESULTS_EXCHANGE.into(), self.key.clone());
        let publishing = async {
            self.publishing.basic_publish(exchange, key, options, message.as_bytes(), properties).await?.await
        };
        match timeout(CONFIRM_TIMEOUT, publishing).await {
            Ok(Ok(Confirmation::Ack(None) | Confirmation::NotRequested)) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)))) => {
                Err(LinkError("the broker has no queue for what agents say; a server makes it".into()))
            }
            Ok(Ok(Confirmation::Nack(None))) => Err(LinkError("the broker refuses a message".into())),
            Ok(Err(error)) => Err(LinkError::of("publish", &error)),
            Err(_) => Err(LinkError("the broker did not confirm in time".into())),
        }
    }

    async fn next(&mut self, _: usize) -> Result<Message<Acker>, LinkError> {
        loop {
            let messages = match &mut self.messages {
                Messages::Open(messages) => messages,
                Messages::Missing(waiting) => {
                    let found =
                        waiting.await.map_err(|error| LinkError::of("wait for the queue of this agent", &error))?;
                    let found = found.map_err(|error| LinkError::of("read the queue of this agent", &error))?;
                    self.messages = Messages::Open(found);
                    continue;
                }
            };
            // Not every end of a connection ends its consumers.
            let message = match timeout(LOOK_EVERY, messages.next()).await {
                Ok(message) => message,
                Err(_) if self.connection.status().connected() => continue,
                Err(_) => return Err(LinkError("the connection is lost".into())),
            };
            return match message {
                Some(Ok(message)) => Ok(Message { payload: message.data, ack: message.acker }),
                Some(Err(error)) => Err(LinkError::of("read", &error)),
                None => Err(LinkError("the broker has closed the queue of this agent".into())),
            };
        }
    }

    async fn ack(&mut self, ack: Acker) -> Result<(), LinkError> {
        match timeout(CONFIRM_TIMEOUT, ack.ack(BasicAckOptions::default())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(LinkError::of("acknowledge", &error)),
            Err(_) => Err(LinkError("a message could not be acknowledged in time".into())),
        }
    }

    /// RabbitMQ brings a message again only when the connection ends.
    async fn keep(&mut self, _: &Acker) -> Result<(), LinkError> {
        Ok(())
    }

    async fn close(&mut self) {
        if timeout(CLOSE_TIMEOUT, self.connection.close(200, "the agent stops".into())).await.is_err() {
            log::debug!("the connection to the broker was not closed in time");
        }
    }
}
