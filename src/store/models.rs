//! What goes into the store's methods and comes out of them.

use crate::domain::action::{ActionState, Policy};
use crate::domain::agent::{AgentRef, Enrollment};
use crate::domain::command::{CommandState, Event};
use crate::domain::counts::Counts;
use crate::domain::protocol::OperationResult;
use crate::domain::time::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use uuid::Uuid;

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
        is_new: bool,
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
    /// Not delivered before this.
    pub valid_from: Timestamp,
    /// Not delivered from this on.
    pub expires_at: Timestamp,
    /// Agents may join it until it expires.
    pub live: bool,
    /// This node writes down whose agents are away, and sends what isn't a stream.
    pub owned: bool,
    /// All its commands are written.
    pub resolved: bool,
    /// A user ended it.
    pub cancelled: bool,
    /// A user paused it.
    pub paused: bool,
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

/// A command that is to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The action's key.
    pub action_no: i64,
    /// The agent's key.
    pub agent_no: i64,
    /// Which run.
    pub run: i32,
    /// Failed delivery attempts of this run so far.
    pub attempts: i32,
    /// When.
    pub due_at: Timestamp,
    /// Higher goes first.
    pub priority: i32,
    /// Whether the store has an open row for it.
    pub open: bool,
}

/// A place in the order in which open rows fall due: (due time, action, agent).
pub type DueCursor = (Timestamp, i64, i64);

/// A page of an action's commands that have neither outcome nor open row.
#[derive(Clone, Debug, Default)]
pub struct UndispatchedPage {
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
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// One per operation that was started.
    pub results: Option<Vec<OperationResult>>,
    /// Why it did not go well.
    pub error: Option<String>,
}

/// An agent as users see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AgentView {
    /// Its unique name.
    pub name: String,
    /// `online`: a session on a live node, or a check-in within two minutes; else `offline`.
    pub status: &'static str,
    /// How commands reach it.
    pub transport: String,
    /// Where, if the transport needs to know.
    pub address: Option<String>,
    /// What operators say of it.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Box<RawValue>,
    /// What it says of itself.
    #[schema(value_type = Object)]
    pub facts: Box<RawValue>,
    /// Of the agent program; empty before it has said so.
    pub version: String,
    /// When it was enrolled or added.
    pub enrolled_at: Timestamp,
    /// When it was last heard of; `None` before the first contact.
    pub last_seen: Option<Timestamp>,
    /// Gets nothing while it is.
    pub disabled: bool,
}

/// A node as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct NodeView {
    /// What its settings call it.
    pub name: String,
    /// Its process; another one at each start.
    pub incarnation: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it last said that it lives, by the database's clock.
    pub heartbeat: Timestamp,
    /// Whether the answering node has seen another heartbeat of it within `node.dead_after`, by its own clock.
    pub alive: bool,
    /// Agents that are connected to it.
    pub agents: i64,
    /// What it has senders for.
    pub transports: Vec<String>,
}

/// What is to be changed about an agent; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct AgentPatch {
    /// Labels to be set, or (`None`) taken away; others stay.
    pub labels: BTreeMap<String, Option<String>>,
    /// Where it is, or that this is not known.
    pub address: Option<Option<String>>,
    /// Whether it gets nothing.
    pub disabled: Option<bool>,
}

impl AgentPatch {
    /// What is changed, in words.
    pub(super) fn told(&self) -> String {
        let labels = self.labels.iter().map(|(key, value)| match value {
            Some(value) => format!("labels.{key} = {value:?}"),
            None => format!("labels.{key} taken away"),
        });
        let address = self.address.iter().map(|address| match address {
            Some(address) => format!("address = {address:?}"),
            None => "address taken away".to_owned(),
        });
        let disabled = self.disabled.iter().map(|disabled| format!("disabled = {disabled}"));
        labels.chain(address).chain(disabled).collect::<Vec<_>>().join(", ")
    }

    /// The labels after the change.
    pub(super) fn labels_after(&self, mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        for (key, value) in &self.labels {
            match value {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key),
            };
        }
        labels
    }
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
    /// What signs the webhooks that go to it.
    pub secret: Option<String>,
}

/// What became of revoking a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It is revoked, or was before.
    Done,
    /// There is none with this id.
    Unknown,
    /// It is not: it is [the last of an admin](crate::domain::agent::Token::is_last_admin).
    LastAdmin,
}

/// What became of an enrolling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// There is such an agent now, with this token.
    New(AgentRef),
    /// The name is taken.
    Taken,
}
