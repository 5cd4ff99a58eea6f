//! The audit log.

use super::store::SqliteStore;
use crate::domain::audit::{AuditEntry, AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::sql::audit::{self as statements, AuditRow};
use crate::store::sql::{sql, sql_limit};
use crate::store::{Audit, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;

#[async_trait]
impl Audit for SqliteStore {
    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        self.read("audit_list", move |conn| list(conn, before, limit)).await
    }

    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("audit_purge", move |conn| purge(conn, before, limit)).await
    }
}

/// Inserts an entry, in the transaction of the change.
pub(super) fn insert(
    conn: &mut SqliteConnection,
    by: &Author,
    event: AuditEvent<'_>,
    now: Timestamp,
) -> QueryResult<()> {
    statements::insert(by, event, now).execute(conn).map(|_| ())
}

fn list(conn: &mut SqliteConnection, before: Option<i64>, limit: usize) -> QueryResult<Vec<AuditEntry>> {
    let rows: Vec<AuditRow> = statements::list(before, limit).load(conn)?;
    rows.into_iter().map(AuditRow::entry).collect()
}

fn purge(conn: &mut SqliteConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    sql("DELETE FROM audit WHERE no IN (SELECT no FROM audit WHERE at < ? ORDER BY at LIMIT ?)")
        .bind(before.0)
        .bind(sql_limit(limit))
        .execute(conn)
}
