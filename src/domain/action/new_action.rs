//! A valid action that is not stored yet.

use super::state::Membership;
use crate::domain::audit::Author;
use crate::domain::time::{Span, Timestamp};
use uuid::Uuid;

/// A valid action that is not stored yet.
#[derive(Clone, Debug)]
pub struct NewAction {
    /// Its public id: from the document, or generated.
    pub id: Uuid,
    /// The caller's key for this request. The same key again returns the same action.
    pub idempotency_key: Option<String>,
    /// The nominal time of the occurrence, if a schedule made it.
    pub scheduled_for: Option<Timestamp>,
    /// The action that it runs again.
    pub retry_of: Option<Uuid>,
    /// The author; the server itself by default.
    pub author: Author,
    /// The document with defaults filled in, as JSON.
    pub document: String,
    /// SHA-256 of the original document with sorted keys. The same id with another digest is a
    /// conflict.
    pub digest: Vec<u8>,
    /// The operations as JSON.
    pub operations: String,
    /// A name for people.
    pub name: String,
    /// The target expression as written. It has been parsed once.
    pub target: String,
    /// Nothing is delivered before this time.
    pub valid_from: Timestamp,
    /// Nothing is delivered from this time on.
    pub expires_at: Timestamp,
    /// The time over which due times are spread, in milliseconds; 0: all are due at `valid_from`.
    pub spread: Span,
    /// Timeout of a run, counted from `received`.
    pub timeout: Span,
    /// Failed delivery attempts after which a command is undeliverable; `None`: until it expires.
    pub max_deliveries: Option<i32>,
    /// Maximum number of runs of a command.
    pub max_runs: i32,
    /// Whether agents that match later belong to it.
    pub membership: Membership,
    /// Among the commands that wait for one agent, the highest priority is delivered first.
    pub priority: i32,
}
