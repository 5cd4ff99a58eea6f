//! What a session's requests to the store end with.

use super::records::Backlog;
use super::reports::Reported;
use crate::domain::action::Action;
use crate::domain::command::Answer;
use crate::domain::protocol::{RunRef, Stored};
use crate::store::StoreError;
use std::sync::Arc;
use uuid::Uuid;

/// The result of a finished request.
pub(super) enum Done {
    /// Results: the answer to the agent. `None` if nothing could be recorded.
    Results(Option<Stored>),
    /// Other reports: the answers to those about a run at the agent. `None` if nothing could be
    /// recorded.
    Reports(Option<Vec<(RunRef, Answer)>>),
    /// A part of the backlog.
    Backlog(Result<Backlog, StoreError>),
    /// Metadata: the answer to the agent.
    Metadata(Reported),
    /// Runs that the agent has from earlier connections, and actions that don't exist.
    Adopted(Vec<(Arc<Action>, i32)>, Vec<Uuid>),
}
