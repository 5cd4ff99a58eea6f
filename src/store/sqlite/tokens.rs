//! Tokens.

use super::corrupt;
use super::schema::tokens::{self, dsl};
use crate::domain::agent::{Role, Token};
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use uuid::Uuid;

#[derive(Queryable, Insertable)]
#[diesel(table_name = tokens)]
struct Row {
    id: String,
    hash: Vec<u8>,
    role: String,
    name: String,
    agent_no: Option<i64>,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl Row {
    fn token(self) -> QueryResult<Token> {
        Ok(Token {
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            role: Role::from_name(&self.role).ok_or_else(|| corrupt(format!("an unknown role, {}", self.role)))?,
            name: self.name,
            agent_no: self.agent_no,
            created_at: Timestamp(self.created_at),
            expires_at: self.expires_at.map(Timestamp),
            revoked_at: self.revoked_at.map(Timestamp),
        })
    }
}

pub(super) fn insert(conn: &mut SqliteConnection, token: &Token, hash: Vec<u8>) -> QueryResult<()> {
    let row = Row {
        id: token.id.to_string(),
        hash,
        role: token.role.as_str().into(),
        name: token.name.clone(),
        agent_no: token.agent_no,
        created_at: token.created_at.0,
        expires_at: token.expires_at.map(|time| time.0),
        revoked_at: token.revoked_at.map(|time| time.0),
    };
    diesel::insert_into(dsl::tokens).values(row).execute(conn).map(|_| ())
}

pub(super) fn find(conn: &mut SqliteConnection, hash: &[u8], now: Timestamp) -> QueryResult<Option<Token>> {
    dsl::tokens
        .filter(dsl::hash.eq(hash))
        .filter(dsl::revoked_at.is_null())
        .filter(dsl::expires_at.is_null().or(dsl::expires_at.assume_not_null().gt(now.0)))
        .first::<Row>(conn)
        .optional()?
        .map(Row::token)
        .transpose()
}

pub(super) fn list(conn: &mut SqliteConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    // Ids are UUIDs of version 7: their order is the order of their making.
    let mut query = dsl::tokens
        .filter(dsl::agent_no.is_null())
        .order(dsl::id.desc())
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .into_boxed();
    if let Some(after) = after {
        query = query.filter(dsl::id.lt(after.to_string()));
    }
    query.load::<Row>(conn)?.into_iter().map(Row::token).collect()
}

pub(super) fn revoke(conn: &mut SqliteConnection, id: Uuid, now: Timestamp) -> QueryResult<bool> {
    let known = dsl::tokens.filter(dsl::id.eq(id.to_string())).count().get_result::<i64>(conn)? > 0;
    diesel::update(dsl::tokens.filter(dsl::id.eq(id.to_string())).filter(dsl::revoked_at.is_null()))
        .set(dsl::revoked_at.eq(now.0))
        .execute(conn)?;
    Ok(known)
}

pub(super) fn any_admin(conn: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(dsl::tokens.filter(dsl::role.eq(Role::Admin.as_str())))).get_result(conn)
}
