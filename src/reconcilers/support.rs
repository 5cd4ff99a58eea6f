//! What several reconcilers do.

use crate::context::Node;
use crate::domain::action::Action;
use crate::senders::Recorder;
use crate::store::{Report, StoreError, StoreResult};
use std::sync::Arc;

/// Rows per read.
pub(super) const PAGE: usize = 5_000;

/// An action; none if it can't be read, which must not stop what is done for others.
pub(super) async fn readable(node: &Node, no: i64) -> StoreResult<Option<Arc<Action>>> {
    match node.actions.get(no).await {
        Err(error) if !error.is_transient() => {
            log::error!(action = no, error = error.to_string().as_str(); "an action is passed over");
            Ok(None)
        }
        action => action,
    }
}

/// Records reports; answers how many of them the store has taken.
pub(super) async fn record(recorder: &Recorder, reports: Vec<Report>) -> StoreResult<usize> {
    match recorder.put(reports).await {
        Ok(answers) => Ok(answers.iter().filter(|answer| answer.is_ok()).count()),
        Err(interrupted) => Err(StoreError::Unavailable(interrupted.to_string())),
    }
}
