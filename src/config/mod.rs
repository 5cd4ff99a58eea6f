//! Settings and their defaults.
//!
//! One file per section. The macro `section!` makes the section's struct from one list of keys,
//! docs and defaults. The sample file `config/odoshi.toml` and the check for unknown keys are made
//! from the same list, so they always agree. [`Config::load`] merges file < environment
//! (`ODOSHI__SECTION__KEY`) < command-line flags.

mod custom;
mod delay;
mod error;
mod hook;
mod hook_url;
mod http;
mod load;
mod metadata;
mod node;
mod render;
mod resolver;
mod retention;
mod root;
mod sender;
mod service_url;
mod setting;
mod size;
mod spool;
mod store;
mod supervision;
#[cfg(test)]
mod tests;

pub use custom::CustomSections;
pub use delay::Delay;
pub use error::{ConfigError, Fault};
pub use hook::Hook;
pub use hook_url::HookUrl;
pub use http::{Http, Tls};
pub use metadata::Metadata;
pub use node::Node;
pub use resolver::Resolver;
pub use retention::Retention;
pub use root::Config;
pub use sender::{Amqp, Nats, Sender, Smtp, Webhook};
pub use service_url::ServiceUrl;
pub use setting::{Key, Kind};
pub use size::ByteSize;
pub use spool::Spool;
pub use store::{Batch, Store};
pub use supervision::Supervision;
