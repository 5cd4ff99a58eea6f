//! Senders: each delivers commands by one transport.
//!
//! A sender is an actor that handles three messages. [`Deliver`]: take these commands over, deliver each to its agent, and
//! record what becomes of them with the [`SenderContext`]: [`Event::Result`], [`Event::Sent`], [`Event::AttemptFailed`] or
//! [`Event::Hold`]. [`Cancelled`]: users cancelled these actions; agents that still run them should hear of it, where the
//! transport can say so. [`Drain`]: finish what is in flight, and answer then.
//!
//! To add one, write the actor and register it by the transport that it serves:
//! `Odoshi::builder(config).sender("slack", |context| SlackSender::new(context))`. Agents with that transport get their
//! commands from it. `examples/custom_sender.rs` is a whole one.
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
