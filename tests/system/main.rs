//! The whole of it, as a stranger runs it: the built binary in a process of its own, real agents, real sockets, real files.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod basics;
mod kill;
mod scale;
mod support;
