//! The audit log.

use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::audit::{AuditEntry, AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::sql::audit::{self as statements, AuditRow};
use crate::store::sql::{sql, sql_limit};
use crate::store::{Audit, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};

#[async_trait]
impl Audit for PostgresStore {
    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        self.read(Caller::People, "audit_list", body!([] conn => list(conn, before, limit))).await
    }

    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write(Caller::Pipeline, "audit_purge", body!([] conn => purge(conn, before, limit))).await
    }
}

/// Inserts an entry, in the transaction of the change.
pub(super) async fn insert(
    conn: &mut AsyncPgConnection,
    by: &Author,
    event: AuditEvent<'_>,
    now: Timestamp,
) -> QueryResult<()> {
    statements::insert(by, event, now).execute(conn).await.map(|_| ())
}

async fn list(conn: &mut AsyncPgConnection, before: Option<i64>, limit: usize) -> QueryResult<Vec<AuditEntry>> {
    let rows: Vec<AuditRow> = statements::list(before, limit).load(conn).await?;
    rows.into_iter().map(AuditRow::entry).collect()
}

async fn purge(conn: &mut AsyncPgConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    sql("DELETE FROM audit WHERE no = ANY(ARRAY(SELECT no FROM audit WHERE at < ? ORDER BY at LIMIT ?))")
        .bind(before.0)
        .bind(sql_limit(limit))
        .execute(conn)
        .await
}
