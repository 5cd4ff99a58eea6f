//! Create and revoke tokens.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::agent::{Role, Secret, Token};
use crate::domain::audit::Author;
use crate::domain::text::has_nul;
use crate::domain::time::Span;
use crate::store::Revoked;
use uuid::Uuid;

/// The longest name, in characters.
const MAX_NAME: usize = 128;

/// A token that was just created.
pub struct MadeToken {
    /// The stored part.
    pub token: Token,
    /// The secret itself, which is not stored.
    pub secret: Secret,
}

/// Creates a token for people or programs. It expires after `expires_after`, or never without it.
///
/// # Errors
/// If the role is one that agents get by enrolling, or the name isn't valid.
pub async fn make(
    node: &Node,
    role: Role,
    name: String,
    expires_after: Option<Span>,
    by: &Author,
) -> ServiceResult<MadeToken> {
    if role == Role::Agent {
        return Err(ServiceError::invalid("role: agents get their tokens by enrolling"));
    }
    if name.chars().count() > MAX_NAME {
        return Err(ServiceError::invalid(format!("name: longer than {MAX_NAME} characters")));
    }
    if has_nul(&name) {
        return Err(ServiceError::invalid("name: holds a NUL character"));
    }
    let (secret, now) = (Secret::random(), node.store.now());
    let token = Token {
        id: Uuid::now_v7(),
        role,
        name,
        agent_no: None,
        created_at: now,
        expires_at: expires_after.map(|span| now.plus(span.0)),
        revoked_at: None,
        is_unused: false,
    };
    node.store.token_insert(&token, secret.hash(), by).await?;
    log::info!(id:% = token.id, role = token.role.as_str(); "a token was made");
    Ok(MadeToken { token, secret })
}

/// Records the first use of a token, after which its enrolling can't be repeated. False if it was
/// revoked in the meantime.
///
/// # Errors
/// If the store is away.
pub async fn note_use(node: &Node, token: &Token) -> ServiceResult<bool> {
    Ok(!token.is_unused || node.store.token_use(token.id).await?)
}

/// Revokes a token.
///
/// # Errors
/// If there is no such token, or it is the last admin token.
pub async fn revoke(node: &Node, id: Uuid, by: &Author) -> ServiceResult<()> {
    match node.store.token_revoke(id, by).await? {
        Revoked::Done => {
            log::info!(id:% = id; "a token was revoked");
            Ok(())
        }
        Revoked::Unknown => Err(ServiceError::not_found(format!("token {id} not found"))),
        Revoked::LastAdmin => Err(ServiceError::conflict(
            "it is the last admin token, or the others end before it; make another one first",
        )),
    }
}
