//! A valid action that is not stored yet.

use super::state::Membership;
use crate::domain::audit::Author;
use crate::domain::time::{Span, Timestamp};
use uuid::Uuid;

/// A valid action that is not stored yet.
#[derive(Clone, Debug)]
pub struct NewAction {
    /// Its public id: the document's, or the one that was given for it.
    pub id: Uuid,
    /// What the caller calls this request: the same key again is the same action.
    pub idempotency_key: Option<String>,
    /// Who submitted it; the server itself, where nobody says otherwise.
    pub author: Author,
    /// The document with defaults filled in, as JSON.
    pub document: String,
    /// SHA-256 of the document as it was written (keys sorted): the same id with another digest is a conflict.
    pub digest: Vec<u8>,
    /// The operations as JSON.
    pub operations: String,
    /// For people.
    pub name: String,
    /// The target expression as it was written; it has been parsed once.
    pub target: String,
    /// Not delivered before this.
    pub valid_from: Timestamp,
    /// Not delivered from this on.
    pub expires_at: Timestamp,
    /// Due times spread over this long, in milliseconds; 0: all at `valid_from`.
    pub spread: Span,
    /// Time for a run, counted from `received`.
    pub timeout: Span,
    /// Failed delivery attempts after which a command is undeliverable; `None`: until it expires.
    pub max_deliveries: Option<i32>,
    /// Maximum number of runs of a command.
    pub max_runs: i32,
    /// Whether agents that match later belong to it.
    pub membership: Membership,
    /// Of the commands that wait for one agent, the one with the highest priority goes first.
    pub priority: i32,
}
