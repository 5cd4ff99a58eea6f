//! The audit log.

use super::sql::sql;
use crate::domain::audit::{AuditEntry, AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::rows::{AuditRow, sql_limit};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};

pub(super) async fn insert(
    conn: &mut AsyncPgConnection,
    by: &Author,
    event: AuditEvent<'_>,
    now: Timestamp,
) -> QueryResult<()> {
    sql("INSERT INTO audit (at, token_id, name, role, did, subject, detail) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(now.0)
        .bind(by.token.map(|token| token.to_string()))
        .bind(by.name.as_str())
        .bind(by.role)
        .bind(event.did)
        .bind(event.subject)
        .bind(event.detail)
        .execute(conn)
        .await
        .map(|_| ())
}

pub(super) async fn list(
    conn: &mut AsyncPgConnection,
    before: Option<i64>,
    limit: usize,
) -> QueryResult<Vec<AuditEntry>> {
    let rows: Vec<AuditRow> = sql(
        "SELECT no, at, token_id, name, role, did, subject, detail FROM audit WHERE no < ? ORDER BY no DESC LIMIT ?",
    )
    .bind(before.unwrap_or(i64::MAX))
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    rows.into_iter().map(AuditRow::entry).collect()
}

pub(super) async fn purge(conn: &mut AsyncPgConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    sql("DELETE FROM audit WHERE no = ANY(ARRAY(SELECT no FROM audit WHERE at < ? ORDER BY at LIMIT ?))")
        .bind(before.0)
        .bind(sql_limit(limit))
        .execute(conn)
        .await
}
