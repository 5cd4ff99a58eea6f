//! A server and agents as processes, and an agent on the wire.

mod server;
mod sql;
mod wire;

pub use server::{AgentProcess, Server, ServerOptions, eventually};
pub use sql::Sql;
pub use wire::WireAgent;
