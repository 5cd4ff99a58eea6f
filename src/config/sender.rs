//! `[sender]`

use super::custom::CustomSections;
use super::error::{Checks, ConfigError};
use super::setting::section;
use super::{ByteSize, ServiceUrl};
use crate::domain::time::Span;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

section! {
    /// Delivery of commands to agents.
    pub struct Sender {
        /// The transports that this node serves: stream, webhook, nats, amqp, smtp, or your own.
        ///
        /// A transport of your own has its settings in a table of its name: [sender.NAME].
        enabled: Vec<String> = default_transports();
        /// HTTP requests to agents that are web services.
        webhook: Webhook = Webhook::default();
        /// Agents on a NATS JetStream cluster.
        nats: Nats = Nats::default();
        /// Agents on a RabbitMQ cluster.
        amqp: Amqp = Amqp::default();
        /// Messages by mail.
        smtp: Smtp = Smtp::default();
        skip {
            /// The settings of senders that this crate doesn't have: `[sender.NAME]`.
            custom: CustomSections;
        }
    }
}

/// Transports that need no settings.
fn default_transports() -> Vec<String> {
    let mut names = vec!["stream".to_owned()];
    if cfg!(feature = "webhook") {
        names.push("webhook".to_owned());
    }
    names
}

section! {
    /// HTTP requests to agents that are web services.
    pub struct Webhook {
        /// Maximum number of requests in flight.
        concurrency: usize = 100;
        /// Maximum number of requests in flight to one host.
        per_host: usize = 10;
        /// Timeout of one request, its answer included.
        timeout: Span = Span::secs(30);
        /// Networks that may be called although they are private, loopback or otherwise special,
        /// such as "10.0.0.0/8".
        allow: Vec<String> = Vec::new();
    }
}

impl Webhook {
    /// The networks of `allow`.
    ///
    /// # Errors
    /// The first entry that is no network.
    pub fn networks(&self) -> Result<Vec<IpNet>, String> {
        let parse = |entry: &String| {
            let network = entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| entry.clone())
        };
        self.allow.iter().map(parse).collect()
    }
}

section! {
    /// Agents on a NATS JetStream cluster.
    pub struct Nats {
        /// The URL of the cluster: nats:// or, with TLS, tls://. It may name several hosts, separated by commas, and hold a
        /// login, user:password@, with special characters percent-encoded.
        url: Option<ServiceUrl> = None, example "nats://localhost:4222";
        /// A file with the server's credentials (a JWT and the seed of its key), instead of a login in the URL.
        credentials_file: Option<PathBuf> = None, example "/etc/odoshi/nats.creds";
        /// For tls:// a file with the authorities to trust (PEM), instead of the system's.
        ca_file: Option<PathBuf> = None, example "/etc/odoshi/ca.pem";
        /// The number of servers that keep each message, in a cluster. Used when the streams are made.
        replicas: usize = 1;
        /// Maximum size of the stream of commands, and of the one of results. Used when they are made. Beyond it, commands
        /// wait in the server, and results at the agents.
        max_bytes: ByteSize = ByteSize::mib(1024);
    }
}

section! {
    /// Agents on a RabbitMQ cluster.
    pub struct Amqp {
        /// The URL of the cluster: amqp:// or, with TLS, amqps://, and a virtual host. It may hold a login,
        /// user:password@, with special characters percent-encoded.
        url: Option<ServiceUrl> = None, example "amqp://localhost:5672/%2f";
        /// A file with the password of the URL's user, or of odoshi if it names none, and nothing else.
        password_file: Option<PathBuf> = None, example "/etc/odoshi/amqp.password";
        /// For amqps:// a file with the authorities to trust (PEM), beside the system's.
        ca_file: Option<PathBuf> = None, example "/etc/odoshi/ca.pem";
        /// Maximum size of the queue of one agent. Used when the queue is made. Beyond it, commands wait in the
        /// server.
        max_bytes: ByteSize = ByteSize::mib(64);
    }
}

section! {
    /// Messages by mail.
    pub struct Smtp {
        /// The URL of the mail server. smtps:// speaks TLS from the start. smtp:// speaks no TLS,
        /// with ?tls=required only after STARTTLS, with ?tls=opportunistic if the server offers it.
        url: Option<ServiceUrl> = None, example "smtp://localhost:25";
        /// A file with the password of the URL's user and nothing else.
        password_file: Option<PathBuf> = None, example "/etc/odoshi/smtp.password";
        /// The sender's address.
        from: Option<String> = None, example "Odoshi <odoshi@example.com>";
        /// Maximum number of connections to the mail server.
        concurrency: usize = 4;
        /// Timeout of one mail.
        timeout: Span = Span::secs(60);
    }
}

/// The transports of this crate, and whether this build has them.
const BUILT_IN: [(&str, bool); 5] = [
    ("stream", true),
    ("webhook", cfg!(feature = "webhook")),
    ("nats", cfg!(feature = "nats")),
    ("amqp", cfg!(feature = "amqp")),
    ("smtp", cfg!(feature = "smtp")),
];

impl Sender {
    /// The section `[sender.NAME]` of a sender of your own; as if it were empty if there is none.
    ///
    /// # Errors
    /// If it can't be read as `T`. The error names the key, such as `sender.slack.url`.
    pub fn custom<T: DeserializeOwned>(&self, name: &str) -> Result<T, ConfigError> {
        self.custom.read(name)
    }

    /// See [`Config::check_senders`](super::Config::check_senders).
    pub(super) fn check(&self, registered: &[&str]) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        for name in &self.enabled {
            let message = match BUILT_IN.iter().find(|(built_in, _)| built_in == name) {
                _ if registered.contains(&name.as_str()) => continue,
                Some((_, true)) => continue,
                Some(_) => format!("holds \"{name}\", which this build leaves out (the cargo feature {name})"),
                None => format!("holds \"{name}\", for which there is no sender"),
            };
            checks.that("sender.enabled", false, message);
        }
        for name in self.custom.names() {
            let known = registered.contains(&name);
            checks.that(&format!("sender.{name}"), known, "is not a setting: there is no sender of this name");
        }
        checks.into_result()
    }

    pub(super) fn validate(&self, checks: &mut Checks) {
        let mut seen = HashSet::new();
        for name in &self.enabled {
            let fine = !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
            checks.that("sender.enabled", fine, format!("holds \"{name}\", which is not made of a-z, 0-9, _ and -"));
            checks.that("sender.enabled", seen.insert(name), format!("holds \"{name}\" twice"));
        }
        self.custom.validate(checks);
        checks.count("sender.webhook.concurrency", self.webhook.concurrency, 100_000);
        checks.count("sender.webhook.per_host", self.webhook.per_host, 100_000);
        if let Err(entry) = self.webhook.networks() {
            checks.that(
                "sender.webhook.allow",
                false,
                format!("holds {entry:?}, which is no network such as 10.0.0.0/8"),
            );
        }
        checks.count("sender.smtp.concurrency", self.smtp.concurrency, 1_000);
        checks.duration("sender.smtp.timeout", self.smtp.timeout, Span::secs(3600));
        checks.duration("sender.webhook.timeout", self.webhook.timeout, Span::secs(3600));
        checks.count("sender.nats.replicas", self.nats.replicas, 5);
        let room = self.nats.max_bytes >= ByteSize::mib(16);
        checks.that("sender.nats.max_bytes", room, "must be at least 16MiB");
        let room = self.amqp.max_bytes >= ByteSize::mib(16);
        checks.that("sender.amqp.max_bytes", room, "must be at least 16MiB");
        let services: [(&str, &str, &[&str], &Option<ServiceUrl>); 3] = [
            ("nats", "sender.nats.url", &["nats", "tls"], &self.nats.url),
            ("amqp", "sender.amqp.url", &["amqp", "amqps"], &self.amqp.url),
            ("smtp", "sender.smtp.url", &["smtp", "smtps"], &self.smtp.url),
        ];
        for (name, key, schemes, url) in services {
            let needed = self.enabled.iter().any(|enabled| enabled == name);
            checks.that(key, url.is_some() || !needed, format!("is needed, since sender.enabled holds \"{name}\""));
            if let Some(url) = url {
                let fine = schemes.contains(&url.scheme()) && !url.rest().is_empty();
                checks.that(key, fine, format!("must be a URL that begins with {}://", schemes.join(":// or ")));
            }
        }
        let mails = self.enabled.iter().any(|enabled| enabled == "smtp");
        let from = self.smtp.from.as_deref().unwrap_or_default();
        checks.that(
            "sender.smtp.from",
            !mails || self.smtp.from.is_some(),
            "is needed, since sender.enabled holds \"smtp\"",
        );
        let is_plain = !from.contains(char::is_control);
        checks.that("sender.smtp.from", is_plain, "must be one line");
    }
}
