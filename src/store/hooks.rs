//! Events for hooks: an outbox.
//!
//! Methods of the other aggregates write the events, each in the transaction of the change that it
//! tells of, once for each hook that listens to it. Which hooks there are is a setting of each
//! node: the list of the node that makes the change counts.

use super::error::StoreResult;
use crate::domain::hook::Listener;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// What is wanted of a hook's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookWanted {
    /// The hook's name.
    pub hook: String,
    /// Maximum number of events.
    pub limit: usize,
    /// How long nobody else gets them.
    pub lease: Duration,
}

/// An event that this node has claimed and is to send to its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookClaim {
    /// The store's key.
    pub no: i64,
    /// The hook's name.
    pub hook: String,
    /// The id that all attempts share.
    pub id: String,
    /// What it tells, as JSON.
    pub payload: String,
    /// When it was written.
    pub created_at: Timestamp,
    /// The attempts so far, the claimed one included.
    pub attempts: i32,
}

/// How an attempt to send an event ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// The receiver has it.
    Delivered,
    /// The attempt failed. It is sent again at `next`, or given up.
    Failed {
        /// The reason, for people.
        error: String,
        /// The time of the next attempt; `None` gives it up.
        next: Option<Timestamp>,
    },
    /// The attempt was not made, or broken off by this node. It doesn't count, and the event is due
    /// at once.
    Released,
}

/// The state of a hook's events, as users see it. Up to [`COUNTED`] events are counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HookView {
    /// The hook's name.
    pub name: String,
    /// Events that wait to be delivered; counted up to 100,000.
    pub pending: i64,
    /// When the oldest of them was written.
    pub oldest: Option<Timestamp>,
    /// Events that were given up and are still kept; counted up to 100,000.
    pub given_up: i64,
    /// Why the latest failed attempt failed, of the events that are still kept.
    pub last_error: Option<String>,
    /// When that attempt failed.
    pub last_failed_at: Option<Timestamp>,
}

/// How many events of a hook are counted at most.
pub const COUNTED: usize = 100_000;

/// The outbox of hooks. The same on both databases.
#[async_trait]
pub trait Hooks {
    /// From now on, events are written for these hooks. Without this call, there are no hooks.
    fn hook_register(&self, listeners: Vec<Listener>);

    /// Claims events that are due, up to a number for each of these hooks, earliest first, and
    /// counts an attempt for each. No other call returns them again before the hook's lease is over.
    ///
    /// If the answer to the commit is lost, the events come again after the lease.
    async fn hook_event_claim(&self, wanted: Vec<HookWanted>) -> StoreResult<Vec<HookClaim>>;

    /// Records how the attempts of claims ended. An event that has ended stays as it is; so does one
    /// that was claimed again meanwhile, unless it is delivered.
    async fn hook_event_record(&self, outcomes: Vec<(HookClaim, HookOutcome)>) -> StoreResult<()>;

    /// Lists the state of each registered hook in the given order, then of others that have events
    /// that are pending or given up.
    async fn hook_list(&self) -> StoreResult<Vec<HookView>>;

    /// Gives up at most `limit` events of hooks that are not registered here and that no node has
    /// claimed since `due_before`. Returns how many it gave up.
    async fn hook_event_abandon(&self, due_before: Timestamp, limit: usize) -> StoreResult<usize>;

    /// Deletes up to `limit` events that were delivered or given up before `ended_before`. Returns
    /// how many were deleted.
    async fn hook_event_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<usize>;
}
