//! The entries of the audit log.
//!
//! An entry is written in the same transaction as its change, so neither exists without the other.

use super::agent::Token;
use super::time::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// The author of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// The token that was used; `None` for the server itself and its spool.
    pub token: Option<Uuid>,
    /// The token's name, or `server`, or `spool`.
    pub name: String,
    /// The token's role, or `server`.
    pub role: &'static str,
}

impl Author {
    /// The server itself, under the name `name`.
    pub fn server(name: &str) -> Self {
        Self { token: None, name: name.to_owned(), role: "server" }
    }
}

impl From<&Token> for Author {
    fn from(token: &Token) -> Self {
        Self { token: Some(token.id), name: token.name.clone(), role: token.role.as_str() }
    }
}

/// A change to be recorded, which is written by the code that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditEvent<'a> {
    /// `action.create`, `action.cancel`, `action.pause`, `action.resume`, `agent.create`, `agent.change`, `agent.remove`,
    /// `token.create`, `token.revoke`, `schedule.create`, `schedule.change`, `schedule.pause`, `schedule.resume`,
    /// `schedule.trigger` or `schedule.remove`.
    pub did: &'static str,
    /// The id or the name of what was changed.
    pub subject: &'a str,
    /// More about it, for people; may be empty.
    pub detail: &'a str,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Its position in the log; pages continue after it.
    #[serde(skip)]
    pub no: i64,
    /// When it was made.
    pub at: Timestamp,
    /// The token that was used; none for the server itself and its spool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Uuid>,
    /// The token's name, or `server`, or `spool`.
    pub name: String,
    /// The token's role, or `server`.
    pub role: String,
    /// What was done, such as `action.cancel`.
    pub did: String,
    /// The id or the name of what was changed.
    pub subject: String,
    /// More about it, for people.
    pub detail: String,
}
