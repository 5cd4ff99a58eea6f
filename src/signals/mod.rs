//! The signal board: the one place that decides who is woken by what.
//!
//! [`Signals`] has a method for each thing that can happen, in the domain's words. It holds recipients of messages and no
//! actor types, so every layer above can use it. Beside it live the caches and lists that a signal touches: the actions in
//! memory ([`ActionCache`]), agents connected here ([`Presence`]), watchers ([`CommitWatch`]), waiting HTTP calls
//! ([`LongPollers`]), keys that wait for a reconciler ([`DirtyKeys`]) and the open actions as they were read last
//! ([`OpenActions`]). [`PeerNotifier`] tells other nodes, and passes on what they tell.
//!
//! Every signal is a hint: it may be lost, and whoever waits for it polls the store as well.

mod action_cache;
mod board;
mod commit_watch;
mod dirty_keys;
mod long_polls;
mod messages;
mod open_actions;
mod peers;
mod presence;

pub use action_cache::ActionCache;
pub use board::{Board, SchedulerInbox, Signals, StreamInbox};
pub use commit_watch::CommitWatch;
pub use dirty_keys::{Dirty, DirtyKeys};
pub use long_polls::{LongPoll, LongPollers};
pub use messages::{
    AgentDisabled, BacklogChanged, Cancelled, OpenActionsRead, PeerNews, Publish, Rescheduled, Resumed,
    SessionSuperseded,
};
pub use open_actions::{OpenActions, Snapshot};
pub use peers::PeerNotifier;
pub use presence::Presence;
