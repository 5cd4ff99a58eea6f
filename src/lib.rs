//! Odoshi, a durable dispatcher for fleets.

pub mod domain;
