//! Tokens: their rows.

use super::schema::tokens;
use super::values::corrupt;
use crate::domain::agent::{Role, Token};
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use uuid::Uuid;

/// A token.
#[derive(Queryable, Insertable, QueryableByName)]
#[diesel(table_name = tokens)]
pub(in crate::store) struct TokenRow {
    pub(in crate::store) id: String,
    pub(in crate::store) hash: Vec<u8>,
    pub(in crate::store) role: String,
    pub(in crate::store) name: String,
    pub(in crate::store) agent_no: Option<i64>,
    pub(in crate::store) created_at: i64,
    pub(in crate::store) expires_at: Option<i64>,
    pub(in crate::store) revoked_at: Option<i64>,
    pub(in crate::store) enroll_nonce: Option<Vec<u8>>,
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
