//! The audit log: its rows, and statements that are the same for both databases.

use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::audit::{AuditAuthor, AuditEntry, AuditEvent, Author};
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use serde_json::value::RawValue;
use uuid::Uuid;

/// An entry of the audit log.
#[derive(QueryableByName)]
pub(in crate::store) struct AuditRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = Nullable<Text>)]
    token_id: Option<String>,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    did: String,
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = Text)]
    detail: String,
    #[diesel(sql_type = Nullable<Text>)]
    address: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    target: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    operations: Option<String>,
}

impl AuditRow {
    pub(in crate::store) fn entry(self) -> QueryResult<AuditEntry> {
        let Self { no, at, token_id, name, role, did, subject, detail, address, target, operations } = self;
        let token = token_id.as_deref().map(Uuid::parse_str).transpose().map_err(corrupt)?;
        let by = AuditAuthor { name, role, token, address };
        let operations = operations.map(RawValue::from_string).transpose().map_err(corrupt)?;
        Ok(AuditEntry { no, at: Timestamp(at), by, did, subject, detail, target, operations })
    }
}

/// Inserts an entry.
pub(in crate::store) fn insert(by: &Author, event: AuditEvent<'_>, now: Timestamp) -> Sql {
    sql("INSERT INTO audit (at, token_id, name, role, did, subject, detail, address, target, operations) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
    .bind(now.0)
    .bind(by.token.map(|token| token.to_string()))
    .bind(by.name.as_str())
    .bind(by.role)
    .bind(event.did)
    .bind(event.subject)
    .bind(event.detail)
    .bind(by.address.clone())
    .bind(event.what.map(|(target, _)| target.to_owned()))
    .bind(event.operations())
}

/// Selects entries, newest first.
pub(in crate::store) fn list(before: Option<i64>, limit: usize) -> Sql {
    sql("SELECT no, at, token_id, name, role, did, subject, detail, address, target, operations FROM audit \
         WHERE no < ? ORDER BY no DESC LIMIT ?")
    .bind(before.unwrap_or(i64::MAX))
    .bind(sql_limit(limit))
}
