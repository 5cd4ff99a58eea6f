//! Channels for publishing with confirms, each with one message under way at a time: lapin attributes
//! a returned message to the next confirm of its channel.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use std::sync::{Arc, Mutex, PoisonError};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// The broker has it safe.
    Safe,
    /// No queue is bound for it.
    Returned,
    /// Its queue is full.
    Full,
}

/// The idle channels of a connection. As many are made as messages are published at a time.
pub(super) struct Channels {
    connection: Arc<Connection>,
    idle: Mutex<Vec<Channel>>,
}

impl Channels {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, idle: Mutex::default() }
    }

    /// Publishes, and waits for the broker's confirm.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        key: ShortString,
        message: &[u8],
        properties: BasicProperties,
    ) -> Result<Published, lapin::Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let channel = match idle {
            Some(channel) => channel,
            None => {
                let channel = self.connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                channel
            }
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = channel.basic_publish(exchange.into(), key, options, message, properties).await?;
        let confirmation = confirm.await?;
        // A channel with an error, or whose confirm is still to come, is not used again.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        Ok(match confirmation {
            Confirmation::Ack(None) | Confirmation::NotRequested => Published::Safe,
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => Published::Returned,
            Confirmation::Nack(None) => Published::Full,
        })
    }
}
