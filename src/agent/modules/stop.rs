//! When and why a run is stopped early.

use tokio::sync::watch;
use tokio::time::Instant;

/// Why a run is stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its timeout has passed.
    TimedOut,
    /// Its action was cancelled.
    Cancelled,
    /// A later run of the same command arrived.
    Superseded,
    /// The agent is stopping.
    Interrupted,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "timed out",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Interrupted => "interrupted",
        })
    }
}

/// Tells a run when to stop: at its deadline, or for another reason.
#[derive(Clone, Debug)]
pub struct Stop {
    told: watch::Receiver<Option<StopReason>>,
    deadline: Instant,
}

impl Stop {
    /// Stops at `deadline`, or when the sender gives a reason. A dropped sender gives none.
    pub fn new(told: watch::Receiver<Option<StopReason>>, deadline: Instant) -> Self {
        Self { told, deadline }
    }

    /// The reason to stop now, if there is one.
    pub fn now(&self) -> Option<StopReason> {
        let told = *self.told.borrow();
        told.or_else(|| (Instant::now() >= self.deadline).then_some(StopReason::TimedOut))
    }

    /// Waits until it is time to stop, and returns the reason.
    pub async fn wait(&mut self) -> StopReason {
        tokio::select! {
            reason = async {
                match self.told.wait_for(Option::is_some).await.map(|reason| *reason) {
                    Ok(Some(reason)) => reason,
                    _ => std::future::pending().await,
                }
            } => reason,
            () = tokio::time::sleep_until(self.deadline) => StopReason::TimedOut,
        }
    }
}
