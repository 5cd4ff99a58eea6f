//! The audit log.

use super::super::rows::{AuditRow, sql_limit};
use crate::domain::audit::{AuditEntry, AuditEvent, Author};
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text};

pub(super) fn insert(
    conn: &mut SqliteConnection,
    by: &Author,
    event: AuditEvent<'_>,
    now: Timestamp,
) -> QueryResult<()> {
    sql_query("INSERT INTO audit (at, token_id, name, role, did, subject, detail) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind::<BigInt, _>(now.0)
        .bind::<Nullable<Text>, _>(by.token.map(|token| token.to_string()))
        .bind::<Text, _>(&by.name)
        .bind::<Text, _>(by.role)
        .bind::<Text, _>(event.did)
        .bind::<Text, _>(event.subject)
        .bind::<Text, _>(event.detail)
        .execute(conn)
        .map(|_| ())
}

pub(super) fn list(conn: &mut SqliteConnection, before: Option<i64>, limit: usize) -> QueryResult<Vec<AuditEntry>> {
    let rows = sql_query(
        "SELECT no, at, token_id, name, role, did, subject, detail FROM audit WHERE no < ? ORDER BY no DESC LIMIT ?",
    )
    .bind::<BigInt, _>(before.unwrap_or(i64::MAX))
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<AuditRow>(conn)?;
    rows.into_iter().map(AuditRow::entry).collect()
}

pub(super) fn purge(conn: &mut SqliteConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    sql_query("DELETE FROM audit WHERE no IN (SELECT no FROM audit WHERE at < ? ORDER BY at LIMIT ?)")
        .bind::<BigInt, _>(before.0)
        .bind::<BigInt, _>(sql_limit(limit))
        .execute(conn)
}
