//! Takes what agents say from the broker.

use super::carrier::NatsCarrier;
use super::streams;
use crate::domain::broker::name_of;
use crate::senders::broker::{Intake, Taken, told_to};
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Messages in work at the same time.
const CONCURRENCY: usize = 16;
/// Messages that the client reads ahead.
const BATCH: usize = 64;
/// Their size in bytes. More than the largest message.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// The wait before a message comes again that could not be recorded.
const LATER: Duration = Duration::from_secs(2);
/// The wait before the consumer is looked for again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes messages until the carrier stops. What is in work then is finished.
pub(super) async fn take_messages(carrier: Arc<NatsCarrier>, intake: Arc<Intake<NatsCarrier>>) {
    let mut stop = carrier.tasks.stopping();
    let mut working = JoinSet::new();
    while !*stop.borrow() {
        let reading = read(&carrier, &intake, &mut working);
        let ended = tokio::select! {
            ended = reading => ended,
            () = told_to(&mut stop) => break,
        };
        if let Err(error) = ended {
            log::info!(error:%; "messages of agents are not read from NATS now");
        }
        tokio::time::sleep(RETRY).await;
    }
    while working.join_next().await.is_some() {}
}

async fn read(
    carrier: &Arc<NatsCarrier>,
    intake: &Arc<Intake<NatsCarrier>>,
    working: &mut JoinSet<()>,
) -> Result<(), async_nats::Error> {
    let connected = carrier.connected().await;
    let consumer = streams::results(&connected.stream).await?;
    let stream = consumer.stream().max_messages_per_batch(BATCH).max_bytes_per_batch(BATCH_BYTES);
    let mut messages = stream.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        while working.len() >= CONCURRENCY {
            working.join_next().await;
        }
        working.spawn(take(intake.clone(), message));
    }
    Ok(())
}

async fn take(intake: Arc<Intake<NatsCarrier>>, message: Message) {
    let name = message.subject.strip_prefix("odoshi.results.").and_then(name_of);
    let taken = intake.take_or_bury(name.as_deref(), &message.payload).await;
    let kind = match taken {
        Taken::Done => AckKind::Ack,
        Taken::Later => AckKind::Nak(Some(LATER)),
    };
    if let Err(error) = message.ack_with(kind).await {
        // It comes again, and is recognized.
        log::debug!(error:%; "a message is not acknowledged");
    }
}
