//! The whole contract of a store.

use super::actions::Actions;
use super::agents::Agents;
use super::audit::Audit;
use super::commands::Commands;
use super::dispatch::Dispatch;
use super::error::StoreResult;
use super::hints::Hints;
use super::hooks::Hooks;
use super::live::Live;
use super::metadata::Metadata;
use super::nodes::Nodes;
use super::outcomes::Outcomes;
use super::retention::Retention;
use super::schedules::Schedules;
use super::sessions::Sessions;
use super::tokens::Tokens;
use crate::domain::time::Timestamp;
use async_trait::async_trait;

/// Everything that outlives the process: one trait per aggregate, and what concerns them all.
///
/// Every method is one transaction or none. A method that takes a batch writes all of it or
/// nothing.
#[async_trait]
pub trait Store:
    Actions
    + Agents
    + Audit
    + Commands
    + Dispatch
    + Hints
    + Hooks
    + Live
    + Metadata
    + Nodes
    + Outcomes
    + Retention
    + Schedules
    + Sessions
    + Tokens
    + Send
    + Sync
    + 'static
{
    /// The store's time, which decides when commands are due and when actions expire. Tests can set
    /// an offset.
    ///
    /// On PostgreSQL: the database's clock, without asking it. On SQLite: this machine's clock.
    fn now(&self) -> Timestamp;

    /// Whether the store can be read right now.
    ///
    /// # Errors
    /// Unavailable, on PostgreSQL after 2 s without an answer.
    async fn ping(&self) -> StoreResult<()>;

    /// Migrates the tables and registers this process. Until then all other calls fail as
    /// unavailable.
    ///
    /// On SQLite: opening the store has done so.
    ///
    /// # Errors
    /// A transient error means that trying again can help. After any other, the database can't be
    /// used as it is.
    async fn prepare(&self) -> StoreResult<()>;
}
