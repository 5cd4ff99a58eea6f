//! Tokens.

use super::error::{not_connected, sort};
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::agent::{Role, Token};
use crate::domain::audit::{Author, Deed};
use crate::domain::time::Timestamp;
use crate::store::sql::tokens::TokenRow;
use crate::store::sql::{Key, sql, sql_limit};
use crate::store::{Revoked, Store, StoreResult, Tokens};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;
use uuid::Uuid;

#[async_trait]
impl Tokens for PostgresStore {
    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
        let (token, by) = (Arc::new(token.clone()), Arc::new(by.clone()));
        self.write("token_insert", body!([token, hash, by] conn => insert(conn, &token, hash, &by))).await
    }

    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Token>> {
        let (hash, now) = (hash.to_vec(), self.now());
        self.read("token_find", body!([hash] conn => find(conn, hash, now))).await
    }

    async fn token_use(&self, id: Uuid) -> StoreResult<bool> {
        self.write("token_use", body!([] conn => make_used(conn, id))).await
    }

    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>> {
        self.read("token_list", body!([] conn => list(conn, after, limit))).await
    }

    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write("token_revoke", body!([by] conn => revoke(conn, id, &by, now))).await
    }

    async fn token_any_admin(&self) -> StoreResult<bool> {
        self.read("token_any_admin", body!([] conn => any_admin(conn))).await
    }
}

impl PostgresStore {
    /// Inserts a token without being a node, see [`token_insert_alone`](crate::store::token_insert_alone).
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

const COLUMNS: &str = "id, hash, role, name, agent_no, created_at, expires_at, revoked_at, enroll_nonce";

async fn insert(conn: &mut AsyncPgConnection, token: &Token, hash: Vec<u8>, by: &Author) -> QueryResult<()> {
    let row = TokenRow::new(token, hash);
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
        .execute(conn)
        .await?;
    let (id, detail) = (token.id.to_string(), format!("{}: {}", token.role.as_str(), token.name));
    let deed = Deed { did: "token.create", subject: &id, detail: &detail };
    super::audit::insert(conn, by, deed, token.created_at).await
}

async fn find(conn: &mut AsyncPgConnection, hash: Vec<u8>, now: Timestamp) -> QueryResult<Option<Token>> {
    sql(format!(
        "SELECT {COLUMNS} FROM tokens WHERE hash = ? AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
    ))
    .bind(hash)
    .bind(now.0)
    .get_result::<TokenRow>(conn)
    .await
    .optional()?
    .map(TokenRow::token)
    .transpose()
}

async fn make_used(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<bool> {
    let used = sql("UPDATE tokens SET enroll_nonce = NULL WHERE id = ? AND revoked_at IS NULL");
    used.bind(id.to_string()).execute(conn).await.map(|tokens| tokens > 0)
}

async fn list(conn: &mut AsyncPgConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    // Ids are UUIDs of version 7: their order is the order of their making.
    let rows: Vec<TokenRow> =
        sql(format!("SELECT {COLUMNS} FROM tokens WHERE agent_no IS NULL AND id < ? ORDER BY id DESC LIMIT ?"))
            .bind(after.map_or_else(|| "g".to_owned(), |after| after.to_string()))
            .bind(sql_limit(limit))
            .load(conn)
            .await?;
    rows.into_iter().map(TokenRow::token).collect()
}

async fn revoke(conn: &mut AsyncPgConnection, id: Uuid, by: &Author, now: Timestamp) -> QueryResult<Revoked> {
    // Those that revoke admins' tokens take turns, or two of them could each leave the other's as the last one.
    let admins =
        sql(format!("SELECT {COLUMNS} FROM tokens WHERE role = ? AND revoked_at IS NULL ORDER BY id FOR UPDATE"));
    let admins = admins.bind(Role::Admin.as_str()).load::<TokenRow>(conn).await?;
    let admins = admins.into_iter().map(TokenRow::token).collect::<QueryResult<Vec<_>>>()?;
    if admins.iter().any(|token| token.id == id && token.is_last_admin(&admins, now)) {
        return Ok(Revoked::LastAdmin);
    }
    let id = id.to_string();
    let revoke = sql("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL");
    if revoke.bind(now.0).bind(id.as_str()).execute(conn).await? > 0 {
        super::audit::insert(conn, by, Deed { did: "token.revoke", subject: &id, detail: "" }, now).await?;
        return Ok(Revoked::Done);
    }
    let known = sql("SELECT 1::bigint AS key FROM tokens WHERE id = ?").bind(id.as_str());
    let known = known.get_result::<Key>(conn).await.optional()?.is_some();
    Ok(if known { Revoked::Done } else { Revoked::Unknown })
}

async fn any_admin(conn: &mut AsyncPgConnection) -> QueryResult<bool> {
    let found = sql("SELECT 1::bigint AS key FROM tokens WHERE role = ? LIMIT 1").bind(Role::Admin.as_str());
    Ok(found.get_result::<Key>(conn).await.optional()?.is_some())
}
