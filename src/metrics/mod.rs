//! What the server counts and measures of its own work, and which work keeps failing.

mod progress;
mod registry;
mod senders;

pub use progress::{Progress, Stalled};
pub use registry::{ActorGauge, Metrics};
pub use senders::{DeliveryResult, SenderReport, SenderStatus, Senders};
