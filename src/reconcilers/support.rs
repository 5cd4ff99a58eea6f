//! Functions that several reconcilers use.

use crate::context::Node;
use crate::domain::action::Action;
use crate::error_chain::ErrorChain;
use crate::senders::Recorder;
use crate::store::{Report, StoreError, StoreResult};
use std::sync::Arc;

/// Maximum number of rows per read.
pub(super) const PAGE: usize = 5_000;

/// An action. `None` if it can't be read, which must not stop the work for other actions.
pub(super) async fn readable(node: &Node, no: i64) -> StoreResult<Option<Arc<Action>>> {
    match node.actions.get(no).await {
        Err(error) if !error.is_transient() => {
            log::error!(action = no, error:% = error.chain(); "an action is passed over");
            Ok(None)
        }
        action => action,
    }
}

/// Records reports and returns how many of them the store has accepted.
pub(super) async fn record(recorder: &Recorder, reports: Vec<Report>) -> StoreResult<usize> {
    match recorder.put(reports).await {
        Ok(answers) => Ok(answers.iter().filter(|answer| answer.is_ok()).count()),
        Err(interrupted) => Err(StoreError::Unavailable(interrupted.to_string())),
    }
}
