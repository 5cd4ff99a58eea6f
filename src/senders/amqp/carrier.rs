//! The server's connections to RabbitMQ, and what is sent over them.

use super::channels::{Channels, Published};
use super::topology::{self, COMMANDS, DEAD_KEY};
use crate::amqp_client::{AmqpAccess, short};
use crate::domain::broker::{MAX_MESSAGE, token};
use crate::error_chain::ErrorChain;
use crate::senders::SenderContext;
use crate::senders::broker::{Carrier, CarrierError, Reach, Tasks, told_to};
use async_trait::async_trait;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Timeout of the broker's confirm, and of each of its other answers.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message waits for the connection, such as right after the start.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two attempts to connect.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A connection that lasted so long was a good one: the next attempt comes soon.
const HELD: Duration = Duration::from_secs(30);
/// How often the connections' state is looked at, for `/readyz`.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The most that is kept of a message that can't be used.
const BURIED: usize = 256 * 1024;
/// A message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// What is there while the broker is. Clones share it.
#[derive(Clone)]
pub(super) struct Connected {
    /// For publishing, and for making queues.
    pub(super) publishes: Arc<Connection>,
    /// For taking messages.
    pub(super) takes: Arc<Connection>,
    channels: Arc<Channels>,
}

impl Connected {
    pub(super) fn is_alive(&self) -> bool {
        self.publishes.status().connected() && self.takes.status().connected()
    }

    async fn close(&self) {
        for connection in [&self.takes, &self.publishes] {
            let closing = connection.close(200, "the server stops".into());
            if !matches!(tokio::time::timeout(TIMEOUT, closing).await, Ok(Ok(()))) {
                log::debug!("a connection to RabbitMQ was not closed in order");
            }
        }
    }
}

/// See the module.
pub(crate) struct AmqpCarrier {
    pub(super) context: SenderContext,
    access: AmqpAccess,
    /// The connections, once the exchanges are there.
    connected: watch::Sender<Option<Connected>>,
    /// The tokens of the agents whose queues are known to exist.
    queues: Mutex<HashSet<String>>,
    pub(super) tasks: Tasks,
    reach: Reach,
}

impl AmqpCarrier {
    pub(super) fn new(context: SenderContext, access: AmqpAccess) -> Self {
        let connected = watch::Sender::new(None);
        let url = context.node().config.sender.amqp.url.as_ref().map(ToString::to_string).unwrap_or_default();
        let reach = Reach::new("RabbitMQ", url);
        Self { context, access, connected, queues: Mutex::default(), tasks: Tasks::default(), reach }
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

    pub(super) fn queues(&self) -> MutexGuard<'_, HashSet<String>> {
        // The set is consistent after every step.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects whenever the broker is back, until the sender stops.
    pub(super) async fn stay_connected(self: Arc<Self>) {
        let mut stop = self.tasks.stopping();
        tokio::select! {
            () = self.connect() => {}
            () = told_to(&mut stop) => {}
        }
    }

    async fn connect(&self) {
        let status = self.context.status();
        let mut wait = LOOK_EVERY;
        loop {
            status.set_connected(false);
            self.connected.send_replace(None);
            match tokio::time::timeout(TIMEOUT * 2, self.open()).await {
                Ok(Ok(connected)) => {
                    let began = Instant::now();
                    self.reach.reached();
                    self.queues().clear();
                    self.connected.send_replace(Some(connected.clone()));
                    status.set_connected(true);
                    while connected.is_alive() {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    self.reach.lost();
                    if began.elapsed() >= HELD {
                        wait = LOOK_EVERY;
                    }
                }
                Ok(Err(error)) => self.reach.failed(error),
                Err(_) => self.reach.failed("no answer".into()),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn open(&self) -> Result<Connected, String> {
        let publishes = Arc::new(self.access.connect("odoshi server".into()).await?);
        let takes = Arc::new(self.access.connect("odoshi server, messages from agents".into()).await?);
        topology::make(&publishes).await.map_err(|error| error.chain().to_string())?;
        let channels = Arc::new(Channels::new(publishes.clone()));
        Ok(Connected { publishes, takes, channels })
    }

    /// The connection, if it is there now or in a moment.
    async fn reach(&self) -> Result<Connected, CarrierError> {
        let soon = tokio::time::timeout(CONNECT_WAIT, self.connected()).await;
        soon.map_err(|_| CarrierError::Away(self.reach.why()))
    }

    /// Closes these connections. The next ones begin with making what is missing on the broker.
    pub(super) async fn reconnect(&self, connected: &Connected) {
        self.connected.send_replace(None);
        connected.close().await;
    }

    /// Makes an agent's queue, unless it is known to exist.
    pub(super) async fn make_queue(&self, connected: &Connected, agent: &str) -> Result<(), String> {
        let token = token(agent);
        if self.queues().contains(&token) {
            return Ok(());
        }
        let max_bytes = self.context.node().config.sender.amqp.max_bytes.0;
        let making = topology::make_queue(&connected.publishes, agent, max_bytes);
        match tokio::time::timeout(TIMEOUT, making).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the queue of {agent}: {}", error.chain())),
            Err(_) => return Err(format!("the queue of {agent}: RabbitMQ did not answer in time")),
        }
        self.queues().insert(token);
        Ok(())
    }

    async fn publish(
        &self,
        connected: &Connected,
        key: &str,
        message: &[u8],
        properties: BasicProperties,
    ) -> Result<Published, CarrierError> {
        let key = short(key).ok_or_else(|| CarrierError::Refused("the agent's name is too long for AMQP".into()))?;
        let properties = properties.with_delivery_mode(PERSISTENT).with_content_type("application/json".into());
        let publishing = connected.channels.publish(COMMANDS, key, message, properties);
        match tokio::time::timeout(TIMEOUT, publishing).await {
            Ok(Ok(published)) => Ok(published),
            Ok(Err(error)) => Err(CarrierError::Away(error.chain().to_string())),
            Err(_) => Err(CarrierError::Away("RabbitMQ did not confirm in time".into())),
        }
    }
}

#[async_trait]
impl Carrier for AmqpCarrier {
    fn max_message(&self) -> usize {
        MAX_MESSAGE
    }

    async fn send(&self, agent: &str, message: String, id: Option<&str>) -> Result<(), CarrierError> {
        let connected = self.reach().await?;
        let token = token(agent);
        let mut properties = BasicProperties::default();
        if let Some(id) = id.and_then(short) {
            properties = properties.with_message_id(id);
        }
        // Twice: the queue that is known to exist may have been removed.
        for _ in 0..2 {
            self.make_queue(&connected, agent).await.map_err(CarrierError::Away)?;
            match self.publish(&connected, &token, message.as_bytes(), properties.clone()).await? {
                Published::Safe => return Ok(()),
                Published::Full => return Err(CarrierError::Full(format!("the queue of {agent} is full"))),
                Published::Returned => drop(self.queues().remove(&token)),
            }
        }
        Err(CarrierError::Away(format!("RabbitMQ finds no queue for {agent}")))
    }

    async fn bury(&self, agent: Option<&str>, message: &[u8], reason: &str) -> Result<(), CarrierError> {
        let connected = self.reach().await?;
        let mut headers = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        headers.insert("Odoshi-Reason".into(), text(reason));
        headers.insert("Odoshi-Agent".into(), text(agent.unwrap_or("unknown")));
        headers.insert("Odoshi-Bytes".into(), text(&message.len().to_string()));
        let kept = &message[..message.len().min(BURIED)];
        let properties = BasicProperties::default().with_headers(headers);
        match self.publish(&connected, DEAD_KEY, kept, properties).await? {
            Published::Safe => Ok(()),
            Published::Full => Err(CarrierError::Full("the queue for what can't be used is full".into())),
            Published::Returned => {
                // Somebody has removed it.
                self.reconnect(&connected).await;
                Err(CarrierError::Away("the queue for what can't be used is gone".into()))
            }
        }
    }

    async fn close(&self) {
        self.tasks.stop().await;
        let connected = self.connected.borrow().clone();
        if let Some(connected) = connected {
            connected.close().await;
        }
    }
}
