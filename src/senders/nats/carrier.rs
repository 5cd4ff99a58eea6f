//! The server's connection to NATS, and what is sent over it.

use super::streams;
use crate::domain::broker::{commands_to, token};
use crate::error_chain::ErrorChain;
use crate::nats_client::NatsAccess;
use crate::senders::SenderContext;
use crate::senders::broker::{Carrier, CarrierError, Reach, Tasks, told_to};
use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap};
use async_trait::async_trait;
use std::collections::HashSet;
use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Timeout of the broker's confirmation, and of each of its other answers.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message waits for the connection, such as right after the start.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two attempts to connect, or to make the streams.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often the connection's state is looked at, for `/readyz`.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The most that is kept of a message that can't be used.
const BURIED: usize = 256 * 1024;

/// What is there while the broker is.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) stream: Context,
}

/// See the module.
pub(crate) struct NatsCarrier {
    pub(super) context: SenderContext,
    access: NatsAccess,
    /// The connection, once the streams are there.
    connected: watch::Sender<Option<Connected>>,
    /// The consumers that are known to exist.
    consumers: Mutex<HashSet<String>>,
    pub(super) tasks: Tasks,
    reach: Arc<Reach>,
}

impl NatsCarrier {
    pub(super) fn new(context: SenderContext, access: NatsAccess) -> Self {
        let connected = watch::Sender::new(None);
        let url = context.node().config.sender.nats.url.as_ref().map(ToString::to_string).unwrap_or_default();
        let reach = Arc::new(Reach::new("NATS", url));
        Self { context, access, connected, consumers: Mutex::default(), tasks: Tasks::default(), reach }
    }

    /// Waits for the connection.
    pub(super) async fn connected(&self) -> Connected {
        let mut connected = self.connected.subscribe();
        loop {
            // The wait can't fail: this carrier owns the sender.
            match connected.wait_for(Option::is_some).await.map(|connected| connected.clone()) {
                Ok(Some(connected)) => return connected,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    pub(super) fn consumers(&self) -> MutexGuard<'_, HashSet<String>> {
        // The set is consistent after every step.
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, and makes the streams whenever the broker is back, until the sender stops.
    pub(super) async fn stay_connected(self: Arc<Self>) {
        let mut stop = self.tasks.stopping();
        tokio::select! {
            () = self.connect() => {}
            () = told_to(&mut stop) => {}
        }
    }

    async fn connect(&self) {
        let status = self.context.status();
        status.set_connected(false);
        self.connected.send_replace(None);
        let settings = &self.context.node().config.sender.nats;
        let client = loop {
            match self.client().await {
                Ok(client) => break client,
                Err(error) => self.reach.failed(error),
            }
            tokio::time::sleep(RETRY_MAX).await;
        };
        let mut stream = jetstream::new(client.clone());
        stream.set_timeout(TIMEOUT);
        let mut wait = LOOK_EVERY;
        loop {
            let is_connected = client.connection_state() == State::Connected;
            let is_ready = self.connected.borrow().is_some();
            match (is_connected, is_ready) {
                (true, false) => match streams::make(&stream, settings).await {
                    Ok(()) => {
                        wait = LOOK_EVERY;
                        self.reach.reached();
                        self.consumers().clear();
                        self.connected.send_replace(Some(Connected { client: client.clone(), stream: stream.clone() }));
                        status.set_connected(true);
                    }
                    Err(error) => {
                        log::warn!(error:%; "the streams on NATS can't be made or looked at");
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                },
                (false, true) => {
                    self.reach.lost();
                    self.connected.send_replace(None);
                    status.set_connected(false);
                }
                _ => wait = LOOK_EVERY,
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn client(&self) -> Result<Client, String> {
        let settings = &self.context.node().config.sender.nats;
        let reach = self.reach.clone();
        let options = self.access.options(settings.ca_file.as_deref())?;
        let options = options
            .name("odoshi server")
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(|attempts| {
                // The delay doubles up to the cap; the first attempt is at once.
                let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
                if attempts <= 1 { Duration::ZERO } else { (LOOK_EVERY * (1 << doublings)).min(RETRY_MAX) }
            })
            .request_timeout(Some(TIMEOUT))
            .event_callback(move |event| {
                match event {
                    async_nats::Event::ServerError(error) => log::warn!(error:%; "NATS refuses something"),
                    async_nats::Event::ClientError(error) => reach.failed(error.to_string()),
                    event => log::debug!(event:%; "NATS"),
                }
                std::future::ready(())
            });
        let connecting = options.connect(self.access.addresses()).await;
        connecting.map_err(|error| error.chain().to_string())
    }

    /// The connection, if it is there now or in a moment.
    async fn reach(&self) -> Result<Connected, CarrierError> {
        let soon = tokio::time::timeout(CONNECT_WAIT, self.connected()).await;
        soon.map_err(|_| CarrierError::Away(self.reach.why()))
    }

    async fn make_consumer(&self, connected: &Connected, agent: &str) -> Result<(), CarrierError> {
        let token = token(agent);
        if self.consumers().contains(&token) {
            return Ok(());
        }
        let made = streams::make_consumer(&connected.stream, agent).await;
        made.map_err(|error| CarrierError::Away(format!("the consumer of {agent}: {error}")))?;
        self.consumers().insert(token);
        Ok(())
    }

    /// Publishes, and answers whether the broker had a message with this id before.
    async fn publish(
        &self,
        connected: &Connected,
        subject: String,
        publish: PublishMessage,
    ) -> Result<bool, CarrierError> {
        let sending = async { connected.stream.send_publish(subject, publish).await?.await };
        match tokio::time::timeout(TIMEOUT, sending).await {
            Ok(Ok(ack)) => Ok(ack.duplicate),
            Ok(Err(error)) => Err(self.refused(&error)),
            Err(_) => Err(CarrierError::Away("NATS did not confirm in time".into())),
        }
    }

    fn refused(&self, error: &PublishError) -> CarrierError {
        let code = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
        let text = error.chain().to_string();
        if error.kind() == PublishErrorKind::StreamNotFound {
            // The broker may have lost its disk: the streams are looked at again.
            self.connected.send_replace(None);
            self.context.status().set_connected(false);
        }
        match code.map(jetstream::Error::error_code) {
            Some(ErrorCode::STREAM_STORE_FAILED) => CarrierError::Full(text),
            _ => CarrierError::Away(text),
        }
    }
}

#[async_trait]
impl Carrier for NatsCarrier {
    fn max_message(&self) -> usize {
        let most = self.connected.borrow().as_ref().map(|connected| connected.client.max_payload());
        // Some of it is for headers.
        most.unwrap_or(usize::MAX).saturating_sub(1024)
    }

    async fn send(&self, agent: &str, message: String, id: Option<&str>) -> Result<(), CarrierError> {
        let connected = self.reach().await?;
        self.make_consumer(&connected, agent).await?;
        let subject = commands_to(agent);
        if let Some(id) = id {
            let publish = PublishMessage::build().payload(message.clone().into()).message_id(id);
            let is_repeat = self.publish(&connected, subject.clone(), publish).await?;
            // Of a command's repeat the agent may have dropped the first one, before its `hello`.
            if !is_repeat || id.starts_with("cancel.") {
                return Ok(());
            }
        }
        self.publish(&connected, subject, PublishMessage::build().payload(message.into())).await?;
        Ok(())
    }

    async fn bury(&self, agent: Option<&str>, message: &[u8], reason: &str) -> Result<(), CarrierError> {
        let connected = self.reach().await?;
        let mut headers = HeaderMap::new();
        // A header is one line.
        headers.insert("Odoshi-Reason", reason.replace(|letter: char| letter.is_control(), " "));
        headers.insert("Odoshi-Bytes", message.len().to_string());
        let kept = &message[..message.len().min(BURIED)];
        let publish = PublishMessage::build().payload(kept.to_vec().into()).headers(headers);
        let subject = format!("odoshi.dead.{}", agent.map_or_else(|| "unknown".into(), token));
        self.publish(&connected, subject, publish).await?;
        Ok(())
    }

    async fn close(&self) {
        self.tasks.stop().await;
        let connected = self.connected.borrow().clone();
        if let Some(connected) = connected {
            let _ = tokio::time::timeout(TIMEOUT, connected.client.flush()).await;
        }
    }
}
