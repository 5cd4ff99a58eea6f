//! The store: what is true when nothing is in memory.
//!
//! [`Store`] is one trait in the domain's words. A half of it (`sqlite`) is a folder of its own, and the
//! conformance suite (`tests/store_conformance`, written against the trait) says what each of its methods promises.
//!
//! What do we store? An *action* is a row that is updated a few times. Its *commands* are rows that are inserted in key
//! order and never touched again; so are *outcomes*, one for each run that ended, whose key decides who was first. Only
//! the exceptions (agent away, to be tried again, slow) have a row that changes, in *open commands*. A command's state
//! is its last final outcome, else `sent` if its open row says so, else `pending`. Counters are kept in the transaction
//! of the rows that they count, by lanes that readers sum.
//!
//! Every method is one transaction, or none. Methods that take a batch write all of it or nothing.

mod error;
pub mod sqlite;

pub use error::StoreError;

use crate::domain::action::{Action, ActionState, NewAction, Policy};
use crate::domain::agent::{AgentRef, Enrollment, Token};
use crate::domain::command::{Answer, CommandState, Event};
use crate::domain::counts::Counts;
use crate::domain::protocol::OperationResult;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::value::RawValue;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// An agent that checks in over HTTP counts as online for this long.
pub(crate) const CHECK_IN_COUNTS: Duration = Duration::from_secs(120);

/// What a store method answers.
pub type StoreResult<T> = Result<T, StoreError>;

/// What became of an action that was handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is durable; `fresh` is false when it was there before, the same.
    Stored {
        /// The public id.
        id: Uuid,
        /// The store's key.
        no: i64,
        /// Whether this call wrote it.
        fresh: bool,
    },
    /// Another action has this id.
    Conflict,
    /// Another action was given this idempotency key.
    KeyMismatch,
}

/// An action as the reconcilers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAction {
    /// The store's key.
    pub no: i64,
    /// Not handed over before this.
    pub valid_from: Timestamp,
    /// Not handed over from this on.
    pub expires_at: Timestamp,
    /// All its commands are written.
    pub resolved: bool,
    /// A user ended it.
    pub cancelled: bool,
    /// It expired before it was resolved.
    pub expired: bool,
    /// The agent key up to which commands are written.
    pub resolved_through: i64,
    /// The agent key up to which every command has an outcome or an open row.
    pub dispatched_through: i64,
    /// Commands that are not final.
    pub unfinished: i64,
    /// Those of them that are with their agents.
    pub sent: i64,
}

/// How far an action is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The agent key up to which commands are written.
    pub through: i64,
    /// How many that is.
    pub written: i64,
    /// How many were expected when it began; spreads are laid out over these.
    pub expected: i64,
    /// Nothing more is to be done.
    pub done: bool,
}

/// A page of an action's new commands: `command_insert` writes it whole or, if the action has moved on, not at all.
#[derive(Clone, Debug)]
pub struct CommandPage {
    /// The action's key.
    pub action_no: i64,
    /// The agent key after which the page begins; must be where the action is.
    pub after: i64,
    /// The agent key up to which the action is resolved with this page.
    pub through: i64,
    /// Agent and due time (`None`: the action's own), in key order.
    pub commands: Vec<(i64, Option<Timestamp>)>,
    /// No page follows.
    pub last: bool,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is written.
    Written,
    /// The action is cancelled, expired, or resolved through another key: read how far it is, and go on from there.
    Moved,
}

/// A command that is to be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The action's key.
    pub action_no: i64,
    /// The agent's key.
    pub agent_no: i64,
    /// Which run.
    pub run: i32,
    /// Failed hand-overs of this run so far.
    pub attempts: i32,
    /// When.
    pub due_at: Timestamp,
    /// Higher goes first.
    pub priority: i32,
    /// Whether the store has an open row for it.
    pub open: bool,
}

/// A place in the order in which open rows fall due: (due time, action, agent).
pub type DuePlace = (Timestamp, i64, i64);

/// A page of an action's commands that have neither outcome nor open row.
#[derive(Clone, Debug, Default)]
pub struct UntouchedPage {
    /// (agent, transport, due time), in key order.
    pub commands: Vec<(i64, Arc<str>, Timestamp)>,
    /// The agent key up to which the page looked; `None`: there is nothing more now.
    pub through: Option<i64>,
}

/// Something that happened to a command.
#[derive(Clone, Debug)]
pub struct Report {
    /// The action's key.
    pub action_no: i64,
    /// The agent's key.
    pub agent_no: i64,
    /// What the action says about runs and attempts.
    pub policy: Policy,
    /// What happened.
    pub event: Event,
    /// The reporter holds the command, took it as its first run, and has written nothing about it. The store may then
    /// insert the outcome without looking; should that be wrong, the insert fails and it looks.
    pub fresh: bool,
}

/// What is to be closed by [`Store::command_unfinished`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// Whatever is not final.
    All,
    /// What is not with its agent.
    Pending,
}

/// An action as users see it.
#[derive(Clone, Debug)]
pub struct ActionView {
    /// The store's key; pages continue after it.
    pub no: i64,
    /// The public id.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Derived.
    pub status: ActionState,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Exact.
    pub counts: Counts,
    /// The document, as JSON.
    pub document: Box<RawValue>,
}

/// A command as users see it.
#[derive(Clone, Debug, Serialize)]
pub struct CommandView {
    /// The agent's name.
    pub agent: String,
    /// Derived.
    pub status: CommandState,
    /// Failed hand-overs of the last run, and the one that worked.
    pub attempts: i32,
    /// Runs that were begun.
    pub runs: i32,
    /// When it is or was due.
    pub due_at: Timestamp,
    /// When the agent said that it has it.
    pub sent_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// One per operation that was started.
    pub results: Option<Vec<OperationResult>>,
    /// Why it did not go well.
    pub error: Option<String>,
}

/// An agent to be put into the store without enrolling (benchmarks, agents that don't connect by themselves).
#[derive(Clone, Debug)]
pub struct NewAgent {
    /// What it would say of itself.
    pub enrollment: Enrollment,
    /// How commands reach it.
    pub transport: String,
    /// Where.
    pub address: Option<String>,
}

/// What became of an enrolling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// There is such an agent now, with this token.
    New(AgentRef),
    /// The name is taken.
    Taken,
}

/// Everything that outlives the process. See the module for what is kept, and each method for what it promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The store's time, by which everything is due and expires. Tests can set an offset.
    fn now(&self) -> Timestamp;

    /// Whether the store can be read right now.
    async fn ping(&self) -> StoreResult<()>;

    /// Makes this process known, and takes over what other processes left behind. On SQLite there can be no other one.
    async fn node_start(&self, name: &str) -> StoreResult<()>;

    /// Writes actions. The same idempotency key, or the same id, again is the same action if its digest is the same.
    /// Answers are in the order given.
    async fn action_insert(&self, actions: Vec<NewAction>) -> StoreResult<Vec<Accepted>>;

    /// An action as users see it.
    async fn action_view(&self, id: Uuid) -> StoreResult<Option<ActionView>>;

    /// Actions as users see them, newest first, before the key `before`, only those in `state` if given.
    async fn action_list(
        &self,
        state: Option<ActionState>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<ActionView>>;

    /// An action as the pipeline holds it.
    async fn action_get(&self, no: i64) -> StoreResult<Option<Action>>;

    /// The key of an action.
    async fn action_no(&self, id: Uuid) -> StoreResult<Option<i64>>;

    /// Actions that have not ended, in key order after `after`.
    async fn action_list_open(&self, after: i64, limit: usize) -> StoreResult<Vec<OpenAction>>;

    /// Keys of actions that are to be resolved: not resolved, and valid before `horizon`; oldest first.
    async fn action_list_unresolved(&self, horizon: Timestamp, limit: usize) -> StoreResult<Vec<i64>>;

    /// How far these actions are resolved, in the order given; on the first call for one, counts the agents that its
    /// target picks as `expected`.
    async fn action_resolution(&self, actions: Vec<(i64, Target)>) -> StoreResult<Vec<Resolution>>;

    /// Ends an action for whatever isn't final; `None` if there is no such action. Nothing is resolved any more from the
    /// commit on; the outcomes follow through [`Store::outcome_record`].
    async fn action_cancel(&self, id: Uuid) -> StoreResult<Option<ActionView>>;

    /// Ends the resolving of an action whose time is over; false if it was resolved before.
    async fn action_expire(&self, no: i64) -> StoreResult<bool>;

    /// Moves `dispatched_through` of these actions on over commands that have an outcome or an open row, looking at no
    /// more than `limit` of each; answers where they are, in the order given.
    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>>;

    /// Ends each of these actions that is resolved and whose commands are all final; answers which.
    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>>;

    /// Writes pages of commands in one transaction. Answers are in the order given.
    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>>;

    /// Commands of an action beyond the agent key `after` that have neither outcome nor open row.
    async fn command_untouched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UntouchedPage>;

    /// What an agent has to do that is due before `horizon`: what is due now before the rest, then highest priority first,
    /// then earliest due. Without what it has (`sent`), and of open actions only.
    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>>;

    /// Open rows `waiting` or `retry` after a place in their order and due up to `horizon`, whose agent can be reached from
    /// this node: it has a session here, or its transport is not a stream. In order of (due time, action, agent).
    async fn command_due(&self, after: DuePlace, horizon: Timestamp, limit: usize)
    -> StoreResult<Vec<(Due, Arc<str>)>>;

    /// Commands whose agent has them and should have sent a result by `now`: (action, agent).
    async fn command_overdue(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<(i64, i64)>>;

    /// Commands of an action beyond the agent key `after` that are not finished.
    async fn command_unfinished(
        &self,
        action_no: i64,
        which: Unfinished,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<i64>>;

    /// Commands as users see them, by agent name after `after`.
    async fn command_list(
        &self,
        action: Uuid,
        state: Option<CommandState>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<CommandView>>;

    /// Writes what happened to commands in one transaction, as [`decide`](crate::domain::command::decide) says, with
    /// the counters. Answers are in the order given.
    async fn outcome_record(&self, reports: &[Report]) -> StoreResult<Vec<Answer>>;

    /// Enrolls an agent with its token's hash, unless the name is taken.
    async fn agent_enroll(&self, agent: &NewAgent, token_hash: Vec<u8>) -> StoreResult<Enrolled>;

    /// Writes an agent's labels (if given), facts and version again.
    async fn agent_refresh(
        &self,
        agent_no: i64,
        labels: Option<&std::collections::BTreeMap<String, String>>,
        facts: &serde_json::Map<String, serde_json::Value>,
        version: &str,
    ) -> StoreResult<()>;

    /// Puts many agents in at once, without tokens.
    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()>;

    /// An agent by its key.
    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>>;

    /// Agents by their keys, in key order.
    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>>;

    /// Agents that match, in key order after `after`: (key, transport).
    async fn agent_match(&self, target: &Target, after: i64, limit: usize) -> StoreResult<Vec<(i64, Arc<str>)>>;

    /// Says that this node holds these agents' connections, each with its epoch. A higher epoch wins.
    async fn session_open(&self, sessions: &[(i64, i64)]) -> StoreResult<()>;

    /// Says that this node no longer holds these connections.
    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()>;

    /// Writes a token.
    async fn token_insert(&self, token: &Token, hash: Vec<u8>) -> StoreResult<()>;

    /// A token that is valid now.
    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Token>>;

    /// All tokens but those of agents, newest first.
    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>>;

    /// Revokes a token; false if there is none with this id.
    async fn token_revoke(&self, id: Uuid) -> StoreResult<bool>;

    /// Whether any admin token was ever made.
    async fn token_any_admin(&self) -> StoreResult<bool>;
}

/// Where the action's row is in its life.
pub(crate) struct ActionFlags {
    pub resolved: bool,
    pub paused: bool,
    pub cancelled: bool,
    pub expired: bool,
    pub begun: bool,
    pub ended: bool,
}

impl ActionFlags {
    /// The state that users see.
    pub(crate) fn state(&self) -> ActionState {
        match self {
            Self { cancelled: true, .. } => ActionState::Cancelled,
            Self { expired: true, .. } => ActionState::Expired,
            Self { ended: true, .. } => ActionState::Completed,
            Self { paused: true, .. } => ActionState::Paused,
            Self { resolved: true, .. } => ActionState::Running,
            Self { begun: true, .. } => ActionState::Resolving,
            _ => ActionState::Scheduled,
        }
    }
}

/// The file of a `sqlite://` URL.
pub fn sqlite_path(url: &str) -> Option<PathBuf> {
    url.strip_prefix("sqlite://").map(PathBuf::from)
}

/// Opens the store that `url` names, and brings its tables up to date. `connections`: how many read at a time.
///
/// # Errors
/// When it can't be opened, or this version has no such store.
pub async fn open(url: &str, connections: usize) -> StoreResult<Arc<dyn Store>> {
    match sqlite_path(url) {
        Some(path) => Ok(Arc::new(sqlite::SqliteStore::open(&path, connections).await?)),
        None => Err(StoreError::Unusable("store.url: this version has SQLite only (sqlite://PATH)".into())),
    }
}
