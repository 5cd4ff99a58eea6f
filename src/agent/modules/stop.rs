//! When and why a run is stopped before its end.

use tokio::sync::watch;
use tokio::time::Instant;

/// Why a run is stopped before its end.
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

/// When a run must stop: at its deadline, or when it is told to.
#[derive(Clone, Debug)]
pub struct Stop {
    told: watch::Receiver<Option<StopReason>>,
    deadline: Instant,
}

impl Stop {
    /// Stops at `deadline`, or when the sender gives a reason. A sender that is gone gives none.
    pub fn new(told: watch::Receiver<Option<StopReason>>, deadline: Instant) -> Self {
        Self { told, deadline }
    }

    /// The reason to stop now, if there is one.
    pub fn now(&self) -> Option<StopReason> {
        let told = *self.told.borrow();
        told.or_else(|| (Instant::now() >= self.deadline).then_some(StopReason::TimedOut))
    }

    /// Waits until it is time to stop.
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
