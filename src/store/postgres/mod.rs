//! The store on PostgreSQL, for many nodes.
//!
//! Batches are inserted by `INSERT … SELECT FROM UNNEST` of one array per column: one statement
//! whatever their size. Commands and outcomes are inserted plainly, in the order of their primary
//! key, which is their only index; a batch that meets a duplicate is done again the careful way.
//!
//! One file per aggregate, with the trait's implementation and its functions on a connection. What
//! they stand on: `store` and `inner` (the store, its connections and state), `transaction`
//! (what every call goes through), `pools`, `connect` and `link` (connections), `outcomes`
//! (how nodes stay out of each other's way), `nodes` and `heartbeat` (which nodes are alive).

mod actions;
mod agents;
mod audit;
mod clock;
mod commands;
mod connect;
mod contract;
mod counts;
mod dispatch;
mod error;
mod heartbeat;
mod hints;
mod hooks;
mod inner;
mod link;
mod live;
mod long_transactions;
mod metadata;
mod migrate;
mod nodes;
mod occurrences;
mod outcomes;
mod pools;
mod retention;
mod schedules;
mod scratch;
mod sessions;
mod silence;
mod store;
mod tap;
mod tls;
mod tokens;
mod transaction;

pub use scratch::Scratch;
pub use store::PostgresStore;
