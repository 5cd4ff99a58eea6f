//! The root of the settings.

use super::delay::Delay;
use super::error::{Checks, ConfigError};
use super::hook::{self, Hook};
use super::http::Http;
use super::metadata::Metadata;
use super::node::Node;
use super::resolver::Resolver;
use super::retention::Retention;
use super::sender::Sender;
use super::service_url::ServiceUrl;
use super::setting::{Key, Setting, section};
use super::spool::Spool;
use super::store::Store;
use super::supervision::Supervision;
use crate::domain::hook::Listener;
use crate::domain::time::Span;
use std::path::PathBuf;

section! {
    /// Settings of the Odoshi server.
    ///
    /// Each key can also be given as an environment variable: ODOSHI__HTTP__LISTEN, ODOSHI__STORE__BATCH__MAX_ITEMS.
    /// Durations are a number and a unit: 20ms, 30s, 5m, 2h, 7d, or several in a row. Sizes: 512KiB, 4MiB, 1GiB.
    pub struct Config {
        /// The folder for the server's own files: the SQLite database, the spool and the first
        /// admin token.
        data_dir: PathBuf = "odoshi-data".into();
        /// How long a stop waits for work in flight. The rest then goes back to the store.
        shutdown_timeout: Span = Span::secs(30);
        /// The HTTP API, and the agents' connections.
        http: Http = Http::default();
        /// The database.
        store: Store = Store::default();
        /// The folder that takes actions as files.
        spool: Spool = Spool::default();
        /// Finding the agents of an action.
        resolver: Resolver = Resolver::default();
        /// Commands that wait in memory until they are due.
        delay: Delay = Delay::default();
        /// Delivery of commands to agents.
        sender: Sender = Sender::default();
        /// The newest values that agents report.
        metadata: Metadata = Metadata::default();
        /// This process as one of the nodes that share the store.
        node: Node = Node::default();
        /// What happens when a part of the server fails.
        supervision: Supervision = Supervision::default();
        /// How long things are kept.
        retention: Retention = Retention::default();
        /// Addresses that are told when something happened; one table for each. They can be given
        /// in the file only.
        hook: Vec<Hook> = Vec::new();
    }
}

impl Config {
    /// All keys in the order of the sample, each section before its keys.
    pub fn keys() -> Vec<Key> {
        let mut keys = Vec::new();
        <Self as Setting>::inner_keys("", &mut keys);
        keys
    }

    /// Checks all values. The error lists the invalid ones, each with its key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        checks.that("data_dir", !self.data_dir.as_os_str().is_empty(), "must not be empty");
        checks.at_most("shutdown_timeout", self.shutdown_timeout, Span::days(1));
        self.http.validate(&mut checks);
        self.store.validate(&mut checks);
        self.spool.validate(&mut checks);
        self.resolver.validate(&mut checks);
        self.delay.validate(&mut checks);
        self.sender.validate(&mut checks);
        self.metadata.validate(&mut checks);
        self.node.validate(&mut checks);
        self.supervision.validate(&mut checks);
        self.retention.validate(&mut checks);
        hook::validate(&self.hook, &mut checks);
        checks.into_result()
    }

    /// Checks that there is a sender for each transport in `sender.enabled` and for each section
    /// `[sender.NAME]`: one of this crate, or one of the `registered`.
    ///
    /// # Errors
    /// Those without a sender, each with its key.
    pub fn check_senders(&self, registered: &[&str]) -> Result<(), ConfigError> {
        self.sender.check(registered)
    }

    /// The database: `store.url`, or `odoshi.db` in `data_dir`.
    pub fn store_url(&self) -> ServiceUrl {
        self.store
            .url
            .clone()
            .unwrap_or_else(|| ServiceUrl::new(format!("sqlite://{}", self.data_dir.join("odoshi.db").display())))
    }

    /// The hooks as the store knows them: the events of each.
    pub fn hook_listeners(&self) -> Vec<Listener> {
        hook::listeners(&self.hook)
    }

    /// The spool: `spool.dir`, or `spool` in `data_dir`.
    pub fn spool_dir(&self) -> PathBuf {
        self.spool.dir.clone().unwrap_or_else(|| self.data_dir.join("spool"))
    }

    /// This node's name: `node.name`, or the host's name, or `localhost` if the host has none.
    pub fn node_name(&self) -> String {
        self.node.name.clone().unwrap_or_else(|| {
            let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
            host.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".into())
        })
    }
}
