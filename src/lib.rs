//! Odoshi, a durable dispatcher for fleets.

pub mod config;
pub mod domain;
pub mod pipeline;
pub mod store;
pub mod supervision;
pub mod senders;
