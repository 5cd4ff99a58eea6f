//! The audit log.

use super::store::SqliteStore;
use crate::domain::audit::{AuditEntry, Author, Deed};
use crate::domain::time::Timestamp;
use crate::store::sql::audit::AuditRow;
use crate::store::sql::sql_limit;
use crate::store::{Audit, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text};

#[async_trait]
impl Audit for SqliteStore {
    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        self.read("audit_list", move |conn| list(conn, before, limit)).await
    }

    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("audit_purge", move |conn| purge(conn, before, limit)).await
    }
}

pub(super) fn insert(conn: &mut SqliteConnection, by: &Author, deed: Deed<'_>, now: Timestamp) -> QueryResult<()> {
    sql_query("INSERT INTO audit (at, token_id, name, role, did, subject, detail) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind::<BigInt, _>(now.0)
        .bind::<Nullable<Text>, _>(by.token.map(|token| token.to_string()))
        .bind::<Text, _>(&by.name)
        .bind::<Text, _>(by.role)
        .bind::<Text, _>(deed.did)
        .bind::<Text, _>(deed.subject)
        .bind::<Text, _>(deed.detail)
        .execute(conn)
        .map(|_| ())
}

fn list(conn: &mut SqliteConnection, before: Option<i64>, limit: usize) -> QueryResult<Vec<AuditEntry>> {
    let rows = sql_query(
        "SELECT no, at, token_id, name, role, did, subject, detail FROM audit WHERE no < ? ORDER BY no DESC LIMIT ?",
    )
    .bind::<BigInt, _>(before.unwrap_or(i64::MAX))
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<AuditRow>(conn)?;
    rows.into_iter().map(AuditRow::entry).collect()
}

fn purge(conn: &mut SqliteConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    sql_query("DELETE FROM audit WHERE no IN (SELECT no FROM audit WHERE at < ? ORDER BY at LIMIT ?)")
        .bind::<BigInt, _>(before.0)
        .bind::<BigInt, _>(sql_limit(limit))
        .execute(conn)
}
