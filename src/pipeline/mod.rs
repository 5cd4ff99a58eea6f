//! The actors that an action flows through, from its source to its agents and back: one file per
//! actor, in the order in which data flows. `node/wiring.rs` draws how they are wired.

pub mod command_store;
pub mod delay_scheduler;
mod messages;
pub mod metadata;
pub mod outcomes;
pub mod resolver;
pub mod sender_router;
pub mod spool;
pub mod spool_loader;

pub use messages::{Committed, Dispatch, NewPage};
