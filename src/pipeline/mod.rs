//! The way of an action, from the door to the agents and back: one file per actor, in the order in which data flows.
//! [`messages`] lists what they say to each other; `app.rs` draws how they are wired.

pub mod action_book;
pub mod batcher;
pub mod command_store;
pub mod delay_scheduler;
pub mod hints;
pub mod housekeeper;
pub mod isolation;
pub mod membership;
pub mod messages;
pub mod notifier;
pub mod outcomes;
pub mod presence;
pub mod resolver;
pub mod sender_router;
pub mod spool;
pub mod spool_loader;
pub mod waiters;
