//! Tokens.

use super::super::rows::{TokenRow, sql_limit};
use super::super::schema::tokens::dsl;
use crate::domain::agent::{Role, Token};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::Revoked;
use diesel::prelude::*;
use uuid::Uuid;

pub(super) fn insert(conn: &mut SqliteConnection, token: &Token, hash: Vec<u8>, by: &Author) -> QueryResult<()> {
    diesel::insert_into(dsl::tokens).values(TokenRow::new(token, hash)).execute(conn)?;
    let (id, detail) = (token.id.to_string(), format!("{}: {}", token.role.as_str(), token.name));
    super::audit::insert(conn, by, AuditEvent { did: "token.create", subject: &id, detail: &detail }, token.created_at)
}

pub(super) fn find(conn: &mut SqliteConnection, hash: &[u8], now: Timestamp) -> QueryResult<Option<Token>> {
    dsl::tokens
        .filter(dsl::hash.eq(hash))
        .filter(dsl::revoked_at.is_null())
        .filter(dsl::expires_at.is_null().or(dsl::expires_at.assume_not_null().gt(now.0)))
        .first::<TokenRow>(conn)
        .optional()?
        .map(TokenRow::token)
        .transpose()
}

pub(super) fn make_used(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<bool> {
    let valid = || dsl::tokens.filter(dsl::id.eq(id.to_string())).filter(dsl::revoked_at.is_null());
    diesel::update(valid()).set(dsl::enroll_nonce.eq(None::<Vec<u8>>)).execute(conn).map(|tokens| tokens > 0)
}

pub(super) fn list(conn: &mut SqliteConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    // Ids are UUIDs of version 7: their order is the order of their making.
    let mut query =
        dsl::tokens.filter(dsl::agent_no.is_null()).order(dsl::id.desc()).limit(sql_limit(limit)).into_boxed();
    if let Some(after) = after {
        query = query.filter(dsl::id.lt(after.to_string()));
    }
    query.load::<TokenRow>(conn)?.into_iter().map(TokenRow::token).collect()
}

pub(super) fn revoke(conn: &mut SqliteConnection, id: Uuid, by: &Author, now: Timestamp) -> QueryResult<Revoked> {
    let found = dsl::tokens.filter(dsl::id.eq(id.to_string())).first::<TokenRow>(conn).optional()?;
    let Some(token) = found.map(TokenRow::token).transpose()? else { return Ok(Revoked::Unknown) };
    if token.revoked_at.is_some() {
        return Ok(Revoked::Done);
    }
    let admins = dsl::tokens.filter(dsl::role.eq(Role::Admin.as_str())).filter(dsl::revoked_at.is_null());
    let admins = admins.load::<TokenRow>(conn)?.into_iter().map(TokenRow::token).collect::<QueryResult<Vec<_>>>()?;
    if token.is_last_admin(&admins, now) {
        return Ok(Revoked::LastAdmin);
    }
    diesel::update(dsl::tokens.filter(dsl::id.eq(id.to_string()))).set(dsl::revoked_at.eq(now.0)).execute(conn)?;
    super::audit::insert(conn, by, AuditEvent { did: "token.revoke", subject: &id.to_string(), detail: "" }, now)?;
    Ok(Revoked::Done)
}

pub(super) fn any_admin(conn: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(dsl::tokens.filter(dsl::role.eq(Role::Admin.as_str())))).get_result(conn)
}
