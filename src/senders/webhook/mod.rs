//! Webhooks: HTTP requests to agents that are web services, signed by Standard Webhooks.

mod answer;
mod client;
mod guard;
mod sign;
#[cfg(test)]
mod tests;

pub(crate) use client::{Answer, ClientSettings, PostError, PostErrorKind, WebhookClient};
pub(crate) use sign::{InvalidSecret, SigningKeys, message_id};
