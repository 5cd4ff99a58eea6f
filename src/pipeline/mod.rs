//! The way of an action, from the door to the agents.

pub mod spool;
