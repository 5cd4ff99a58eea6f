//! Takes what agents say from the broker.

use super::carrier::{AmqpCarrier, Connected};
use super::topology::RESULTS_QUEUE;
use crate::domain::broker::name_of;
use crate::error_chain::ErrorChain;
use crate::senders::broker::{Intake, Taken, told_to};
use futures_util::StreamExt;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Messages in work at the same time.
const CONCURRENCY: usize = 16;
/// Messages that the broker sends ahead.
const PREFETCH: u16 = 64;
/// The wait before a message comes again that could not be recorded.
const LATER: Duration = Duration::from_secs(2);
/// How often the connection is looked at while nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an acknowledgment may take, the wait before it included.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait before the queue is read again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes messages until the carrier stops. What is in work then is finished.
pub(super) async fn take_messages(carrier: Arc<AmqpCarrier>, intake: Arc<Intake<AmqpCarrier>>) {
    let mut stop = carrier.tasks.stopping();
    let mut working = JoinSet::new();
    while !*stop.borrow() {
        let reading = read(&carrier, &intake, &mut working);
        let ended = tokio::select! {
            ended = reading => ended,
            () = told_to(&mut stop) => break,
        };
        if let Err(error) = ended {
            log::info!(error:% = error.chain(); "messages of agents are not read from RabbitMQ now");
        }
        tokio::time::sleep(RETRY).await;
    }
    while working.join_next().await.is_some() {}
}

async fn read(
    carrier: &Arc<AmqpCarrier>,
    intake: &Arc<Intake<AmqpCarrier>>,
    working: &mut JoinSet<()>,
) -> Result<(), lapin::Error> {
    let connected = carrier.connected().await;
    let mut messages = match consume(&connected).await {
        Ok(messages) => messages,
        Err(error) => {
            carrier.reconnect(&connected).await;
            return Err(error);
        }
    };
    loop {
        // Not every end of a connection ends its consumers.
        let message = match timeout(LOOK_EVERY, messages.next()).await {
            Ok(Some(message)) => message?,
            Err(_) if connected.is_alive() => continue,
            Ok(None) => {
                // Somebody has removed the queue.
                carrier.reconnect(&connected).await;
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        while working.len() >= CONCURRENCY {
            working.join_next().await;
        }
        working.spawn(take(intake.clone(), message));
    }
}

async fn consume(connected: &Connected) -> Result<Consumer, lapin::Error> {
    let channel = connected.takes.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (queue, tag) = (RESULTS_QUEUE.into(), "".into());
    channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default()).await
}

async fn take(intake: Arc<Intake<AmqpCarrier>>, message: Delivery) {
    let taken = match sender_of(&message) {
        Ok(agent) => intake.take_or_bury(Some(&agent), &message.data).await,
        Err(reason) => {
            let agent = name_of(message.routing_key.as_str());
            intake.put_aside(agent.as_deref(), &message.data, reason).await
        }
    };
    let acknowledging = async {
        match taken {
            Taken::Done => message.acker.ack(BasicAckOptions::default()).await,
            Taken::Later => {
                // It comes again at once when it is given back.
                tokio::time::sleep(LATER).await;
                message.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await
            }
        }
    };
    // Without an acknowledgment it comes again, and is recognized.
    match timeout(ACK_TIMEOUT, acknowledging).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => log::debug!(error:% = error.chain(); "a message is not acknowledged"),
        Err(_) => log::debug!("a message is not acknowledged in time"),
    }
}

/// The agent that has sent a message. The broker vouches for the user, and only for messages that
/// name one.
fn sender_of(message: &Delivery) -> Result<String, &'static str> {
    let agent = name_of(message.routing_key.as_str()).ok_or("its routing key is no agent's name")?;
    match message.properties.user_id() {
        None => Err("it has no user-id"),
        Some(user) if user.as_str() == agent => Ok(agent),
        Some(_) => Err("its user-id is not the agent of its routing key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::BasicProperties;

    #[test]
    fn a_message_is_of_the_user_that_the_broker_vouches_for() {
        let of = |key: &str, user: Option<&str>| {
            let mut message = Delivery::mock(1, "odoshi.results".into(), key.into(), false, Vec::new());
            if let Some(user) = user {
                message.properties = BasicProperties::default().with_user_id(user.into());
            }
            sender_of(&message)
        };
        assert_eq!(of("web~2E1", Some("web.1")), Ok("web.1".into()));
        assert_eq!(of("web-1", None), Err("it has no user-id"));
        assert_eq!(of("web-1", Some("")), Err("its user-id is not the agent of its routing key"));
        assert_eq!(of("web-1", Some("web-2")), Err("its user-id is not the agent of its routing key"));
        assert_eq!(of("web.1", Some("web.1")), Err("its routing key is no agent's name"));
        assert_eq!(of("", Some("")), Err("its routing key is no agent's name"));
    }
}
