//! What the server counts and measures of its own work, and which work keeps failing.

mod progress;
mod registry;

pub use progress::{Progress, Stalled};
pub use registry::{ActorGauge, Metrics};
