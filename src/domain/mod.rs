//! The domain as plain data and pure functions: no runtime, no store, no network.

pub mod action;
pub mod agent;
pub mod audit;
pub mod batch;
pub mod broker;
pub mod command;
pub mod counts;
pub mod delay;
pub(crate) mod fit;
pub mod hint;
pub mod hook;
pub mod json;
pub mod metadata;
pub mod problem;
pub mod protocol;
pub mod schedule;
pub mod stride;
pub mod target;
pub mod text;
pub mod time;
