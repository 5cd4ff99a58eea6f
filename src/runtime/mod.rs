//! The generic machines. Each is written and tested once:
//!
//! - [`supervise`](mod@supervise) keeps an actor alive through panics, within a restart budget;
//! - [`Batcher`] turns many small writes into few transactions, over a [`Sink`];
//! - [`Reconciler`] reads what is missing from the store and does it, over a [`Reconcile`];
//! - [`Pool`] runs jobs through chained stages of bounded workers; it needs tokio and no actor.

mod backoffs;
pub mod batcher;
mod health;
pub mod isolation;
mod lifecycle;
mod own_thread;
pub mod pool;
pub mod reconciler;
pub mod supervise;

pub use backoffs::Backoffs;
pub use batcher::{Answers, Batcher, Interrupted, ItemRejected, Put, Sink, Writer};
pub use health::{ActorHealth, ActorReport, Supervision};
pub use lifecycle::{Drain, Wake, Waker};
pub use own_thread::OnOwnThread;
pub use pool::Pool;
pub use reconciler::{OnDrain, Pace, Reconcile, Reconciler, RoundFailed};
pub use supervise::Unstarted;
