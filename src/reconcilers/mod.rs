//! Background work. Each reconciler reads from the store what is missing and does it; none takes
//! input. They work for the actions that this node owns, so ten nodes together do the work once.
//! When a node dies, its actions get another owner, whose reconcilers take over.
//!
//! | reconciler | does |
//! |---|---|
//! | [`open_actions`] | reads the open actions, for all others and for the delay scheduler |
//! | [`backlogs`] | tells sessions of commands that wait for their agents |
//! | [`complete`] | ends actions whose commands are all final |
//! | [`advance`] | advances `dispatched_through` |
//! | [`expire`] | closes the commands of cancelled and of expired actions |
//! | [`overdue`] | gives up overdue results |
//! | [`leaving_agents`] | closes the commands of removed agents |
//! | [`live_join`] | lets agents that have changed join live actions |
//! | [`live_sweep`] | looks through the fleet for others that may join |
//! | [`fleet_counts`] | counts the agents, for the metrics |
//! | [`recur`] | makes the occurrences of schedules, of all nodes' together |
//! | [`hooks`] | sends events to hooks |
//! | [`watching`] | tells other nodes whether somebody watches metadata at this one |
//! | [`retention`] | deletes what is older than its retention |

pub mod advance;
pub mod backlogs;
pub mod complete;
pub mod expire;
pub mod fleet_counts;
pub mod hooks;
pub mod leaving_agents;
pub mod live_join;
pub mod live_sweep;
pub mod open_actions;
pub mod overdue;
pub mod recur;
pub mod retention;
mod start;
mod support;
pub mod watching;

pub use start::Reconcilers;
