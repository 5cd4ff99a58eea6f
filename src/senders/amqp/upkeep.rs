//! Keeps the queues in step with the agents: makes missing ones, and removes those of agents that are
//! removed or disabled, with their messages.
//!
//! AMQP can't list queues. Those of agents that are removed while no server knows them expire by
//! themselves (`topology`). So that queues of agents which are away don't, they are declared now and
//! then.

use super::carrier::{AmqpCarrier, Connected};
use super::topology;
use crate::domain::broker::token;
use crate::error_chain::ErrorChain;
use crate::senders::broker::{agents_of, told_to};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How often it looks. A queue is also made when something is sent to its agent.
const PERIOD: Duration = Duration::from_secs(30);
/// How often all queues are declared again.
const DECLARE_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// Timeout of the removal of a queue.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Queues that are made at the same time.
const CONCURRENCY: usize = 16;

/// Runs until the carrier stops.
pub(super) async fn keep_queues(carrier: Arc<AmqpCarrier>) {
    let mut stop = carrier.tasks.stopping();
    let mut declared = Instant::now();
    loop {
        let round = async {
            let connected = carrier.connected().await;
            if declared.elapsed() >= DECLARE_AGAIN {
                carrier.queues().clear();
                declared = Instant::now();
            }
            if let Err(error) = run_once(&carrier, &connected).await {
                log::info!(error; "the queues on RabbitMQ are compared with the agents later");
            }
            tokio::time::sleep(PERIOD).await;
        };
        tokio::select! {
            () = round => {}
            () = told_to(&mut stop) => return,
        }
    }
}

async fn run_once(carrier: &AmqpCarrier, connected: &Connected) -> Result<(), String> {
    // The queues first: one that is known here and has no agent afterwards had none before.
    let known: HashSet<String> = carrier.queues().clone();
    let agents = agents_of(&*carrier.context.store, carrier.context.transport()).await;
    let agents = agents.map_err(|error| error.chain().to_string())?;
    let tokens: HashSet<String> = agents.iter().map(|name| token(name)).collect();
    let missing: Vec<String> = agents.into_iter().filter(|name| !known.contains(&token(name))).collect();
    let made = missing.len();
    let making =
        futures_util::stream::iter(missing).map(|name| async move { carrier.make_queue(connected, &name).await });
    making.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
    let surplus: Vec<&String> = known.difference(&tokens).collect();
    let removed = surplus.len();
    for token in surplus {
        carrier.queues().remove(token);
        let removing = timeout(TIMEOUT, topology::remove_queue(&connected.publishes, token)).await;
        removing.map_err(|_| "RabbitMQ does not answer")?.map_err(|error| error.chain().to_string())?;
    }
    if made + removed > 0 {
        log::info!(made, removed; "the queues on RabbitMQ follow the agents");
    }
    Ok(())
}
