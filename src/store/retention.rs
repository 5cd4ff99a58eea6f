//! Deleting actions, agents and tokens that are kept no longer, in small batches.

use super::error::StoreResult;
use crate::domain::time::Timestamp;
use async_trait::async_trait;

/// Retention of actions and identities. The same on both databases.
#[async_trait]
pub trait Retention {
    /// Deletes up to `limit` rows of one action that ended before `ended_before`. Returns how many
    /// were deleted, or `None` when no action is left to delete.
    ///
    /// The first call for an action hides it: no other method finds it any more. Call again until
    /// `None`.
    async fn action_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<Option<usize>>;

    /// Marks rows whose action no longer exists for deletion by [`Retention::action_purge`].
    ///
    /// Examines up to `limit` actions after the key `after`. Returns the last key it examined, or
    /// `None` when there was nothing to examine.
    async fn action_sweep(&self, after: i64, limit: usize) -> StoreResult<Option<i64>>;

    /// Deletes up to `limit` tokens that were revoked or expired before a time, and as many agents
    /// that were removed before it. Returns how many were deleted in all.
    ///
    /// A removed agent stays as long as there is an action from its time, whose commands name it.
    async fn identity_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize>;
}
