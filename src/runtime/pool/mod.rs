//! Bounded workers in chained stages: each job goes through all of them, and has exactly one
//! outcome.
//!
//! Usable without actix and without a server; it needs a tokio runtime.
//!
//! ```text
//!  submit ─▶ queue ─▶ copy (100) ─▶ queue ─▶ record (10) ─▶ queue ─▶ remove (100) ─▶ Outcomes
//!                        │                      │                       │               ▲
//!                        └──── StageError ──────┴───────────────────────┴───────────────┘
//! ```
//!
//! ```
//! use odoshi::runtime::pool::{Cause, Pool};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let (pool, mut outcomes) = Pool::builder()
//!     .stage("parse", 4, |text: &'static str| async move { text.parse::<u32>() })
//!     .then("double", 2, |number| async move { Ok(number * 2) })
//!     .build();
//! for text in ["1", "two", "3"] {
//!     pool.submit(text).await.expect("the pool is open");
//! }
//! pool.close();
//! let (mut doubled, mut refused) = (Vec::new(), Vec::new());
//! while let Some(outcome) = outcomes.next().await {
//!     match outcome {
//!         Ok(number) => doubled.push(number),
//!         Err(error) => {
//!             assert!(matches!(error.cause, Cause::Failed(_)));
//!             refused.push((error.stage, error.item));
//!         }
//!     }
//! }
//! doubled.sort_unstable();
//! assert_eq!(doubled, [2, 6]);
//! assert_eq!(refused, [("parse", "two")]);
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Stages
//!
//! A stage is a name, a number of workers and a function. [`Builder::stage`] and [`Chain::then`] take
//! an async function, [`Chain::blocking`] a function that blocks, and [`Chain::batched`] one that does
//! many jobs at a time. The results of a stage are the jobs of the next. The queue before each stage
//! is bounded ([`Chain::queue`]), and so are the outcomes ([`Chain::outcomes`]): a slow stage, or a
//! reader that falls behind, slows down the callers of `submit`. [`Stage::set_concurrency`] changes the number
//! of workers at any time; a lower number waits for no job and interrupts none.
//!
//! Each worker is a spawned task that runs one job (or batch) after the other. Rejected: streams
//! (`buffered`, `buffer_unordered`). They poll their jobs only while the consumer polls them. Where the
//! consumer awaits what a job holds, such as an async mutex, neither goes on. Also rejected: a new task
//! for each job. It costs an allocation and a hop between threads for each, and what it isolates is
//! isolated as well by catching the panic in the worker.
//!
//! # Order
//!
//! Jobs of a stage run in the order in which they arrive, and end in any order. With
//! [`Chain::ordered_by`] those of equal keys run one after the other, and their results arrive at the
//! next stage in that order. For order from end to end ask for it at each stage with more than one
//! worker. A job that fails doesn't stop the later ones of its key. Jobs that wait for their key keep
//! their place in the stage's queue: a slow key with many jobs fills it, and delays all others. Keys
//! are compared by a hash of 64 bits; keys with the same hash are one key.
//!
//! Rejected: a fixed worker for each key, by `hash % workers`. A slow key would delay the other keys of
//! its worker even if the queue has room, and changing the concurrency would break the order.
//!
//! # What comes back
//!
//! [`Outcomes`] yields one `Result` for each job, in the order in which they end. A [`StageError`] says
//! at which stage the job ended and why, and gives back the *job*, as it was submitted. So jobs are
//! `Clone`: one clone stays with the job on its way. Put large jobs in an `Arc`. Rejected:
//!
//! - the stage's own input as the item: it is consumed by a stage that panics or is aborted, and the
//!   inputs of chained stages differ in type, which would make an enum for each pool;
//! - a boxed `dyn Any` alone: the caller that tries again wants the job, and would have to guess types.
//!
//! Where the stage hasn't begun, its input is given back as well ([`StageError::input`]), so that
//! what earlier stages made is not lost.
//!
//! # Ends
//!
//! | end | jobs that wait | jobs that run |
//! |---|---|---|
//! | [`Pool::drain`] | run | finish |
//! | [`Pool::stop`] | given back, if at no stage yet | finish, and go through the later stages |
//! | [`Pool::cancel`] | given back | get the token and the grace period; then aborted and given back |
//!
//! What `stop` and `cancel` give back is their answer, and doesn't go through [`Outcomes`]: the caller
//! may be its reader. Dropping the last [`Pool`] is a drain that nobody waits for. Dropping [`Outcomes`]
//! discards outcomes; jobs go on.
//!
//! # What costs an item
//!
//! A panic costs its item ([`Cause::Panicked`]); in a batch all its items. A job over its stage's
//! [`Chain::timeout`] is dropped at its next `await`. A job that never awaits, and one in
//! [`Chain::blocking`], can't be interrupted: the outcome is told in time, and the worker is busy until
//! the function returns.

mod builder;
mod core;
mod error;
mod handle;
mod metrics;
mod ordered;
mod queue;
mod stage;
#[cfg(test)]
mod tests;
mod work;

pub use builder::{Builder, Chain};
pub use error::{Cause, StageError, SubmitError};
pub use handle::{Outcomes, Pool, Stage};
pub use metrics::{PoolCollector, StageSnapshot};
