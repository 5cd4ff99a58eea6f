//! What the server counts, measures and knows of its own work.

mod progress;
mod registry;

pub use progress::{Progress, Stalled};
pub use registry::{ActorGauge, Metrics};
