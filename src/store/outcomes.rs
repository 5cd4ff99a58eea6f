//! Outcomes: what happened to commands.

use super::error::StoreResult;
use crate::domain::action::Policy;
use crate::domain::command::{Answer, Event};
use async_trait::async_trait;

/// An event of a command.
#[derive(Clone, Debug)]
pub struct Report {
    /// The action's key.
    pub action_no: i64,
    /// The agent's key.
    pub agent_no: i64,
    /// The action's limits on runs and attempts.
    pub policy: Policy,
    /// What happened.
    pub event: Event,
    /// Whether the reporter holds the command in its first run and has recorded nothing about it.
    /// Then the store may insert the outcome without reading the command first. If the reporter is
    /// wrong, the insert fails and the store reads it.
    pub skip_lookup: bool,
}

/// Outcomes. The same on both databases.
#[async_trait]
pub trait Outcomes {
    /// Records events of commands as [`decide`](crate::domain::command::decide) says, with
    /// outcomes, open rows, late results and counters, in one transaction. Returns one answer per
    /// report, in the given order.
    ///
    /// The first outcome of a run wins. Recording the same result again changes nothing.
    async fn outcome_record(&self, reports: &[Report]) -> StoreResult<Vec<Answer>>;
}
