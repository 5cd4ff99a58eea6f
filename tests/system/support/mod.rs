//! A server and agents as processes, many agents in this process, and an agent on the wire.

mod balancer;
mod fleet;
mod proxy;
mod server;
mod sql;
mod wire;

pub use balancer::Balancer;
pub use fleet::Fleet;
pub use proxy::{Line, Proxy};
pub use server::{AgentProcess, On, Server, ServerOptions, SmallDisk, eventually, program};
pub use sql::Sql;
pub use wire::{WireAgent, success};
