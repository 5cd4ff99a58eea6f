//! Live membership: agents that join an action after it was resolved.

use super::agents::{Found, Matching, Part};
use super::dispatch::Due;
use super::error::StoreResult;
use crate::domain::target::Target;
use async_trait::async_trait;

/// Joining live actions. The same on both databases.
#[async_trait]
pub trait Live {
    /// Lists the keys of the actions that agents can join now: live, resolved, and neither
    /// cancelled, expired nor ended.
    async fn action_list_live(&self) -> StoreResult<Vec<i64>>;

    /// Searches a part of the fleet for agents that match a live action's target and have no command of it yet.
    /// Considers only the agents in `among`, if given; then their number is what bounds the search.
    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        part: Part,
    ) -> StoreResult<Found<Matching>>;

    /// Inserts a command of a live action, with an open row, for each of these agents that has
    /// none. Returns the new commands; none if the action can no longer be joined.
    ///
    /// They are due now, or at the action's `valid_from` if that is later.
    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>>;
}
