//! Tokens.

use super::audit;
use super::error::{not_connected, sort};
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::agent::Token;
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::sql::Key;
use crate::store::sql::tokens::{self as statements, HolderRow, TokenRow};
use crate::store::{Holder, Revoked, Store, StoreResult, Tokens};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;
use uuid::Uuid;

#[async_trait]
impl Tokens for PostgresStore {
    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (token, by) = (Arc::new(token.clone()), Arc::new(by.clone()));
        self.write(Caller::Pipeline, "token_insert", body!([token, hash, by] conn => insert(conn, &token, hash, &by)))
            .await
    }

    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Holder>> {
        let (hash, now) = (hash.to_vec(), self.now());
        self.read(Caller::Sessions, "token_find", body!([hash] conn => find(conn, hash, now))).await
    }

    async fn token_use(&self, id: Uuid) -> StoreResult<bool> {
        self.write(Caller::Sessions, "token_use", body!([] conn => make_used(conn, id))).await
    }

    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>> {
        self.read(Caller::People, "token_list", body!([] conn => list(conn, after, limit))).await
    }

    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write(Caller::Pipeline, "token_revoke", body!([by] conn => revoke(conn, id, &by, now))).await
    }

    async fn token_any_admin(&self) -> StoreResult<bool> {
        self.read(Caller::Pipeline, "token_any_admin", body!([] conn => any_admin(conn))).await
    }
}

impl PostgresStore {
    /// Inserts a token without being a node, see
    /// [`token_insert_alone`](crate::store::token_insert_alone).
    ///
    /// # Errors
    /// When the database can't be reached or its tables are of an older version.
    pub(in crate::store) async fn token_insert_alone(
        &self,
        token: &Token,
        hash: Vec<u8>,
        by: &Author,
    ) -> StoreResult<()> {
        let (inner, token, by) = (self.inner.clone(), token.clone(), by.clone());
        self.run(async move {
            let mut conn = inner.connector.connect().await.map_err(not_connected)?;
            let inserted = conn.transaction(async move |conn| insert(conn, &token, hash.clone(), &by).await).await;
            inserted.map_err(|error| sort("token_insert", error, conn.code()))
        })
        .await
    }
}

async fn insert(conn: &mut AsyncPgConnection, token: &Token, hash: Vec<u8>, by: &Author) -> QueryResult<()> {
    statements::insert(TokenRow::new(token, hash)).execute(conn).await?;
    let (id, detail) = (token.id.to_string(), format!("{}: {}", token.role.as_str(), token.name));
    let event = AuditEvent { did: "token.create", subject: &id, detail: &detail, what: None };
    audit::insert(conn, by, event, token.created_at).await
}

async fn find(conn: &mut AsyncPgConnection, hash: Vec<u8>, now: Timestamp) -> QueryResult<Option<Holder>> {
    let row: Option<(TokenRow, HolderRow)> = statements::find(hash, now).get_result(conn).await.optional()?;
    row.map(|(token, holder)| holder.of(token)).transpose()
}

async fn make_used(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<bool> {
    Ok(statements::make_used(id).execute(conn).await? > 0)
}

async fn list(conn: &mut AsyncPgConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    let rows: Vec<TokenRow> = statements::list(after, limit).load(conn).await?;
    rows.into_iter().map(TokenRow::token).collect()
}

async fn revoke(conn: &mut AsyncPgConnection, id: Uuid, by: &Author, now: Timestamp) -> QueryResult<Revoked> {
    // Those that revoke admins' tokens take turns, or two of them could each leave the other's as
    // the last one.
    let admins: Vec<TokenRow> = statements::admins(" FOR UPDATE").load(conn).await?;
    if statements::is_last_admin(admins, id, now)? {
        return Ok(Revoked::LastAdmin);
    }
    if statements::revoke(id, now).execute(conn).await? > 0 {
        let event = AuditEvent { did: "token.revoke", subject: &id.to_string(), ..AuditEvent::default() };
        audit::insert(conn, by, event, now).await?;
        return Ok(Revoked::Done);
    }
    let known = statements::exists(id).get_result::<Key>(conn).await.optional()?;
    Ok(if known.is_some() { Revoked::Done } else { Revoked::Unknown })
}

async fn any_admin(conn: &mut AsyncPgConnection) -> QueryResult<bool> {
    Ok(statements::any_admin().get_result::<Key>(conn).await.optional()?.is_some())
}
