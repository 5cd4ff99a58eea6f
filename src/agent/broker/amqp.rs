//! The agent's connection to RabbitMQ.
//!
//! It needs few rights: to read its own queue, and to write to the exchange of results with its own
//! routing key. So it declares nothing.

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
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer};
use std::time::Duration;
use tokio::time::timeout;

/// Messages that the broker sends ahead.
const PREFETCH: u16 = 64;
/// Timeout of the broker's confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the connection is looked at while nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
        let failed = |doing: &'static str| move |error: lapin::Error| LinkError::of(doing, &error);
        let reading = connection.create_channel().await.map_err(failed("make a channel"))?;
        reading.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(failed("make a channel"))?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let messages = reading.basic_consume(self.queue.clone(), "".into(), options, arguments).await;
        let messages = messages.map_err(failed("read the queue of this agent"))?;
        let publishing = connection.create_channel().await.map_err(failed("make a channel"))?;
        publishing.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed("make a channel"))?;
        Ok(AmqpLink { connection, messages, publishing, key: self.key.clone(), user: self.user.clone() })
    }
}

/// One connection.
pub(in crate::agent) struct AmqpLink {
    connection: Connection,
    messages: Consumer,
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
            // Not every end of a connection ends its consumers.
            let message = match timeout(LOOK_EVERY, self.messages.next()).await {
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
