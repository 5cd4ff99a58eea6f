//! Odoshi's own senders, as far as `sender.enabled` names them.

use super::error::AppError;
use super::registration::Registration;
use crate::config::Config;
use crate::domain::agent::STREAM;
#[cfg(any(feature = "webhook", feature = "smtp"))]
use crate::senders::pooled::PooledSender;

/// Whether the transports' settings can be used, as far as that is known without their files.
///
/// # Errors
/// If a transport is unknown, or a setting of an enabled one can't be used.
pub(super) fn check(config: &Config) -> Result<(), AppError> {
    config.check_senders(&[])?;
    for name in &config.sender.enabled {
        match name.as_str() {
            #[cfg(feature = "smtp")]
            "smtp" => crate::senders::smtp::Mailer::check(&config.sender.smtp).map_err(AppError::Sender)?,
            #[cfg(feature = "nats")]
            "nats" => crate::senders::nats::check(&config.sender.nats).map_err(AppError::Sender)?,
            #[cfg(feature = "amqp")]
            "amqp" => crate::senders::amqp::check(&config.sender.amqp).map_err(AppError::Sender)?,
            _ => {}
        }
    }
    Ok(())
}

/// The senders of the enabled transports, except for streams, which are always wired.
///
/// # Errors
/// If a transport is unknown, or its files or its TLS can't be used. `registered` are the names of
/// the senders that are added to this process.
pub(super) fn open(config: &Config, registered: &[&str]) -> Result<Vec<Registration>, AppError> {
    config.check_senders(registered)?;
    let mut senders = Vec::new();
    for name in config.sender.enabled.iter().filter(|name| !registered.contains(&name.as_str())) {
        match name.as_str() {
            STREAM => {}
            #[cfg(feature = "webhook")]
            "webhook" => {
                use crate::senders::webhook::{Webhook, client};
                let client = client(&config.sender.webhook).map_err(AppError::Sender)?;
                senders.push(Registration::new("webhook", move |context| {
                    PooledSender::new(context.clone(), Webhook::new(context, client))
                }));
            }
            #[cfg(feature = "smtp")]
            "smtp" => {
                use crate::senders::smtp::{Mailer, Smtp};
                let mailer = Mailer::open(&config.sender.smtp).map_err(AppError::Sender)?;
                senders.push(Registration::new("smtp", move |context| PooledSender::new(context, Smtp::new(mailer))));
            }
            #[cfg(feature = "nats")]
            "nats" => {
                use crate::senders::nats;
                let access = nats::access(&config.sender.nats).map_err(AppError::Sender)?;
                senders.push(Registration::new(nats::NATS, move |context| nats::sender(context, access)));
            }
            #[cfg(feature = "amqp")]
            "amqp" => {
                use crate::senders::amqp;
                let access = amqp::access(&config.sender.amqp).map_err(AppError::Sender)?;
                senders.push(Registration::new(amqp::AMQP, move |context| amqp::sender(context, access)));
            }
            _ => {}
        }
    }
    Ok(senders)
}
