//! The store on SQLite: one embedded file, for one node.
//!
//! One file per aggregate, with the trait's implementation and its functions on a connection;
//! `store` has the connections. Rows go in and keys come in as one bound JSON array that
//! `json_each` takes apart: a batch is one statement whatever its size.

mod actions;
mod agents;
mod audit;
mod commands;
mod contract;
mod counts;
mod dispatch;
mod error;
mod functions;
mod hints;
mod hooks;
mod live;
mod metadata;
mod nodes;
mod occurrences;
mod outcomes;
mod retention;
mod schedules;
mod sessions;
mod store;
mod threads;
mod tokens;

pub use store::SqliteStore;
