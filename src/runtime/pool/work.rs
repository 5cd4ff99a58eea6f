//! How a stage does its jobs: one at a time, in batches, or on threads that may block.

use std::panic::resume_unwind;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_blocking};

/// What a stage does with its inputs.
pub(super) trait Work<In, Out, E>: Send + Sync + 'static {
    /// Maximum number of inputs at a time.
    fn most(&self) -> usize {
        1
    }

    /// Appends a result for each input, in their order. What goes on when the future is dropped stays
    /// in `leftover`, for the worker to wait for.
    fn run(
        &self,
        inputs: &mut Vec<In>,
        results: &mut Vec<Result<Out, E>>,
        leftover: &mut Option<JoinHandle<Result<Out, E>>>,
    ) -> impl Future<Output = ()> + Send;
}

/// One job at a time.
pub(super) struct Single<F>(pub(super) F);

impl<In, Out, E, F, Fut> Work<In, Out, E> for Single<F>
where
    In: Send + 'static,
    Out: Send + 'static,
    E: Send + 'static,
    F: Fn(In) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Out, E>> + Send + 'static,
{
    async fn run(
        &self,
        inputs: &mut Vec<In>,
        results: &mut Vec<Result<Out, E>>,
        _leftover: &mut Option<JoinHandle<Result<Out, E>>>,
    ) {
        while let Some(input) = inputs.pop() {
            results.push((self.0)(input).await);
        }
    }
}

/// What waits, up to a maximum.
pub(super) struct Batched<F> {
    pub(super) most: usize,
    pub(super) run: F,
}

impl<In, Out, E, F, Fut> Work<In, Out, E> for Batched<F>
where
    In: Send + 'static,
    Out: Send + 'static,
    E: Send + 'static,
    F: Fn(Vec<In>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<Result<Out, E>>> + Send + 'static,
{
    fn most(&self) -> usize {
        self.most
    }

    async fn run(
        &self,
        inputs: &mut Vec<In>,
        results: &mut Vec<Result<Out, E>>,
        _leftover: &mut Option<JoinHandle<Result<Out, E>>>,
    ) {
        results.append(&mut (self.run)(std::mem::take(inputs)).await);
    }
}

/// One job at a time, on a thread that may block.
pub(super) struct Blocking<F>(pub(super) Arc<F>);

impl<In, Out, E, F> Work<In, Out, E> for Blocking<F>
where
    In: Send + 'static,
    Out: Send + 'static,
    E: Send + 'static,
    F: Fn(In) -> Result<Out, E> + Send + Sync + 'static,
{
    async fn run(
        &self,
        inputs: &mut Vec<In>,
        results: &mut Vec<Result<Out, E>>,
        leftover: &mut Option<JoinHandle<Result<Out, E>>>,
    ) {
        while let Some(input) = inputs.pop() {
            let work = self.0.clone();
            let ended = leftover.insert(spawn_blocking(move || work(input))).await;
            *leftover = None;
            match ended {
                Ok(result) => results.push(result),
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The runtime is going, and this task with it.
                Err(_) => return,
            }
        }
    }
}
