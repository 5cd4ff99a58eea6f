//! The audit log. Methods of the other aggregates write its entries, each in the transaction of the
//! change.

use super::error::StoreResult;
use crate::domain::audit::AuditEntry;
use crate::domain::time::Timestamp;
use async_trait::async_trait;

/// The audit log. The same on both databases.
#[async_trait]
pub trait Audit {
    /// Lists entries, newest first. `before` continues a listing: only entries with a smaller
    /// number are returned.
    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>>;

    /// Deletes up to `limit` entries that are older than `before`. Returns how many were deleted.
    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize>;
}
