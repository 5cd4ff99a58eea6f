//! Webhooks: HTTP requests to agents that are web services, signed by Standard Webhooks.
//!
//! The client doesn't know commands, so that others can use it to call addresses that users chose.

mod answer;
mod client;
mod guard;
mod hook;
mod sign;
#[cfg(test)]
mod tests;
mod transport;

pub(crate) use hook::WebhookHooks;
pub(crate) use transport::{Webhook, check_url, client};
