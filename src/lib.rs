//! Odoshi, a durable dispatcher for fleets.

pub mod agent;
pub mod domain;
