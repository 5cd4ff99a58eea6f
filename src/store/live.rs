//! Live membership: agents that join an action after it was resolved.

use super::dispatch::Due;
use super::error::StoreResult;
use crate::domain::target::Target;
use async_trait::async_trait;
use std::sync::Arc;

/// Joining live actions. The same on both databases.
#[async_trait]
pub trait Live {
    /// Lists the keys of the actions that agents can join now: live, resolved, and neither
    /// cancelled, expired nor ended.
    async fn action_list_live(&self) -> StoreResult<Vec<i64>>;

    /// Agents that match a live action's target and have no command of it yet, with their
    /// transports, in key order after the key `after`. Considers only the agents in `among`, if
    /// given.
    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Arc<str>)>>;

    /// Inserts a command of a live action, with an open row, for each of these agents that has
    /// none. Returns the new commands; none if the action can no longer be joined.
    ///
    /// They are due now, or at the action's `valid_from` if that is later.
    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>>;
}
