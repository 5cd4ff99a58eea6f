//! Tokens: their rows, and statements that are the same for both databases.

use super::schema::tokens;
use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::agent::{AgentRef, Role, Token};
use crate::domain::time::Timestamp;
use crate::store::Holder;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use uuid::Uuid;

/// A token.
#[derive(QueryableByName)]
#[diesel(table_name = tokens)]
pub(in crate::store) struct TokenRow {
    id: String,
    hash: Vec<u8>,
    role: String,
    name: String,
    agent_no: Option<i64>,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    enroll_nonce: Option<Vec<u8>>,
}

impl TokenRow {
    pub(in crate::store) fn new(token: &Token, hash: Vec<u8>) -> Self {
        Self {
            id: token.id.to_string(),
            hash,
            role: token.role.as_str().into(),
            name: token.name.clone(),
            agent_no: token.agent_no,
            created_at: token.created_at.0,
            expires_at: token.expires_at.map(|time| time.0),
            revoked_at: token.revoked_at.map(|time| time.0),
            enroll_nonce: None,
        }
    }

    /// The token of an agent that enrolls, perhaps under a nonce.
    pub(in crate::store) fn of_agent(
        no: i64,
        name: &str,
        hash: Vec<u8>,
        enroll_nonce: Option<Vec<u8>>,
        now: Timestamp,
    ) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            hash,
            role: Role::Agent.as_str().into(),
            name: name.into(),
            agent_no: Some(no),
            created_at: now.0,
            expires_at: None,
            revoked_at: None,
            enroll_nonce,
        }
    }

    pub(in crate::store) fn token(self) -> QueryResult<Token> {
        Ok(Token {
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            role: Role::from_name(&self.role).ok_or_else(|| corrupt(format!("an unknown role, {}", self.role)))?,
            name: self.name,
            agent_no: self.agent_no,
            created_at: Timestamp(self.created_at),
            expires_at: self.expires_at.map(Timestamp),
            revoked_at: self.revoked_at.map(Timestamp),
            is_unused: self.enroll_nonce.is_some(),
        })
    }
}

/// The columns of a [`TokenRow`].
const COLUMNS: &str = "id, hash, role, name, agent_no, created_at, expires_at, revoked_at, enroll_nonce";

/// Inserts a token.
pub(in crate::store) fn insert(row: TokenRow) -> Sql {
    sql(format!("INSERT INTO tokens ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"))
        .bind(row.id)
        .bind(row.hash)
        .bind(row.role)
        .bind(row.name)
        .bind(row.agent_no)
        .bind(row.created_at)
        .bind(row.expires_at)
        .bind(row.revoked_at)
        .bind(row.enroll_nonce)
}

/// The agent of a token, if it has one.
#[derive(QueryableByName)]
pub(in crate::store) struct HolderRow {
    #[diesel(sql_type = Nullable<BigInt>)]
    holder_no: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    holder_name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    transport: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    address: Option<String>,
    #[diesel(sql_type = Nullable<Bool>)]
    disabled: Option<bool>,
    #[diesel(sql_type = Nullable<Text>)]
    version: Option<String>,
}

impl HolderRow {
    pub(in crate::store) fn of(self, token: TokenRow) -> QueryResult<Holder> {
        let agent = self.holder_no.map(|no| AgentRef {
            no,
            name: self.holder_name.unwrap_or_default(),
            transport: self.transport.unwrap_or_default(),
            address: self.address,
            disabled: self.disabled.unwrap_or_default(),
            version: self.version.unwrap_or_default(),
        });
        Ok(Holder { token: token.token()?, agent })
    }
}

/// Selects the token with this hash, if it is valid, as [`TokenRow`] and [`HolderRow`].
pub(in crate::store) fn find(hash: Vec<u8>, now: Timestamp) -> Sql {
    // Each column by its name: a statement that is kept must not change with the table.
    sql("SELECT t.id, t.hash, t.role, t.name, t.agent_no, t.created_at, t.expires_at, t.revoked_at, t.enroll_nonce, a.no AS holder_no, a.name AS holder_name, a.transport, a.address, a.disabled, a.version \
         FROM tokens t LEFT JOIN agents a ON a.no = t.agent_no AND a.removed_at IS NULL \
         WHERE t.hash = ? AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > ?)")
    .bind(hash)
    .bind(now.0)
}

/// Marks a token as used, unless it is revoked.
pub(in crate::store) fn make_used(id: Uuid) -> Sql {
    sql("UPDATE tokens SET enroll_nonce = NULL WHERE id = ? AND revoked_at IS NULL").bind(id.to_string())
}

/// Selects all tokens except agents', newest first.
pub(in crate::store) fn list(after: Option<Uuid>, limit: usize) -> Sql {
    // Ids are UUIDs of version 7: their order is the order of their making.
    sql(format!("SELECT {COLUMNS} FROM tokens WHERE agent_no IS NULL AND id < ? ORDER BY id DESC LIMIT ?"))
        .bind(after.map_or_else(|| "g".to_owned(), |after| after.to_string()))
        .bind(sql_limit(limit))
}

/// Selects the admins' tokens that are not revoked. `lock` is what PostgreSQL adds to lock them.
pub(in crate::store) fn admins(lock: &'static str) -> Sql {
    sql(format!("SELECT {COLUMNS} FROM tokens WHERE role = ? AND revoked_at IS NULL ORDER BY id{lock}"))
        .bind(Role::Admin.as_str())
}

/// Whether a token is the last valid one among these admins'.
pub(in crate::store) fn is_last_admin(admins: Vec<TokenRow>, id: Uuid, now: Timestamp) -> QueryResult<bool> {
    let admins = admins.into_iter().map(TokenRow::token).collect::<QueryResult<Vec<_>>>()?;
    Ok(admins.iter().any(|token| token.id == id && token.is_last_admin(&admins, now)))
}

/// Revokes a token, unless it is revoked.
pub(in crate::store) fn revoke(id: Uuid, now: Timestamp) -> Sql {
    sql("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL").bind(now.0).bind(id.to_string())
}

/// Revokes the tokens of an agent.
pub(in crate::store) fn revoke_of_agent(agent_no: i64, now: Timestamp) -> Sql {
    sql("UPDATE tokens SET revoked_at = ? WHERE agent_no = ? AND revoked_at IS NULL").bind(now.0).bind(agent_no)
}

/// Revokes the token of an agent that was made under this nonce and never used.
pub(in crate::store) fn revoke_unused(agent_no: i64, nonce_hash: &[u8], now: Timestamp) -> Sql {
    sql("UPDATE tokens SET revoked_at = ? WHERE agent_no = ? AND enroll_nonce = ? AND revoked_at IS NULL")
        .bind(now.0)
        .bind(agent_no)
        .bind(nonce_hash.to_vec())
}

/// Selects a row if there is a token with this id.
pub(in crate::store) fn exists(id: Uuid) -> Sql {
    sql("SELECT CAST(1 AS BIGINT) AS key FROM tokens WHERE id = ?").bind(id.to_string())
}

/// Selects a row if there was ever an admin's token.
pub(in crate::store) fn any_admin() -> Sql {
    sql("SELECT CAST(1 AS BIGINT) AS key FROM tokens WHERE role = ? LIMIT 1").bind(Role::Admin.as_str())
}

/// Deletes tokens that were revoked before a time, but for those of admins.
pub(in crate::store) fn purge_revoked(before: Timestamp, limit: usize) -> Sql {
    sql("DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE revoked_at < ? AND role <> 'admin' ORDER BY revoked_at LIMIT ?)")
        .bind(before.0)
        .bind(sql_limit(limit))
}

/// Deletes tokens that expired before a time. Those of admins stay: that there was one is what keeps a server from making
/// another.
pub(in crate::store) fn purge_expired(before: Timestamp, limit: usize) -> Sql {
    sql("DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE expires_at < ? AND role <> 'admin' ORDER BY expires_at LIMIT ?)")
        .bind(before.0)
        .bind(sql_limit(limit))
}
