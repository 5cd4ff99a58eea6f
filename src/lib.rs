//! Odoshi, a durable dispatcher for fleets.
//!
//! An operator describes an *action*: what to do, which agents, when. Odoshi finds the agents,
//! writes one *command* per agent, delivers each when it is due, collects the results, and counts
//! exactly. `docs/ARCHITECTURE.md` describes the design, `node/wiring.rs` draws how the actors are
//! wired, and [`senders`] says how to add your own transport.

#![cfg_attr(
    not(all(feature = "webhook", feature = "nats", feature = "amqp", feature = "smtp")),
    allow(
        dead_code,
        unused_mut,
        unused_variables,
        irrefutable_let_patterns,
        clippy::large_enum_variant,
        reason = "what the transports share is not all used by a build with fewer of them"
    )
)]

pub mod agent;
#[cfg(feature = "amqp")]
mod amqp_client;
pub mod cli;
pub mod config;
pub mod context;
pub mod domain;
pub mod error_chain;
pub mod http;
pub mod metrics;
#[cfg(feature = "nats")]
mod nats_client;
pub mod node;
mod os_signals;
pub mod pipeline;
pub mod reconcilers;
pub mod runtime;
pub mod senders;
pub mod service;
pub mod signals;
pub mod store;
pub mod testing;
mod text_file;
mod tls;
mod unreached;
pub mod zone_data;

pub use node::Odoshi;
