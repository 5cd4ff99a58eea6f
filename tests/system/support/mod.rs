//! A server and agents as processes, many agents in this process, and an agent on the wire.

mod fleet;
mod server;
mod sql;
mod wire;

pub use fleet::Fleet;
pub use server::{AgentProcess, On, Server, ServerOptions, eventually};
pub use sql::Sql;
pub use wire::{WireAgent, success};
