//! `[sender]`

use super::error::Checks;
use super::setting::section;
use super::{ByteSize, ServiceUrl};
use crate::domain::time::Span;
use std::collections::HashSet;
use std::path::PathBuf;

section! {
    /// Delivery of commands to agents.
    pub struct Sender {
        /// The transports that this node serves: stream, webhook, nats, amqp, smtp, or your own.
        enabled: Vec<String> = vec!["stream".into(), "webhook".into()];
        /// HTTP requests to agents that are web services.
        webhook: Webhook = Webhook::default();
        /// Agents on a NATS JetStream cluster.
        nats: Nats = Nats::default();
        /// Agents on a RabbitMQ cluster.
        amqp: Amqp = Amqp::default();
        /// Messages by mail.
        smtp: Smtp = Smtp::default();
    }
}

section! {
    /// HTTP requests to agents that are web services.
    pub struct Webhook {
        /// Maximum number of requests in flight.
        concurrency: usize = 100;
        /// Timeout of one request.
        timeout: Span = Span::secs(10);
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
        /// The URL of the cluster.
        url: Option<ServiceUrl> = None, example "amqp://localhost:5672/%2f";
    }
}

section! {
    /// Messages by mail.
    pub struct Smtp {
        /// The URL of the mail server.
        url: Option<ServiceUrl> = None, example "smtp://localhost:25";
    }
}

impl Sender {
    pub(super) fn validate(&self, checks: &mut Checks) {
        let mut seen = HashSet::new();
        for name in &self.enabled {
            let fine = !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
            checks.that("sender.enabled", fine, format!("holds \"{name}\", which is not made of a-z, 0-9, _ and -"));
            checks.that("sender.enabled", seen.insert(name), format!("holds \"{name}\" twice"));
        }
        checks.count("sender.webhook.concurrency", self.webhook.concurrency, 100_000);
        checks.duration("sender.webhook.timeout", self.webhook.timeout, Span::secs(3600));
        checks.count("sender.nats.replicas", self.nats.replicas, 5);
        let room = self.nats.max_bytes >= ByteSize::mib(16);
        checks.that("sender.nats.max_bytes", room, "must be at least 16MiB");
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
    }
}
