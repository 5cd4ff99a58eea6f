//! The entries of the audit log.
//!
//! An entry is written in the same transaction as its change, so neither exists without the other.

use super::agent::Token;
use super::time::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
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
    /// The address that the call came from.
    pub address: Option<String>,
}

impl Author {
    /// The server itself, under the name `name`.
    pub fn server(name: &str) -> Self {
        Self { token: None, name: name.to_owned(), role: "server", address: None }
    }
}

impl From<&Token> for Author {
    fn from(token: &Token) -> Self {
        Self { token: Some(token.id), name: token.name.clone(), role: token.role.as_str(), address: None }
    }
}

/// A change to be recorded, which is written by the code that makes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditEvent<'a> {
    /// `action.create`, `action.cancel`, `action.pause`, `action.resume`, `agent.create`, `agent.change`, `agent.remove`,
    /// `token.create`, `token.revoke`, `schedule.create`, `schedule.change`, `schedule.pause`, `schedule.resume`,
    /// `schedule.trigger` or `schedule.remove`.
    pub did: &'static str,
    /// The id or the name of what was changed.
    pub subject: &'a str,
    /// More about it, for people; may be empty.
    pub detail: &'a str,
    /// What an action or a schedule does: its target, and its operations as JSON.
    pub what: Option<(&'a str, &'a str)>,
}

/// The longest operations that an entry holds, as JSON in bytes.
const MAX_OPERATIONS: usize = 64 * 1024;

impl AuditEvent<'_> {
    /// The operations as an entry holds them: of long ones, how long they are and their hash.
    pub fn operations(&self) -> Option<String> {
        let (_, operations) = self.what?;
        if operations.len() <= MAX_OPERATIONS {
            return Some(operations.to_owned());
        }
        let hash: String = Sha256::digest(operations).iter().map(|byte| format!("{byte:02x}")).collect();
        Some(serde_json::json!({ "bytes": operations.len(), "sha256": hash }).to_string())
    }
}

/// Who made a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AuditAuthor {
    /// The token's name, or `server`, or `spool`.
    pub name: String,
    /// The token's role, or `server`.
    pub role: String,
    /// The token that was used; none for the server itself and its spool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Uuid>,
    /// The address that the call came from: that of a proxy if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// An entry of the log.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Its position in the log; pages continue after it.
    #[serde(skip)]
    pub no: i64,
    /// When it was made.
    pub at: Timestamp,
    /// Who made it.
    pub by: AuditAuthor,
    /// What was done, such as `action.cancel`.
    pub did: String,
    /// The id or the name of what was changed.
    pub subject: String,
    /// More about it, for people.
    pub detail: String,
    /// The target of an action, or of a schedule's action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Its operations; of more than 64 KiB, their size and hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub operations: Option<Box<RawValue>>,
}
