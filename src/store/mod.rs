//! The store: what is true when nothing is in memory.
//!
//! [`Store`] is one trait in the domain's words. Each half of it is a folder of its own: [`sqlite`], embedded, for one
//! node, and [`postgres`], for many. What they share is beside them: the rows that come out (`rows`), what a batch of
//! reports changes (`changes`), and targets as SQL (`filter`). The conformance suite (`tests/store_conformance`, written
//! against the trait) says what each method promises, and runs on both.
//!
//! What do we store? An *action* is a row that is updated a few times. Its *commands* are rows that are inserted in key
//! order and never touched again; so are *outcomes*, one for each run that ended, whose key decides who was first. Only
//! the exceptions (agent away, to be tried again, slow) have a row that changes, in *open commands*. A command's state
//! is its last final outcome, else `sent` if its open row says so, else `pending`. Counters are kept in the transaction
//! of the rows that they count, by lanes that readers sum.
//!
//! Whatever an operator changes is told in the audit log, in the same transaction (`by` is who did it).
//!
//! Every method is one transaction, or none. Methods that take a batch write all of it or nothing. Texts hold no NUL
//! character, which PostgreSQL can't keep: the domain sees to that where they come in.

mod changes;
mod error;
mod filter;
mod models;
pub mod postgres;
mod rows;
mod schema;
mod sessions;
pub mod sqlite;

pub use error::{SqlState, StoreError};
pub use models::{
    Accepted, ActionView, AgentPatch, AgentView, CommandPage, CommandView, Due, DueCursor, Enrolled, Inserted,
    NewAgent, NodeView, OpenAction, Report, Resolution, Revoked, UndispatchedPage, Unfinished,
};
pub use sessions::{Opened, SessionHeld, SessionOpening, SessionState};

use crate::config::Config;
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::agent::{AgentRef, Token};
use crate::domain::audit::{AuditEntry, Author};
use crate::domain::command::{Answer, CommandState};
use crate::domain::hint::Hint;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// An agent that checks in over HTTP counts as online for this long.
pub(crate) const CHECK_IN_COUNTS: Duration = Duration::from_secs(120);

/// A check-in is written anew after this long.
pub(crate) const CHECK_IN_WRITTEN: Duration = Duration::from_secs(30);

/// What a store method answers.
pub type StoreResult<T> = Result<T, StoreError>;

/// Everything that outlives the process. See the module for what is kept, and each method for what it promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The store's time, by which everything is due and expires. Tests can set an offset.
    fn now(&self) -> Timestamp;

    /// Whether the store can be read right now.
    async fn ping(&self) -> StoreResult<()>;

    /// Brings the tables up to date and makes this process known. Until then all other calls are refused as unavailable.
    /// An error that isn't transient means that it can't be used as it is. On SQLite opening it has done so.
    async fn prepare(&self) -> StoreResult<()>;

    /// Gives this process its name, says for which transports it has senders, and takes over what other processes left behind that are gone. On SQLite there can be
    /// no other one.
    async fn node_start(&self, name: &str, transports: &[String]) -> StoreResult<()>;

    /// Says goodbye: what this process held is free at once. Nothing can be written after it.
    async fn node_stop(&self) -> StoreResult<()>;

    /// Waits until another process has taken over from this one, which can write nothing any more. On SQLite: for ever.
    async fn node_lost(&self);

    /// The nodes that share the store, oldest first.
    async fn node_list(&self) -> StoreResult<Vec<NodeView>>;

    /// Tells the other nodes; who doesn't hear it looks by itself later. False when there are none, as on SQLite.
    async fn hint_send(&self, hints: &[Hint]) -> StoreResult<bool>;

    /// Waits for what other nodes tell. On SQLite: for ever.
    async fn hint_next(&self) -> Vec<Hint>;

    /// Those of these agents whose connection another node holds. On SQLite: none.
    async fn session_elsewhere(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>>;

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

    /// Keys of actions that this node is to resolve: its own, not resolved, and valid before `horizon`; oldest first.
    async fn action_list_unresolved(&self, horizon: Timestamp, limit: usize) -> StoreResult<Vec<i64>>;

    /// How far these actions are resolved, in the order given; on the first call for one, counts the agents that its
    /// target picks as `expected`.
    async fn action_resolution(&self, actions: Vec<(i64, Target)>) -> StoreResult<Vec<Resolution>>;

    /// Ends an action for whatever isn't final; `None` if there is no such action. Nothing is resolved any more from the
    /// commit on; the outcomes follow through [`Store::outcome_record`].
    async fn action_cancel(&self, id: Uuid, by: &Author) -> StoreResult<Option<ActionView>>;

    /// Pauses an action, or lets it go on, unless it has ended; `None` if there is no such action.
    async fn action_pause(&self, id: Uuid, paused: bool, by: &Author) -> StoreResult<Option<ActionView>>;

    /// Ends the resolving of an action whose time is over; false if it was resolved before.
    async fn action_expire(&self, no: i64) -> StoreResult<bool>;

    /// Moves `dispatched_through` of these actions on over commands that have an outcome or an open row, looking at no
    /// more than `limit` of each; answers where they are, in the order given.
    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>>;

    /// Ends each of these actions that is resolved and whose commands are all final; answers which.
    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>>;

    /// Deletes up to `limit` rows of one action that ended before a time, which is out of sight from the first call on, and
    /// answers how many there were; `None` when there is no such action (left).
    async fn action_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<Option<usize>>;

    /// Looks at up to `limit` actions after the key `after` that have rows, and marks those for deletion that are no more: the
    /// next [`Store::action_purge`] takes them up. Answers how far it looked; `None` when there was nothing to look at.
    async fn action_sweep(&self, after: i64, limit: usize) -> StoreResult<Option<i64>>;

    /// Writes pages of commands in one transaction. Answers are in the order given.
    async fn command_insert(&self, pages: Vec<CommandPage>) -> StoreResult<Vec<Inserted>>;

    /// Commands of an action beyond the agent key `after` that have neither outcome nor open row.
    async fn command_undispatched(&self, action_no: i64, after: i64, limit: usize) -> StoreResult<UndispatchedPage>;

    /// What an agent has to do that is due before `horizon`: what is due now before the rest, then highest priority first,
    /// then earliest due. Without what it has (`sent`), and of open actions only.
    async fn command_backlog(&self, agent_no: i64, horizon: Timestamp, limit: usize) -> StoreResult<Vec<Due>>;

    /// Open rows `waiting` or `retry` after a place in their order and due up to `horizon`, whose agent can be reached from
    /// this node: it has a session here, or its transport is not a stream and it is for this node to send: its action's
    /// owner does, or, if that has no sender for the transport, the first of the nodes that have one. In order of
    /// (due time, action, agent).
    async fn command_due(
        &self,
        after: DueCursor,
        horizon: Timestamp,
        limit: usize,
    ) -> StoreResult<Vec<(Due, Arc<str>)>>;

    /// Those of these agents that have open rows `waiting` or `retry` that are due, of actions that go on.
    async fn agent_with_due(&self, agent_nos: &[i64]) -> StoreResult<Vec<i64>>;

    /// Transports that no node has a sender for, and how many due commands wait for one; counted up to `limit` in all.
    async fn command_unserved(&self, limit: usize) -> StoreResult<Vec<(String, i64)>>;

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
    async fn agent_enroll(&self, agent: &NewAgent, token_hash: Vec<u8>, by: &Author) -> StoreResult<Enrolled> {
        self.agent_enroll_once(agent, token_hash, None, by).await
    }

    /// The same under a nonce, of which this is the hash. The agent that enrolled under it and has never used its token gets
    /// this one instead, and says anew what it is.
    async fn agent_enroll_once(
        &self,
        agent: &NewAgent,
        token_hash: Vec<u8>,
        nonce_hash: Option<Vec<u8>>,
        by: &Author,
    ) -> StoreResult<Enrolled>;

    /// Writes an agent's labels (if given), facts and version again; false when it has said just that before.
    async fn agent_refresh(
        &self,
        agent_no: i64,
        labels: Option<&std::collections::BTreeMap<String, String>>,
        facts: &serde_json::Map<String, serde_json::Value>,
        version: &str,
    ) -> StoreResult<bool>;

    /// Puts many agents in at once, without tokens.
    async fn agent_insert(&self, agents: Vec<NewAgent>) -> StoreResult<()>;

    /// An agent by its key.
    async fn agent_get(&self, agent_no: i64) -> StoreResult<Option<AgentRef>>;

    /// Says that an agent was heard of over plain HTTP just now, unless that was said within the last half minute.
    async fn agent_check_in(&self, agent_no: i64) -> StoreResult<()>;

    /// Agents by their keys, in key order.
    async fn agent_get_many(&self, agent_nos: &[i64]) -> StoreResult<Vec<AgentRef>>;

    /// Agents that match, in key order after `after`: (key, transport).
    async fn agent_match(&self, target: &Target, after: i64, limit: usize) -> StoreResult<Vec<(i64, Arc<str>)>>;

    /// How many agents match.
    async fn agent_count(&self, target: &Target) -> StoreResult<i64>;

    /// Agents as users see them, by name after `after`: those that match, or all that are not removed.
    async fn agent_list(
        &self,
        target: Option<&Target>,
        after: Option<&str>,
        limit: usize,
    ) -> StoreResult<Vec<AgentView>>;

    /// The agent of this name, as users see it.
    async fn agent_view(&self, name: &str) -> StoreResult<Option<AgentView>>;

    /// Changes an agent; answers it as it is now, with its key. `None` if there is none of this name.
    async fn agent_update(&self, name: &str, patch: &AgentPatch, by: &Author) -> StoreResult<Option<(i64, AgentView)>>;

    /// Removes an agent: it matches no more, its tokens are revoked, its name is free. Answers its key.
    async fn agent_remove(&self, name: &str, by: &Author) -> StoreResult<Option<i64>>;

    /// Removed agents whose commands are to be closed.
    async fn agent_list_leaving(&self, limit: usize) -> StoreResult<Vec<i64>>;

    /// The commands of a removed agent are closed; it is no longer listed as leaving, unless it left after `before`: a page
    /// of commands for it may still be on its way.
    async fn agent_left(&self, agent_no: i64, before: Timestamp) -> StoreResult<()>;

    /// The actions of an agent's commands that are not final.
    async fn command_unfinished_of(&self, agent_no: i64, limit: usize) -> StoreResult<Vec<i64>>;

    /// Says that this node holds these connections, one of an agent, and numbers them: each gets a higher epoch than any
    /// connection of its agent before. Answers in the order given; what is not [`Opened::As`] is not written.
    async fn session_open(&self, sessions: &[SessionOpening]) -> StoreResult<Vec<Opened>>;

    /// Compares connections that this node holds with what is written, and writes those again that are missing. Answers in
    /// the order given.
    async fn session_check(&self, held: &[SessionHeld]) -> StoreResult<Vec<SessionState>>;

    /// Says that this node no longer holds these connections: (agent, epoch), and older ones of the agent. What another
    /// node holds, and what is newer, stays.
    async fn session_close(&self, sessions: &[(i64, i64)]) -> StoreResult<()>;

    /// Writes a token.
    async fn token_insert(&self, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()>;

    /// A token that is valid now.
    async fn token_find(&self, hash: &[u8]) -> StoreResult<Option<Token>>;

    /// A token that was [never used](Token::is_unused) is now: false if it was revoked meanwhile.
    async fn token_use(&self, id: Uuid) -> StoreResult<bool>;

    /// All tokens but those of agents, newest first.
    async fn token_list(&self, after: Option<Uuid>, limit: usize) -> StoreResult<Vec<Token>>;

    /// Revokes a token, unless it is the last admin's.
    async fn token_revoke(&self, id: Uuid, by: &Author) -> StoreResult<Revoked>;

    /// Whether any admin token was ever made.
    async fn token_any_admin(&self) -> StoreResult<bool>;

    /// The audit log, newest first, before the place `before`.
    async fn audit_list(&self, before: Option<i64>, limit: usize) -> StoreResult<Vec<AuditEntry>>;

    /// Deletes up to `limit` entries from before a time; answers how many there were.
    async fn audit_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize>;

    /// Keys of actions that agents may join now: live, resolved, and neither cancelled nor expired.
    async fn action_list_live(&self) -> StoreResult<Vec<i64>>;

    /// Agents after the key `after` that a live action's target picks and that have no command of it yet, in key order;
    /// only those of `among`, if given.
    async fn agent_match_joining(
        &self,
        action_no: i64,
        target: &Target,
        among: Option<&[i64]>,
        after: i64,
        limit: usize,
    ) -> StoreResult<Vec<(i64, Arc<str>)>>;

    /// Writes a command of a live action for each of these agents that has none, with an open row; it is due now, or at the
    /// action's `valid_from` if that is later. Answers for which. None, when the action can't be joined any more.
    async fn command_insert_joining(&self, action_no: i64, agents: &[i64]) -> StoreResult<Vec<Due>>;
}

/// The file of a `sqlite://` URL.
pub fn sqlite_path(url: &str) -> Option<PathBuf> {
    url.strip_prefix("sqlite://").map(PathBuf::from)
}

/// Checks the settings of the store, and the files they name, without connecting to it.
///
/// # Errors
/// What is wrong with which key.
pub fn check(settings: &Config) -> StoreResult<()> {
    match sqlite_path(settings.store_url().expose()) {
        Some(_) => Ok(()),
        None => postgres::PostgresStore::check(settings),
    }
}

/// Writes a token into the store that the settings name, beside whatever process serves it: this one doesn't become a node. A
/// SQLite file must not be open elsewhere.
///
/// # Errors
/// When the store can't be used, or its tables are of an older version.
pub async fn token_insert_alone(settings: &Config, token: &Token, hash: Vec<u8>, by: &Author) -> StoreResult<()> {
    match sqlite_path(settings.store_url().expose()) {
        Some(path) => sqlite::SqliteStore::open(&path, 1).await?.token_insert(token, hash, by).await,
        None => postgres::PostgresStore::new(settings)?.token_insert_alone(token, hash, by).await,
    }
}

/// Opens the store that the settings name. It is to be [prepared](Store::prepare) before anything else.
///
/// # Errors
/// When it can't be used as it is. A database that is merely away is no error here.
pub async fn open(settings: &Config) -> StoreResult<Arc<dyn Store>> {
    match sqlite_path(settings.store_url().expose()) {
        Some(path) => Ok(Arc::new(sqlite::SqliteStore::open(&path, settings.store.pool_size).await?)),
        None => Ok(Arc::new(postgres::PostgresStore::new(settings)?)),
    }
}
