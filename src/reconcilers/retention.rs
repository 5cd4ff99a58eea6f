//! Deletes what is older than its retention, in batches small enough not to hold up other work.

use crate::context::Node;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::store::StoreResult;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of rows deleted in one transaction.
const ROWS_AT_A_TIME: usize = 2_000;
/// How often to look for rows without their action, which earlier versions could leave behind.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum number of actions checked in one transaction of that sweep.
const SWEPT_AT_A_TIME: usize = 200;
/// The pause between two transactions.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub struct Retention {
    node: Arc<Node>,
    swept: Option<Instant>,
}

impl Retention {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, swept: None }
    }

    /// Deletes audit log entries older than `retention.audit`.
    async fn purge_audit(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.audit.0);
        while store.audit_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Finds rows without their action. They are then deleted with the purged actions.
    async fn sweep(&mut self) -> StoreResult<()> {
        if self.swept.is_some_and(|last| last.elapsed() < SWEEP_INTERVAL) {
            return Ok(());
        }
        let mut after = 0;
        while let Some(last) = self.node.store.action_sweep(after, SWEPT_AT_A_TIME).await? {
            after = last;
            tokio::time::sleep(PAUSE).await;
        }
        self.swept = Some(Instant::now());
        Ok(())
    }

    /// Deletes actions that ended longer ago than `retention.actions`.
    async fn purge_actions(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.actions.0);
        let mut rows = 0;
        while let Some(deleted) = store.action_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? {
            rows += deleted;
            tokio::time::sleep(PAUSE).await;
        }
        if rows > 0 {
            log::info!(rows; "actions that are kept no longer are deleted");
        }
        Ok(())
    }
}

impl Reconcile for Retention {
    const NAME: &'static str = "retention";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        self.purge_audit().await?;
        self.sweep().await?;
        self.purge_actions().await?;
        Ok(Pace::Wait)
    }
}
