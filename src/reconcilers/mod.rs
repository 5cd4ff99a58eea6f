//! Background work. Each reconciler reads from the store what is missing and does it; none takes input. They work for the
//! actions that this node owns: ten nodes do the work of one, once. When a node dies, its actions get another owner, and
//! with it all of this.
//!
//! | reconciler | does |
//! |---|---|
//! | [`open_actions`] | reads the open actions, for all others and for the delay scheduler |
//! | [`complete`] | ends actions whose commands are all final |
//! | [`advance`] | moves `dispatched_through` on |
//! | [`expire`] | closes the commands of cancelled and of expired actions |
//! | [`overdue`] | gives up results that should have come |
//! | [`leaving_agents`] | closes the commands of removed agents |
//! | [`live_join`] | lets agents join live actions |
//! | [`retention`] | deletes what is kept no longer |

pub mod advance;
pub mod complete;
pub mod expire;
pub mod leaving_agents;
pub mod live_join;
pub mod open_actions;
pub mod overdue;
pub mod retention;
mod start;
mod support;

pub use start::Reconcilers;
