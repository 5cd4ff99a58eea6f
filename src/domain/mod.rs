//! What Odoshi is about, as plain data and pure functions: no runtime, no store, no network.

pub mod problem;
pub mod protocol;
pub mod target;
pub mod time;
