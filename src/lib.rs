//! Odoshi, a durable dispatcher for fleets.
//!
//! An operator describes an *action*: what to do, which agents, when. Odoshi finds the agents, writes one *command* per
//! agent, hands each to its agent when it is due, collects the results, and counts exactly. `docs/ARCHITECTURE.md` is the
//! map; [`app`] draws how the actors are wired; [`senders`] says how to add a transport of your own.

pub mod agent;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod http;
pub mod metrics;
pub mod pipeline;
pub mod senders;
mod signals;
pub mod store;
pub mod supervision;
mod tls;

pub use app::Odoshi;
