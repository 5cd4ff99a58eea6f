//! Commands: one per action and agent, inserted in pages and never updated.

use super::error::StoreResult;
use crate::domain::command::CommandState;
use crate::domain::protocol::OperationResult;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// A page of an action's new commands. It is inserted as a whole, or not at all if the action has
/// moved on.
#[derive(Clone, Debug)]
pub struct CommandPage {
    /// The action's key.
    pub action_no: i64,
    /// The agent key after which the page begins. Must be the action's `resolved_through`.
    pub after: i64,
    /// The agent key up to which the action is resolved with this page.
    pub through: i64,
    /// Agent key and due time (`None`: the action's `valid_from`), in key order.
    pub commands: Vec<(i64, Option<Timestamp>)>,
    /// Whether this is the action's last page.
    pub last: bool,
}

/// The result of inserting a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The page is inserted.
    Written,
    /// The action is cancelled, expired, or resolved through another key. Read its resolution and
    /// continue from there.
    StalePage,
}

/// Which commands [`Commands::command_unfinished`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// All that are not final.
    All,
    /// Those that are not final and that their agents don't have.
    Pending,
}

/// Names of agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentNames<'a> {
    /// All that come after this one. Every name comes after the empty one.
    After(&'a str),
    /// This one.
    Only(&'a str),
}

impl AgentNames<'_> {
    /// All names.
    pub const ALL: AgentNames<'static> = AgentNames::After("");

    /// The operator before the name, and the name.
    pub(super) fn condition(self) -> (&'static str, String) {
        match self {
            Self::After(name) => (">", name.to_owned()),
            Self::Only(name) => ("=", name.to_owned()),
        }
    }
}

/// A command as users see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CommandView {
    /// The agent's name.
    pub agent: String,
    /// Derived.
    pub status: CommandState,
    /// Failed delivery attempts of the last run, and the one that worked.
    pub attempts: i32,
    /// Runs that were begun.
    pub runs: i32,
    /// When it is or was due.
    pub due_at: Timestamp,
    /// When the agent said that it has it.
    pub sent_at: Option<Timestamp>,
    /// When its agent began to run it: as long before the end as the agent says.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// One per operation that was started.
    pub results: Option<Vec<OperationResult>>,
    /// Why it did not go well.
    pub error: Option<String>,
}

/// Commands. The same on both databases.
#[async_trait]
pub trait Commands {
    /// Inserts pages of commands and moves their actions' `resolved_through` on, in one
    /// transaction. Returns one answer per page, in the given order.
    ///
    /// Commands that exist already are skipped and not counted again.
    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>>;

    /// Lists the commands of an action as users see them, in the order of their agents' names: of the
    /// named agents, in this state. Empty if there is no such action.
    async fn command_list(
        &self,
        action: Uuid,
        state: Option<CommandState>,
        agents: AgentNames<'_>,
        limit: usize,
    ) -> StoreResult<Vec<CommandView>>;

    /// Lists the agent keys of an action's unfinished commands, in key order after `after`.
    async fn command_unfinished(
        &self,
        action_no: i64,
        which: Unfinished,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<i64>>;

    /// Lists the keys of the actions whose command for this agent is not final.
    async fn command_unfinished_of(&self, agent_no: i64, limit: usize) -> StoreResult<Vec<i64>>;
}
