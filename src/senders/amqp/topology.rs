//! The exchanges and queues on the broker.

use crate::amqp_client::short;
use crate::domain::broker::{RESULTS_EXCHANGE, commands_to, token};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

/// To agents.
pub(super) const COMMANDS: &str = "odoshi";
/// What agents say.
pub(super) const RESULTS_QUEUE: &str = "odoshi.results";
/// The routing key, at the exchange [`COMMANDS`], of what can't be used. No agent's token is like that.
pub(super) const DEAD_KEY: &str = "~dead";
const DEAD_QUEUE: &str = "odoshi.dead";

const DAY_MILLISECONDS: i64 = 24 * 60 * 60 * 1000;
/// How long a message may wait: the default life of an action, and of a rollout. What the broker
/// drops then is still open in the store.
const MAX_AGE: i64 = 7 * DAY_MILLISECONDS;
/// A queue that nobody reads and nobody declares ends after this time: of removed agents, whose queues
/// AMQP can't list.
const QUEUE_EXPIRES: i64 = 14 * DAY_MILLISECONDS;
/// Bounds of the queue for what can't be used: it is for people to look at.
const DEAD_MESSAGES: i64 = 10_000;
const DEAD_BYTES: i64 = 64 * 1024 * 1024;

fn arguments<const N: usize>(arguments: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.into(), value);
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Makes the exchanges and the queues of the server.
pub(super) async fn make(connection: &Connection) -> Result<(), lapin::Error> {
    let channel = connection.create_channel().await?;
    for (name, kind) in [(COMMANDS, ExchangeKind::Direct), (RESULTS_EXCHANGE, ExchangeKind::Topic)] {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?;
    }
    channel.close(200, "done".into()).await?;
    let results = FieldTable::default();
    declare(connection, RESULTS_QUEUE, results, RESULTS_EXCHANGE, "#").await?;
    let dead = arguments([
        ("x-max-length", AMQPValue::LongLongInt(DEAD_MESSAGES)),
        ("x-max-length-bytes", AMQPValue::LongLongInt(DEAD_BYTES)),
        ("x-message-ttl", AMQPValue::LongLongInt(MAX_AGE)),
        ("x-overflow", text("drop-head")),
    ]);
    declare(connection, DEAD_QUEUE, dead, COMMANDS, DEAD_KEY).await
}

/// Makes an agent's queue, unless it is there. `max_bytes` bounds a new one: when it is full, the
/// broker refuses messages, and the commands stay with the server.
pub(super) async fn make_queue(connection: &Connection, agent: &str, max_bytes: u64) -> Result<(), lapin::Error> {
    let queue = arguments([
        ("x-max-length-bytes", AMQPValue::LongLongInt(i64::try_from(max_bytes).unwrap_or(i64::MAX))),
        ("x-overflow", text("reject-publish")),
        ("x-message-ttl", AMQPValue::LongLongInt(MAX_AGE)),
        ("x-expires", AMQPValue::LongLongInt(QUEUE_EXPIRES)),
    ]);
    declare(connection, &commands_to(agent), queue, COMMANDS, &token(agent)).await
}

/// Removes the queue of the agent with this token, and the messages for it.
pub(super) async fn remove_queue(connection: &Connection, token: &str) -> Result<(), lapin::Error> {
    let Some(queue) = short(&format!("odoshi.commands.{token}")) else { return Ok(()) };
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue, QueueDeleteOptions::default()).await?;
    channel.close(200, "done".into()).await
}

/// Declares a durable queue and binds it. One that exists with other arguments stays as it is: an
/// operator may have made it.
async fn declare(
    connection: &Connection,
    queue: &str,
    arguments: FieldTable,
    exchange: &str,
    key: &str,
) -> Result<(), lapin::Error> {
    // Names that are too long have no agents: see the service that adds them.
    let (Some(name), Some(key)) = (short(queue), short(key)) else { return Ok(()) };
    let mut channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    if let Err(error) = channel.queue_declare(name.clone(), options, arguments).await {
        if !is_precondition(&error) {
            return Err(error);
        }
        log::debug!(queue; "a queue on RabbitMQ was made with other arguments, and stays as it is");
        // The refusal has closed the channel.
        channel = connection.create_channel().await?;
    }
    bind(&channel, name, exchange, key).await?;
    channel.close(200, "done".into()).await
}

async fn bind(
    channel: &Channel,
    queue: lapin::types::ShortString,
    exchange: &str,
    key: lapin::types::ShortString,
) -> Result<(), lapin::Error> {
    channel.queue_bind(queue, exchange.into(), key, QueueBindOptions::default(), FieldTable::default()).await
}

fn is_precondition(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
}
