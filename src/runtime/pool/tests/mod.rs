mod ends;
mod metrics;
mod order;
mod outcomes;
mod property;
mod stages;

use super::{Outcomes, StageError};
use std::time::Duration;
use tokio::time::timeout;

/// A safety net, far above what a slow and busy machine takes.
const PATIENCE: Duration = Duration::from_secs(120);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("a safety net: something waits for ever")
}

/// What is left to read.
async fn rest<Job, Out, E>(outcomes: &mut Outcomes<Job, Out, E>) -> Vec<Result<Out, StageError<Job, E>>> {
    let mut all = Vec::new();
    while let Some(outcome) = in_time(outcomes.next()).await {
        all.push(outcome);
    }
    all
}
