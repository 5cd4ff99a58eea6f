//! One server process: how it is built, wired, started, run and drained.

mod builder;
mod error;
mod extension;
mod open_files;
mod registration;
mod running;
mod startup;
mod systemd;
mod transports;
mod wiring;

pub use builder::{Builder, Odoshi, check, check_settings};
pub use error::AppError;
pub use extension::ActorContext;
pub use running::Running;
pub use startup::reset_admin_token;
