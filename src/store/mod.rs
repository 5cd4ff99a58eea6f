//! The store: the durable state of everything. Memory is a cache of it.
//!
//! [`Store`] is the contract: one trait per aggregate, each in a file of its own, with the types
//! that its methods take and return. Two databases implement it, each in a folder with the same
//! file names: [`sqlite`], embedded, for one node, and [`postgres`], for many. The conformance
//! suite (`tests/store_conformance`) tests the contract on both.
//!
//! What do we store? An *action* is a row that is updated a few times. Its *commands* are rows that
//! are inserted in key order and never touched again; so are *outcomes*, one for each run that
//! ended, whose key decides who was first. Only the exceptions (agent away, to be tried again,
//! slow) have a row that changes, in *open commands*. A command's state is its last final outcome,
//! else `sent` if its open row says so, else `pending`. Counters are kept in the transaction of the
//! rows that they count, by lanes that readers sum.
//!
//! Every change by an operator has an entry in the audit log, in the same transaction (`by` is who
//! did it). Texts hold no NUL character, which PostgreSQL can't store: the domain removes it where
//! texts come in.

mod actions;
mod agents;
mod audit;
mod changes;
mod commands;
mod contract;
mod dispatch;
mod error;
mod hints;
mod hooks;
mod live;
mod metadata;
mod nodes;
mod open;
mod outcomes;
pub mod postgres;
mod retention;
mod schedules;
mod sessions;
mod sql;
pub mod sqlite;
mod tokens;

pub use actions::{Accepted, ActionView, Actions, OpenAction, Resolution, Unresolved};
pub use agents::{AgentPatch, AgentView, Agents, Among, Enrolled, Found, Matching, NewAgent, Part, Said};
pub use audit::Audit;
pub use commands::{AgentNames, CommandPage, CommandView, Commands, Inserted, Unfinished};
pub use contract::Store;
pub use dispatch::{Dispatch, Due, DueCursor, DuePage, StrayPage, UndispatchedPage};
pub use error::{SqlState, StoreError, StoreResult};
pub use hints::Hints;
pub use hooks::{HookClaim, HookOutcome, HookView, HookWanted, Hooks};
pub use live::Live;
pub use metadata::{AgentMetadata, Metadata, MetadataPage, MetadataView, NewValues, Seen};
pub use nodes::{NodeView, Nodes};
pub use open::{check, open, sqlite_path, token_insert_alone};
pub use outcomes::{Outcomes, Report};
pub use retention::Retention;
pub use schedules::{
    DueSchedule, Made, MadeOccurrence, NewSchedule, NextOccurrence, OccurrenceView, Planned, Planner, ScheduleTag,
    ScheduleView, Schedules, Triggered,
};
pub use sessions::{Opened, SessionHeld, SessionOpening, SessionState, Sessions};
pub use tokens::{Holder, Revoked, Tokens};
