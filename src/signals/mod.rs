//! The signal board: the one place that decides which parts an event wakes.
//!
//! [`Signals`] has a method for each event, in the domain's words. It holds recipients of messages
//! and no actor types, so every layer above can use it. Beside it live the caches and lists that a
//! signal touches: the actions in memory ([`ActionCache`]), agents connected here ([`Presence`]),
//! watchers ([`ProgressWatch`], [`MetadataWatch`]), waiting HTTP calls ([`LongPollers`]), keys that wait for a
//! reconciler ([`DirtyKeys`]) and the latest reading of the open actions ([`OpenActions`]).
//! [`PeerNotifier`] sends hints to other nodes and passes on theirs.
//!
//! Every signal is a hint. It may be lost, so its receiver polls the store as well.

mod action_cache;
mod board;
mod dirty_keys;
mod long_polls;
mod messages;
mod metadata_watch;
mod open_actions;
mod peers;
mod presence;
mod progress_watch;
mod report_pace;

pub use action_cache::ActionCache;
pub use board::{Board, SchedulerInbox, Signals, StreamInbox};
pub use dirty_keys::{Dirty, DirtyByAction, DirtyKeys};
pub use long_polls::{LongPoll, LongPollers};
pub use messages::{
    AgentDisabled, BacklogChanged, Cancelled, MetadataWritten, OpenActionsRead, OutcomesRecorded, PeerNews, Publish,
    RecordedOutcome, Rescheduled, Resumed, SessionSuperseded,
};
pub use metadata_watch::{LiveKeys, MANY, MetadataNews, MetadataWatch, Reported};
pub use open_actions::{OpenActions, Snapshot};
pub use peers::PeerNotifier;
pub use presence::Presence;
pub use progress_watch::{ProgressWatch, Seen, Watched};
pub use report_pace::ReportPace;
