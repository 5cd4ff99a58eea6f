//! Agents on NATS JetStream. `docs/BROKERS.md` describes subjects, streams and rights.
//!
//! Three streams, made here if they are missing: `ODOSHI` for commands (work queue; one durable pull
//! consumer per agent, called after it), `ODOSHI_RESULTS` for what agents say (one durable consumer
//! for all nodes), `ODOSHI_DEAD` for what can't be used. Commands and results are apart because a
//! full stream refuses messages: agents that can't say `received` would never empty it.

mod carrier;
mod intake;
mod streams;
mod upkeep;

use crate::config::Nats;
use crate::nats_client::NatsAccess;
use crate::senders::SenderContext;
use crate::senders::broker::{BrokerTransport, Intake};
use crate::senders::pooled::PooledSender;
use carrier::NatsCarrier;
use intake::take_messages;
use std::sync::Arc;
use upkeep::keep_consumers;

/// The transport.
pub const NATS: &str = "nats";

/// Whether the settings can be used, apart from their files.
///
/// # Errors
/// Names the key.
pub(crate) fn check(settings: &Nats) -> Result<(), String> {
    of_url(settings).map(|_| ())
}

fn of_url(settings: &Nats) -> Result<NatsAccess, String> {
    let url = settings.url.as_ref().ok_or("sender.nats.url: is needed")?;
    NatsAccess::new(url.expose()).map_err(|error| format!("sender.nats.url: {error}"))
}

/// What the settings and their files say. Blocks.
///
/// # Errors
/// Names the key.
pub(crate) fn access(settings: &Nats) -> Result<NatsAccess, String> {
    let access = of_url(settings)?;
    let access = match &settings.credentials_file {
        Some(path) => {
            access.with_credentials(path).map_err(|error| format!("sender.nats.credentials_file: {error}"))?
        }
        None => access,
    };
    // Says now what would be wrong later.
    access.options(settings.ca_file.as_deref()).map_err(|error| format!("sender.nats: {error}"))?;
    Ok(access)
}

/// The sender's actor. It begins to connect at once, and goes on for ever.
pub(crate) fn sender(context: SenderContext, access: NatsAccess) -> PooledSender<BrokerTransport<NatsCarrier>> {
    let carrier = Arc::new(NatsCarrier::new(context.clone(), access));
    let intake = Arc::new(Intake::new(context.clone(), carrier.clone()));
    let connects = carrier.clone();
    carrier.tasks.start("connect", move || connects.clone().stay_connected());
    let takes = carrier.clone();
    carrier.tasks.start("intake", move || take_messages(takes.clone(), intake.clone()));
    let keeps = carrier.clone();
    carrier.tasks.start("upkeep", move || keep_consumers(keeps.clone()));
    PooledSender::new(context.clone(), BrokerTransport::new(context, carrier))
}
