//! Tokens.

use super::store::SqliteStore;
use crate::domain::agent::{Role, Token};
use crate::domain::audit::{Author, Deed};
use crate::domain::time::Timestamp;
use crate::store::sql::schema::tokens::dsl;
use crate::store::sql::sql_limit;
use crate::store::sql::tokens::TokenRow;
use crate::store::{Revoked, Store, StoreResult, Tokens};
use async_trait::async_trait;
use diesel::prelude::*;
use uuid::Uuid;

#[async_trait]
impl Tokens for SqliteStore {
    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (token, by) = (token.clone(), by.clone());
        self.write("token_insert", move |conn| insert(conn, &token, hash, &by)).await
    }

    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Token>> {
        let (hash, now) = (hash.to_vec(), self.now());
        self.read("token_find", move |conn| find(conn, &hash, now)).await
    }

    async fn token_use(&self, id: Uuid) -> StoreResult<bool> {
        self.write("token_use", move |conn| make_used(conn, id)).await
    }

    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>> {
        self.read("token_list", move |conn| list(conn, after, limit)).await
    }

    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked> {
        let (by, now) = (by.clone(), self.now());
        self.write("token_revoke", move |conn| revoke(conn, id, &by, now)).await
    }

    async fn token_any_admin(&self) -> StoreResult<bool> {
        self.read("token_any_admin", any_admin).await
    }
}

fn insert(conn: &mut SqliteConnection, token: &Token, hash: Vec<u8>, by: &Author) -> QueryResult<()> {
    diesel::insert_into(dsl::tokens).values(TokenRow::new(token, hash)).execute(conn)?;
    let (id, detail) = (token.id.to_string(), format!("{}: {}", token.role.as_str(), token.name));
    super::audit::insert(conn, by, Deed { did: "token.create", subject: &id, detail: &detail }, token.created_at)
}

fn find(conn: &mut SqliteConnection, hash: &[u8], now: Timestamp) -> QueryResult<Option<Token>> {
    dsl::tokens
        .filter(dsl::hash.eq(hash))
        .filter(dsl::revoked_at.is_null())
        .filter(dsl::expires_at.is_null().or(dsl::expires_at.assume_not_null().gt(now.0)))
        .first::<TokenRow>(conn)
        .optional()?
        .map(TokenRow::token)
        .transpose()
}

fn make_used(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<bool> {
    let valid = || dsl::tokens.filter(dsl::id.eq(id.to_string())).filter(dsl::revoked_at.is_null());
    diesel::update(valid()).set(dsl::enroll_nonce.eq(None::<Vec<u8>>)).execute(conn).map(|tokens| tokens > 0)
}

fn list(conn: &mut SqliteConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    // Ids are UUIDs of version 7: their order is the order of their making.
    let mut query =
        dsl::tokens.filter(dsl::agent_no.is_null()).order(dsl::id.desc()).limit(sql_limit(limit)).into_boxed();
    if let Some(after) = after {
        query = query.filter(dsl::id.lt(after.to_string()));
    }
    query.load::<TokenRow>(conn)?.into_iter().map(TokenRow::token).collect()
}

fn revoke(conn: &mut SqliteConnection, id: Uuid, by: &Author, now: Timestamp) -> QueryResult<Revoked> {
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
    super::audit::insert(conn, by, Deed { did: "token.revoke", subject: &id.to_string(), detail: "" }, now)?;
    Ok(Revoked::Done)
}

fn any_admin(conn: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(dsl::tokens.filter(dsl::role.eq(Role::Admin.as_str())))).get_result(conn)
}
