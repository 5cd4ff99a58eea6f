//! Tokens.

use super::audit;
use super::store::SqliteStore;
use crate::domain::agent::Token;
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::sql::Key;
use crate::store::sql::tokens::{self as statements, HolderRow, TokenRow};
use crate::store::{Holder, Revoked, Store, StoreResult, Tokens};
use async_trait::async_trait;
use diesel::prelude::*;
use uuid::Uuid;

#[async_trait]
impl Tokens for SqliteStore {
    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (token, by) = (token.clone(), by.clone());
        self.write("token_insert", move |conn| insert(conn, &token, hash, &by)).await
    }

    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Holder>> {
        let (hash, now) = (hash.to_vec(), self.now());
        self.read("token_find", move |conn| find(conn, hash, now)).await
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
    statements::insert(TokenRow::new(token, hash)).execute(conn)?;
    let (id, detail) = (token.id.to_string(), format!("{}: {}", token.role.as_str(), token.name));
    let event = AuditEvent { did: "token.create", subject: &id, detail: &detail, what: None };
    audit::insert(conn, by, event, token.created_at)
}

fn find(conn: &mut SqliteConnection, hash: Vec<u8>, now: Timestamp) -> QueryResult<Option<Holder>> {
    let row: Option<(TokenRow, HolderRow)> = statements::find(hash, now).get_result(conn).optional()?;
    row.map(|(token, holder)| holder.of(token)).transpose()
}

fn make_used(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<bool> {
    Ok(statements::make_used(id).execute(conn)? > 0)
}

fn list(conn: &mut SqliteConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    let rows: Vec<TokenRow> = statements::list(after, limit).load(conn)?;
    rows.into_iter().map(TokenRow::token).collect()
}

fn revoke(conn: &mut SqliteConnection, id: Uuid, by: &Author, now: Timestamp) -> QueryResult<Revoked> {
    let admins: Vec<TokenRow> = statements::admins("").load(conn)?;
    if statements::is_last_admin(admins, id, now)? {
        return Ok(Revoked::LastAdmin);
    }
    if statements::revoke(id, now).execute(conn)? > 0 {
        let event = AuditEvent { did: "token.revoke", subject: &id.to_string(), ..AuditEvent::default() };
        audit::insert(conn, by, event, now)?;
        return Ok(Revoked::Done);
    }
    let known = statements::exists(id).get_result::<Key>(conn).optional()?;
    Ok(if known.is_some() { Revoked::Done } else { Revoked::Unknown })
}

fn any_admin(conn: &mut SqliteConnection) -> QueryResult<bool> {
    Ok(statements::any_admin().get_result::<Key>(conn).optional()?.is_some())
}
