//! Agents on RabbitMQ. `docs/BROKERS.md` describes exchanges, queues and rights.
//!
//! The direct exchange `odoshi` leads to one queue per agent, and to `odoshi.dead` for what can't be
//! used. What agents say comes through the topic exchange `odoshi.results` into the queue of that
//! name, which all nodes share. All of it is made here if it is missing.
//!
//! Commands are published over one connection and messages from agents taken over another: a broker
//! that is short of memory or disk stops reading from connections that publish.

mod carrier;
mod channels;
mod intake;
mod topology;
mod upkeep;

use crate::amqp_client::AmqpAccess;
use crate::config::Amqp;
use crate::senders::SenderContext;
use crate::senders::broker::{BrokerTransport, Intake};
use crate::senders::pooled::PooledSender;
use carrier::AmqpCarrier;
use intake::take_messages;
use std::sync::Arc;
use upkeep::keep_queues;

/// The transport.
pub const AMQP: &str = "amqp";

/// Whether the settings can be used, apart from their files.
///
/// # Errors
/// Names the key.
pub(crate) fn check(settings: &Amqp) -> Result<(), String> {
    of_url(settings).map(|_| ())
}

fn of_url(settings: &Amqp) -> Result<AmqpAccess, String> {
    let url = settings.url.as_ref().ok_or("sender.amqp.url: is needed")?;
    AmqpAccess::new(url.expose()).map_err(|error| format!("sender.amqp.url: {error}"))
}

/// What the settings and their files say. Blocks.
///
/// # Errors
/// Names the key.
pub(crate) fn access(settings: &Amqp) -> Result<AmqpAccess, String> {
    let mut access = of_url(settings)?;
    if let Some(path) = &settings.password_file {
        let with = access.with_password_file(path, "odoshi");
        access = with.map_err(|error| format!("sender.amqp.password_file: {error}"))?;
    }
    if let Some(path) = &settings.ca_file {
        access = access.with_authorities(path).map_err(|error| format!("sender.amqp.ca_file: {error}"))?;
    }
    Ok(access)
}

/// The sender's actor. It begins to connect at once, and goes on for ever.
pub(crate) fn sender(context: SenderContext, access: AmqpAccess) -> PooledSender<BrokerTransport<AmqpCarrier>> {
    let carrier = Arc::new(AmqpCarrier::new(context.clone(), access));
    let intake = Arc::new(Intake::new(context.clone(), carrier.clone()));
    let connects = carrier.clone();
    carrier.tasks.start("connect", move || connects.clone().stay_connected());
    let takes = carrier.clone();
    carrier.tasks.start("intake", move || take_messages(takes.clone(), intake.clone()));
    let keeps = carrier.clone();
    carrier.tasks.start("upkeep", move || keep_queues(keeps.clone()));
    PooledSender::new(context.clone(), BrokerTransport::new(context, carrier))
}
