//! The generic actors. Each is written and tested once:
//!
//! - [`supervise`](mod@supervise) keeps an actor alive through panics, within a restart budget;
//! - [`Batcher`] turns many small writes into few transactions, over a [`Sink`];
//! - [`Reconciler`] reads what is missing from the store and does it, over a [`Reconcile`].

pub mod batcher;
mod health;
pub mod isolation;
mod lifecycle;
pub mod reconciler;
pub mod supervise;

pub use batcher::{Answers, Batcher, Interrupted, ItemRejected, Put, Sink, Writer};
pub use health::{ActorHealth, ActorReport, Supervision};
pub use lifecycle::{Drain, Wake, Waker};
pub use reconciler::{OnDrain, Pace, Reconcile, Reconciler, RoundFailed};
pub use supervise::Unstarted;
