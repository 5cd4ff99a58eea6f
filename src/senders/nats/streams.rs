//! The streams and consumers on the broker.

use crate::config::Nats;
use crate::domain::broker::{MAX_MESSAGE, STREAM_NAME, commands_to, token};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use std::time::Duration;

/// What agents say.
pub(super) const RESULTS: &str = "ODOSHI_RESULTS";
/// What can't be used.
pub(super) const DEAD: &str = "ODOSHI_DEAD";
/// The server's consumer of the results. No agent's token is like that.
const RESULTS_CONSUMER: &str = "~server";

/// How long a message may wait: the default life of an action, and of a rollout. What the broker
/// drops then is still open in the store.
const MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
/// How long an agent may work at a message before it comes again. Agents say more often that they do.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// Messages that an agent may have without acknowledging them.
const AGENT_PENDING: i64 = 256;
/// Messages that all nodes may have without acknowledging them.
const SERVER_PENDING: i64 = 1_024;
/// Questions for messages that an agent may have open.
const AGENT_WAITING: i64 = 16;
/// For a repeat of a message after a lost confirmation.
const DUPLICATES: Duration = Duration::from_secs(120);
/// Bounds of the stream for what can't be used: it is for people to look at.
const DEAD_MESSAGES: i64 = 10_000;
const DEAD_BYTES: i64 = 64 * 1024 * 1024;

fn config(name: &str, subject: &str, settings: &Nats) -> Config {
    Config {
        name: name.into(),
        subjects: vec![subject.into()],
        retention: RetentionPolicy::WorkQueue,
        // A full queue refuses: the command stays with the server.
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        max_age: MAX_AGE,
        max_bytes: i64::try_from(settings.max_bytes.0).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: i32::try_from(MAX_MESSAGE).unwrap_or(i32::MAX),
        duplicate_window: DUPLICATES,
        ..Config::default()
    }
}

/// Makes the streams that are missing. Those that exist stay as they are: an operator may have
/// changed them.
pub(super) async fn make(stream: &Context, settings: &Nats) -> Result<(), async_nats::Error> {
    let dead = Config {
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages: DEAD_MESSAGES,
        max_bytes: DEAD_BYTES,
        ..config(DEAD, "odoshi.dead.>", settings)
    };
    let commands = config(STREAM_NAME, "odoshi.commands.>", settings);
    for config in [commands, config(RESULTS, "odoshi.results.>", settings), dead] {
        match stream.get_stream(&config.name).await {
            Ok(_) => {}
            Err(error) if is_missing(error.kind()) => {
                let name = config.name.clone();
                stream.create_stream(config).await?;
                log::info!(stream = name; "a stream was made on NATS");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_missing(kind: GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Makes an agent's consumer, unless it is there.
pub(super) async fn make_consumer(stream: &Context, agent: &str) -> Result<(), async_nats::Error> {
    let consumer = pull::Config {
        durable_name: Some(token(agent)),
        filter_subject: commands_to(agent),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: AGENT_PENDING,
        max_waiting: AGENT_WAITING,
        ..pull::Config::default()
    };
    stream.create_consumer_on_stream(consumer, STREAM_NAME).await?;
    Ok(())
}

/// Removes an agent's consumer, and the messages for it.
pub(super) async fn remove_consumer(stream: &Context, consumer: &str) -> Result<(), async_nats::Error> {
    stream.delete_consumer_from_stream(consumer, STREAM_NAME).await?;
    let commands = stream.get_stream_no_info(STREAM_NAME).await?;
    commands.purge().filter(format!("odoshi.commands.{consumer}")).await?;
    Ok(())
}

/// The consumer of all that agents say.
pub(super) async fn results(
    stream: &Context,
) -> Result<async_nats::jetstream::consumer::Consumer<pull::Config>, async_nats::Error> {
    let consumer = pull::Config {
        durable_name: Some(RESULTS_CONSUMER.into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: SERVER_PENDING,
        ..pull::Config::default()
    };
    Ok(stream.create_consumer_on_stream(consumer, RESULTS).await?)
}
