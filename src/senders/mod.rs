//! Senders: each delivers commands over one transport.
//!
//! A sender is an actor that handles three messages. [`Deliver`]: take these commands over, deliver
//! each to its agent, and record the [`Outcome`] of each with the [`SenderContext`]; the answer
//! lists those that it doesn't take now. [`Cancelled`]: users cancelled these actions; tell agents
//! that still run them, if the transport can. [`Drain`]: finish what is in flight, then answer.
//!
//! Most senders make one call per command. They implement [`pooled::Transport`], and
//! [`pooled::PooledSender`] is the actor: it brings queues, bounded workers, timeouts, a circuit
//! breaker per host, and recording.
//!
//! To add a sender, register it for its transport:
//! `Odoshi::builder(config).sender("slack", |context| PooledSender::new(context, Slack))`. Agents
//! with that transport get their commands from it. `examples/custom_sender.rs` is a complete sender.

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(any(feature = "nats", feature = "amqp"))]
pub(crate) mod broker;
mod contract;
mod due_command;
mod hooks;
#[cfg(feature = "nats")]
pub mod nats;
pub mod pooled;
#[cfg(any(feature = "webhook", feature = "smtp"))]
mod run_id;
#[cfg(feature = "smtp")]
pub mod smtp;
pub mod stream;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use crate::runtime::Drain;
pub use crate::signals::Cancelled;
pub use contract::{Deferred, Deliver, Delivery, Outcome, Recorder, SenderContext};
pub use due_command::{DueCommand, hold_report, report_of};
pub use hooks::{HookClient, HookFailure, HookSet, HookTarget};
