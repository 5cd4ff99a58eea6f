//! The use cases, one file per resource: what HTTP, the spool and later schedules do, each in one place.
//!
//! A use case takes plain values, asks the store, and tells the signals what has changed. Who may call it is for the caller to
//! check; who did it is written down with the change.

pub mod actions;
pub mod agents;
pub mod check_in;
mod error;
pub mod targets;
pub mod tokens;

pub use error::{ServiceError, ServiceResult};
