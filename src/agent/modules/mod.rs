//! The agent's capabilities. A module is one implementation of [`Module`] and one line in
//! [`Modules::new`], or a call of [`Modules::with`] in your own program. Each executable in the
//! modules folder is a module too ([`external`]).

mod bare;
mod environment;
pub mod exec;
mod explain;
pub mod external;
mod module;
pub mod ping;
mod process;
mod registry;
mod stop;
#[cfg(test)]
pub(super) mod testing;

pub(super) use bare::run_bare;
pub use module::{Call, Module, Outcome};
pub use registry::Modules;
pub use stop::{Stop, StopReason};
