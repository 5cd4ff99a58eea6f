//! The agent's connection to NATS JetStream.
//!
//! It needs few rights: to publish to its results subject, to ask its own consumer for messages
//! (`$JS.API.CONSUMER.MSG.NEXT…`), to acknowledge them, and to subscribe to an inbox of its own. So
//! it asks for messages directly, and calls nothing that would look at streams or consumers.

use super::link::{Broker, Link, LinkError, Message};
use crate::agent::config::AgentConfig;
use crate::domain::broker::{STREAM_NAME, results_of, token};
use crate::nats_client::NatsAccess;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, Event, StatusCode, Subject, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// How long the broker holds a question for messages.
const ASK_EXPIRES: Duration = Duration::from_secs(20);
/// How much later an answer is overdue: the question is asked again.
const ASK_GRACE: Duration = Duration::from_secs(10);
/// Messages per question.
const BATCH: usize = 32;
/// Timeout of the broker's confirmation.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// How long sending the rest may take at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Events of the connection that may wait. Later ones are dropped: the first one counts.
const EVENTS: usize = 16;

/// A NATS cluster.
pub(in crate::agent) struct NatsBroker {
    access: NatsAccess,
    ca_file: Option<PathBuf>,
    name: String,
}

impl NatsBroker {
    /// From the agent's settings. Blocks, since it reads files.
    pub(in crate::agent) fn new(config: &AgentConfig) -> Result<Self, String> {
        let mut access = NatsAccess::new(&config.server).map_err(|error| format!("server: {error}"))?;
        if let Some(path) = &config.password_file {
            let with = access.with_password_file(path, &config.name);
            access = with.map_err(|error| format!("password_file: {error}"))?;
        }
        if let Some(path) = &config.credentials_file {
            access = access.with_credentials(path).map_err(|error| format!("credentials_file: {error}"))?;
        }
        Ok(Self { access, ca_file: config.ca_file.clone(), name: config.name.clone() })
    }
}

#[async_trait]
impl Broker for NatsBroker {
    type Link = NatsLink;

    async fn connect(&mut self) -> Result<NatsLink, LinkError> {
        let (tell, events) = mpsc::channel(EVENTS);
        let token = token(&self.name);
        let options = self.access.options(self.ca_file.as_deref()).map_err(LinkError)?;
        let client = options
            .name(format!("odoshi agent {}", self.name))
            .custom_inbox_prefix(format!("_INBOX_{token}"))
            // This connection alone: a new one begins with `hello`.
            .max_reconnects(1)
            .subscription_capacity(1024)
            .request_timeout(Some(CONFIRM_TIMEOUT))
            .event_callback(move |event| {
                let _ = tell.try_send(event);
                async {}
            })
            .connect(self.access.addresses())
            .await
            .map_err(|error| LinkError::of("connect", &error))?;
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.*")).await.map_err(|error| LinkError::of("inbox", &error))?;
        let mut stream = jetstream::new(client.clone());
        stream.set_timeout(CONFIRM_TIMEOUT);
        Ok(NatsLink {
            client,
            stream,
            messages,
            events,
            inbox,
            next: format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM_NAME}.{token}").into(),
            results: results_of(&self.name).into(),
            question: 0,
            open: 0,
            overdue_at: Instant::now(),
        })
    }
}

/// One connection.
pub(in crate::agent) struct NatsLink {
    client: Client,
    stream: Context,
    messages: Subscriber,
    events: mpsc::Receiver<Event>,
    inbox: String,
    /// Where to ask for messages.
    next: Subject,
    results: Subject,
    /// The number of the last question.
    question: u64,
    /// How many messages of it are still to come.
    open: usize,
    overdue_at: Instant,
}

impl NatsLink {
    async fn ask(&mut self, room: usize) -> Result<(), LinkError> {
        let batch = room.clamp(1, BATCH);
        let expires = ASK_EXPIRES.as_nanos();
        let body = format!(r#"{{"batch":{batch},"expires":{expires}}}"#);
        let reply = format!("{}.{}", self.inbox, self.question + 1);
        let asked = self.client.publish_with_reply(self.next.clone(), reply, body.into()).await;
        asked.map_err(|error| LinkError::of("ask for messages", &error))?;
        self.question += 1;
        (self.open, self.overdue_at) = (batch, Instant::now() + ASK_EXPIRES + ASK_GRACE);
        Ok(())
    }

    /// A status instead of a message: the question has ended.
    fn status(&mut self, message: &async_nats::Message, status: StatusCode) -> Result<(), LinkError> {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        if number != Some(self.question) {
            return Ok(());
        }
        self.open = 0;
        let text = message.description.as_deref().unwrap_or_default();
        match status {
            // Nothing came in time.
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => Ok(()),
            StatusCode::NO_RESPONDERS => {
                Err(LinkError("the broker has no consumer for this agent, or no JetStream".into()))
            }
            status => Err(LinkError(format!("the broker answers {status} {text}"))),
        }
    }
}

#[async_trait]
impl Link for NatsLink {
    type Ack = Subject;

    fn max_message(&self) -> usize {
        self.client.max_payload()
    }

    async fn publish(&mut self, message: String) -> Result<(), LinkError> {
        let confirmed = async { self.stream.publish(self.results.clone(), message.into()).await?.await };
        tokio::select! {
            confirmed = confirmed => confirmed.map(|_| ()).map_err(|error| LinkError::of("publish", &error)),
            error = broken(&mut self.events) => Err(error),
        }
    }

    async fn next(&mut self, room: usize) -> Result<Message<Subject>, LinkError> {
        loop {
            if self.open == 0 || self.overdue_at <= Instant::now() {
                self.ask(room).await?;
            }
            tokio::select! {
                message = self.messages.next() => {
                    let message = message.ok_or_else(|| LinkError("the subscription ended".into()))?;
                    match (message.status, &message.reply) {
                        (Some(status), _) => self.status(&message, status)?,
                        (None, Some(reply)) => {
                            self.open = self.open.saturating_sub(1);
                            return Ok(Message { ack: reply.clone(), payload: message.payload.into() });
                        }
                        (None, None) => log::debug!(subject = message.subject.as_str(); "a message is not of the stream"),
                    }
                }
                error = broken(&mut self.events) => return Err(error),
                () = sleep_until(self.overdue_at) => {}
            }
        }
    }

    async fn ack(&mut self, ack: Subject) -> Result<(), LinkError> {
        self.client.publish(ack, "+ACK".into()).await.map_err(|error| LinkError::of("acknowledge", &error))
    }

    async fn keep(&mut self, ack: &Subject) -> Result<(), LinkError> {
        self.client.publish(ack.clone(), "+WPI".into()).await.map_err(|error| LinkError::of("acknowledge", &error))
    }

    async fn close(&mut self) {
        let _ = timeout(FLUSH_TIMEOUT, self.client.flush()).await;
    }
}

/// Waits until the connection is broken.
async fn broken(events: &mut mpsc::Receiver<Event>) -> LinkError {
    loop {
        match events.recv().await {
            Some(Event::Disconnected | Event::Closed) => return LinkError("the connection is lost".into()),
            None => return LinkError("the connection has ended".into()),
            // Missing rights show here, and nowhere else.
            Some(Event::ServerError(error)) => {
                log::warn!(error:%; "the broker refuses something");
                return LinkError(format!("the broker refuses something: {error}"));
            }
            Some(_) => {}
        }
    }
}
