//! A server and agents as processes, many agents in this process, and an agent on the wire.

mod agent_process;
mod balancer;
mod fleet;
#[cfg(feature = "nats")]
pub mod nats;
mod operator;
mod proxy;
#[cfg(feature = "amqp")]
pub mod rabbit;
mod server;
mod slots;
mod sql;
mod wait;
mod wire;

pub use agent_process::AgentProcess;
pub use balancer::Balancer;
pub use fleet::Fleet;
pub use operator::Operator;
pub use proxy::{Line, Proxy};
pub use server::{On, Server, ServerOptions, SmallDisk, program};
pub use slots::mostly_waits;
pub use sql::Sql;
pub use wait::{PATIENCE, by_length, eventually, until_reached};
pub use wire::{WireAgent, success};
