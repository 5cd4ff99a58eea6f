//! Webhooks: HTTP requests to agents that are web services, signed by Standard Webhooks.
//!
//! The client doesn't know commands, so that others can use it to call addresses that users chose.

mod answer;
mod client;
mod guard;
mod sign;
#[cfg(test)]
mod tests;
mod transport;

#[allow(unused_imports, reason = "for hooks, which call addresses that users chose as well")]
pub(crate) use client::{Answer, ClientSettings, PostError, PostErrorKind, WebhookClient};
#[allow(unused_imports, reason = "for hooks, which are signed in the same way")]
pub(crate) use sign::{InvalidSecret, SigningKeys, message_id};
pub(crate) use transport::{Webhook, client};
