//! What the server counts and measures of its own work, and which work keeps failing.

mod hooks;
mod metadata;
mod plain;
mod process;
mod progress;
mod registry;
mod schedules;
mod senders;

pub use hooks::{HookResult, Hooks};
pub use metadata::Metadata;
pub use plain::plain;
pub use progress::{Progress, Stalled};
pub use registry::{ActorGauge, Metrics};
pub use schedules::Schedules;
pub use senders::{DeliveryResult, SenderReport, SenderStatus, Senders};
