//! `[sender]`

use super::ServiceUrl;
use super::error::Checks;
use super::setting::section;
use crate::domain::time::Span;
use std::collections::HashSet;

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
        /// The URL of the cluster.
        url: Option<ServiceUrl> = None, example "nats://localhost:4222";
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
