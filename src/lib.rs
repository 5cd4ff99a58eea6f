//! Odoshi, a durable dispatcher for fleets.

pub mod agent;
pub mod config;
pub mod domain;
pub mod pipeline;
pub mod senders;
pub mod store;
pub mod supervision;
