//! Tokens: only their hashes are stored.

use super::error::StoreResult;
use crate::domain::agent::{AgentRef, Token};
use crate::domain::audit::Author;
use async_trait::async_trait;
use uuid::Uuid;

/// The result of revoking a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The token is revoked, now or before.
    Done,
    /// There is no token with this id.
    Unknown,
    /// The token stays valid: it is [the last admin's](crate::domain::agent::Token::is_last_admin).
    LastAdmin,
}

/// A valid token, with the agent that it belongs to, unless that is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The token.
    pub token: Token,
    /// The agent, of an agent's token.
    pub agent: Option<AgentRef>,
}

/// Tokens. The same on both databases.
#[async_trait]
pub trait Tokens {
    /// Inserts a token with the hash of its secret.
    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()>;

    /// The token with this hash, if it is neither revoked nor expired.
    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Holder>>;

    /// Marks an [unused](Token::is_unused) token as used, which ends the repeating of its
    /// enrollment. False if it was revoked meanwhile.
    async fn token_use(&self, id: Uuid) -> StoreResult<bool>;

    /// Lists all tokens except agents', newest first. `after` continues a listing: only older
    /// tokens are returned.
    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>>;

    /// Revokes a token, unless it is the last valid one of an admin.
    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked>;

    /// Whether an admin token was ever created, revoked ones included.
    async fn token_any_admin(&self) -> StoreResult<bool>;
}
