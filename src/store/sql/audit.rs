//! The audit log: its rows.

use super::values::corrupt;
use crate::domain::audit::AuditEntry;
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
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
}

impl AuditRow {
    pub(in crate::store) fn entry(self) -> QueryResult<AuditEntry> {
        let Self { no, at, token_id, name, role, did, subject, detail } = self;
        let token = token_id.as_deref().map(Uuid::parse_str).transpose().map_err(corrupt)?;
        Ok(AuditEntry { no, at: Timestamp(at), token, name, role, did, subject, detail })
    }
}
