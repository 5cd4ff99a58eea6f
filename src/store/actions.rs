//! Actions: accepting, reading, resolving, pausing, cancelling and completing them.

use super::error::StoreResult;
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::audit::Author;
use crate::domain::counts::Counts;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The result of submitting an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The action is durable.
    Stored {
        /// The public id.
        id: Uuid,
        /// The store's key.
        no: i64,
        /// Whether this call inserted it. False when the same action was already stored.
        is_new: bool,
    },
    /// A different action has this id.
    Conflict,
    /// A different action has this idempotency key.
    KeyMismatch,
}

/// An action that has not ended, as the reconcilers need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAction {
    /// The store's key.
    pub no: i64,
    /// No command is delivered before this time.
    pub valid_from: Timestamp,
    /// No command is delivered from this time on.
    pub expires_at: Timestamp,
    /// Whether agents may join until it expires.
    pub live: bool,
    /// Whether this node owns it: records which of its agents are away, and sends what isn't a
    /// stream.
    pub owned: bool,
    /// Whether all its commands are written.
    pub resolved: bool,
    /// Whether a user cancelled it.
    pub cancelled: bool,
    /// Whether a user paused it.
    pub paused: bool,
    /// Whether it expired before it was resolved.
    pub expired: bool,
    /// The agent key up to which commands are written.
    pub resolved_through: i64,
    /// The agent key up to which every command has an outcome or an open row.
    pub dispatched_through: i64,
    /// Number of commands that are not final.
    pub unfinished: i64,
    /// How many of the unfinished commands their agents have.
    pub sent: i64,
}

/// How far an action is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The agent key up to which commands are written.
    pub through: i64,
    /// Number of commands written so far.
    pub written: i64,
    /// Number of agents that matched when they were counted. A spread is laid out over these.
    pub expected: Option<i64>,
    /// Whether all commands are written.
    pub done: bool,
}

/// An action that is to be resolved, in a list by (valid from, key).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// When it is valid.
    pub valid_from: Timestamp,
    /// Its key.
    pub no: i64,
    /// The agent key up to which commands are written.
    pub through: i64,
    /// Number of agents that matched when they were counted.
    pub expected: Option<i64>,
}

impl Unresolved {
    /// Its place in the list.
    pub fn place(&self) -> (Timestamp, i64) {
        (self.valid_from, self.no)
    }

    /// How far it is resolved, if nothing is written yet.
    pub fn fresh(&self) -> Option<Resolution> {
        let fresh = Resolution { through: 0, written: 0, expected: self.expected, done: false };
        (self.through == 0).then_some(fresh)
    }
}

/// An action as users see it.
#[derive(Clone, Debug)]
pub struct ActionView {
    /// The store's key, by which pages continue.
    pub no: i64,
    /// The public id.
    pub id: Uuid,
    /// A name for people.
    pub name: String,
    /// The state, derived from the flags.
    pub status: ActionState,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The name of the token that created it, or `spool` or `server`; unknown for those of early
    /// versions.
    pub created_by: Option<String>,
    /// The nominal time of the occurrence, if a schedule made it.
    pub scheduled_for: Option<Timestamp>,
    /// The action that it runs again.
    pub retry_of: Option<Uuid>,
    /// The exact counts of its commands by state.
    pub counts: Counts,
    /// The submitted document, as JSON.
    pub document: Box<RawValue>,
}

/// Actions. All methods behave the same on both databases, except for ownership: on SQLite the only
/// node owns every action.
#[async_trait]
pub trait Actions: Sync {
    /// Inserts actions, each with its entry in the audit log. Returns one answer per action, in the
    /// given order.
    ///
    /// Idempotent: an action whose idempotency key or id is already stored is the same action if
    /// the digests are equal.
    async fn action_insert(&self, actions: Vec<NewAction>) -> StoreResult<Vec<Accepted>>;

    /// The action with this id, as users see it.
    async fn action_view(&self, id: Uuid) -> StoreResult<Option<ActionView>>;

    /// Lists actions as users see them, newest first.
    ///
    /// `before` continues a listing: only actions with a smaller key are returned. `state` and
    /// `beginning`, that of the id as text, filter.
    async fn action_list(
        &self,
        state: Option<ActionState>,
        beginning: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<ActionView>>;

    /// The action with this key, as the pipeline needs it.
    async fn action_get(&self, no: i64) -> StoreResult<Option<Action>>;

    /// The keys of the actions with these ids, as (id, key). Those that don't exist are left out.
    async fn action_nos(&self, ids: &[Uuid]) -> StoreResult<Vec<(Uuid, i64)>>;

    /// The key of the action with this id.
    async fn action_no(&self, id: Uuid) -> StoreResult<Option<i64>> {
        Ok(self.action_nos(&[id]).await?.pop().map(|(_, no)| no))
    }

    /// Lists actions that have not ended, in key order after the key `after`.
    async fn action_list_open(&self, after: i64, limit: usize) -> StoreResult<Vec<OpenAction>>;

    /// Lists unresolved actions that this node owns and that are valid at `horizon`, in the order of (valid from, key),
    /// after the last one of the page before.
    async fn action_list_unresolved(
        &self,
        horizon: Timestamp,
        after: (Timestamp, i64),
        limit: usize,
    ) -> StoreResult<Vec<Unresolved>>;

    /// How far an action is resolved.
    async fn action_resolution(&self, no: i64) -> StoreResult<Resolution>;

    /// Stores the number of agents that match an action's target, unless one is stored. Returns the stored one.
    async fn action_expect(&self, no: i64, agents: i64) -> StoreResult<i64>;

    /// Cancels an action unless it has ended, and returns it. `None` if there is no action with
    /// this id.
    ///
    /// From the commit on, no more commands of it are inserted. The outcomes of its unfinished
    /// commands are recorded later, through
    /// [`Outcomes::outcome_record`](super::Outcomes::outcome_record).
    async fn action_cancel(&self, id: Uuid, by: &Author) -> StoreResult<Option<ActionView>>;

    /// Pauses or resumes an action unless it has ended, and returns it. `None` if there is no
    /// action with this id.
    async fn action_pause(&self, id: Uuid, paused: bool, by: &Author) -> StoreResult<Option<ActionView>>;

    /// Marks an action as expired and resolved. False if it was resolved already.
    async fn action_expire(&self, no: i64) -> StoreResult<bool>;

    /// Advances `dispatched_through` of these actions over commands that have an outcome or an open
    /// row. Returns where each is now, in the given order.
    ///
    /// Examines at most `limit` commands of each action.
    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>>;

    /// Completes those of these actions that are resolved and whose commands are all final. Returns
    /// the keys of the completed ones. A live action completes only when it is cancelled or has
    /// expired.
    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>>;
}
