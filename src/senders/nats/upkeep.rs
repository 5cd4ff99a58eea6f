//! Keeps the consumers in step with the agents: makes missing ones, and removes those of agents that
//! are removed or disabled, with their messages.

use super::carrier::{Connected, NatsCarrier};
use super::streams;
use crate::domain::broker::{STREAM_NAME, token};
use crate::error_chain::ErrorChain;
use crate::senders::broker::{agents_of, told_to};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// How often it looks. A consumer is also made when something is sent to its agent.
const PERIOD: Duration = Duration::from_secs(30);
/// Consumers that are made at the same time.
const CONCURRENCY: usize = 16;

/// Runs until the carrier stops.
pub(super) async fn keep_consumers(carrier: Arc<NatsCarrier>) {
    let mut stop = carrier.tasks.stopping();
    loop {
        let round = async {
            let connected = carrier.connected().await;
            if let Err(error) = run_once(&carrier, &connected).await {
                log::info!(error:%; "the consumers on NATS are compared with the agents later");
            }
            tokio::time::sleep(PERIOD).await;
        };
        tokio::select! {
            () = round => {}
            () = told_to(&mut stop) => return,
        }
    }
}

async fn run_once(carrier: &NatsCarrier, connected: &Connected) -> Result<(), async_nats::Error> {
    // The consumers first: a consumer that is listed here and has no agent afterwards had none before.
    let commands = connected.stream.get_stream_no_info(STREAM_NAME).await?;
    let names: HashSet<String> = commands.consumer_names().try_collect().await?;
    let agents = agents_of(&*carrier.context.store, carrier.context.transport()).await;
    let agents = agents.map_err(|error| error.chain().to_string())?;
    let tokens: HashSet<String> = agents.iter().map(|name| token(name)).collect();
    let missing: Vec<String> = agents.into_iter().filter(|name| !names.contains(&token(name))).collect();
    let made = missing.len();
    let making = futures_util::stream::iter(missing).map(|name| {
        let stream = connected.stream.clone();
        async move { streams::make_consumer(&stream, &name).await }
    });
    making.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
    let surplus: Vec<&String> = names.difference(&tokens).collect();
    let removed = surplus.len();
    for name in surplus {
        carrier.consumers().remove(name);
        streams::remove_consumer(&connected.stream, name).await?;
    }
    if made + removed > 0 {
        log::info!(made, removed; "the consumers on NATS follow the agents");
    }
    *carrier.consumers() = tokens;
    Ok(())
}
