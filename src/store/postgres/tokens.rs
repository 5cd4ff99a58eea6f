//! Tokens.

use super::sql::sql;
use crate::domain::agent::{Role, Token};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::time::Timestamp;
use crate::store::Revoked;
use crate::store::rows::{Key, TokenRow, sql_limit};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

const COLUMNS: &str = "id, hash, role, name, agent_no, created_at, expires_at, revoked_at, enroll_nonce";

pub(super) async fn insert(conn: &mut AsyncPgConnection, token: &Token, hash: Vec<u8>, by: &Author) -> QueryResult<()> {
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
    let event = AuditEvent { did: "token.create", subject: &id, detail: &detail };
    super::audit::insert(conn, by, event, token.created_at).await
}

pub(super) async fn find(conn: &mut AsyncPgConnection, hash: Vec<u8>, now: Timestamp) -> QueryResult<Option<Token>> {
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

pub(super) async fn make_used(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<bool> {
    let used = sql("UPDATE tokens SET enroll_nonce = NULL WHERE id = ? AND revoked_at IS NULL");
    used.bind(id.to_string()).execute(conn).await.map(|tokens| tokens > 0)
}

pub(super) async fn list(conn: &mut AsyncPgConnection, after: Option<Uuid>, limit: usize) -> QueryResult<Vec<Token>> {
    // Ids are UUIDs of version 7: their order is the order of their making.
    let rows: Vec<TokenRow> =
        sql(format!("SELECT {COLUMNS} FROM tokens WHERE agent_no IS NULL AND id < ? ORDER BY id DESC LIMIT ?"))
            .bind(after.map_or_else(|| "g".to_owned(), |after| after.to_string()))
            .bind(sql_limit(limit))
            .load(conn)
            .await?;
    rows.into_iter().map(TokenRow::token).collect()
}

pub(super) async fn revoke(
    conn: &mut AsyncPgConnection,
    id: Uuid,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Revoked> {
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
        super::audit::insert(conn, by, AuditEvent { did: "token.revoke", subject: &id, detail: "" }, now).await?;
        return Ok(Revoked::Done);
    }
    let known = sql("SELECT 1::bigint AS key FROM tokens WHERE id = ?").bind(id.as_str());
    let known = known.get_result::<Key>(conn).await.optional()?.is_some();
    Ok(if known { Revoked::Done } else { Revoked::Unknown })
}

pub(super) async fn any_admin(conn: &mut AsyncPgConnection) -> QueryResult<bool> {
    let found = sql("SELECT 1::bigint AS key FROM tokens WHERE role = ? LIMIT 1").bind(Role::Admin.as_str());
    Ok(found.get_result::<Key>(conn).await.optional()?.is_some())
}
