//! The use cases, one file per resource: the work behind HTTP, the spool and schedules.
//!
//! A use case takes plain values, calls the store, and signals what has changed. The caller checks
//! permissions. The author of a change is recorded with it.

pub mod actions;
pub mod agents;
pub mod check_in;
mod error;
pub mod fleet;
pub mod metadata;
pub mod schedules;
pub mod targets;
pub mod tokens;

pub use error::{ServiceError, ServiceResult};
