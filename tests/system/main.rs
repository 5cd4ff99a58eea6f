//! The whole of it, as a stranger runs it: the built binary in a process of its own, real agents, real sockets, real files.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod agent_flow;
mod agent_input;
mod basics;
mod cli;
#[cfg(feature = "failpoints")]
mod faults;
mod kill;
mod scale;
mod spool_input;
mod support;
