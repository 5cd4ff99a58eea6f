//! A server and agents as processes, and an agent on the wire.

mod server;
mod wire;

pub use server::{AgentProcess, Server, ServerOptions, eventually};
pub use wire::WireAgent;
