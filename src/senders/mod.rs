//! Senders: each delivers commands over one transport.
//!
//! A sender is an actor that handles three messages. [`Deliver`]: take these commands over, deliver
//! each to its agent, and record the result with the [`SenderContext`]: [`Event::Result`],
//! [`Event::Sent`], [`Event::AttemptFailed`] or [`Event::Hold`]. [`Cancelled`]: users cancelled
//! these actions; tell agents that still run them, if the transport can. [`Drain`]: finish what is
//! in flight, then answer.
//!
//! To add one, write the actor and register it for its transport:
//! `Odoshi::builder(config).sender("slack", |context| SlackSender::new(context))`. Agents with that
//! transport get their commands from it. `examples/custom_sender.rs` is a complete sender.
//!
//! [`Event::Result`]: crate::domain::command::Event::Result
//! [`Event::Sent`]: crate::domain::command::Event::Sent
//! [`Event::AttemptFailed`]: crate::domain::command::Event::AttemptFailed
//! [`Event::Hold`]: crate::domain::command::Event::Hold

mod contract;
pub mod stream;

pub use crate::runtime::Drain;
pub use crate::signals::Cancelled;
pub use contract::{Deliver, Delivery, Recorder, SenderContext, hold_report, report, report_of, run_end};
