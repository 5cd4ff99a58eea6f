//! Delivers commands as signed HTTP requests.

use super::answer::{Verdict, judge};
use super::client::{ClientSettings, WebhookClient};
use super::guard::Guard;
use super::sign::{SigningKeys, message_id};
use crate::config;
use crate::domain::audit::Author;
use crate::domain::protocol::Command;
use crate::error_chain::ErrorChain;
use crate::senders::contract::{Delivery, Outcome, SenderContext};
use crate::senders::pooled::{Limits, Transport};
use crate::senders::run_id::run_id;
use crate::store::{AgentPatch, StoreError};
use async_trait::async_trait;
use ipnet::IpNet;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How much later the machinery gives a delivery up than the client does, whose error says more.
const GRACE: Duration = Duration::from_secs(5);
/// Maximum number of commands that wait here for one host. Others stay with the scheduler.
const QUEUE: usize = 2_000;
/// The module of the result of an action with several operations.
const MODULE: &str = "webhook";

/// Makes the client of the webhook sender.
///
/// # Errors
/// If TLS can't be set up, or `sender.webhook.allow` holds something that is no network.
pub(crate) fn client(settings: &config::Webhook) -> Result<WebhookClient, String> {
    WebhookClient::new(&ClientSettings { allow: networks(settings)?, idle_per_host: settings.per_host })
}

/// Whether requests to this URL are refused whatever its name resolves to, and why.
///
/// # Errors
/// The reason.
pub(crate) fn check_url(settings: &config::Webhook, url: &str) -> Result<(), String> {
    Guard::new(&networks(settings)?).check_constant(url).map_err(|refusal| refusal.to_string())
}

fn networks(settings: &config::Webhook) -> Result<Vec<IpNet>, String> {
    settings.networks().map_err(|entry| format!("sender.webhook.allow: {entry:?} is no network"))
}

/// The transport of agents that are web services.
pub(crate) struct Webhook {
    context: SenderContext,
    client: WebhookClient,
    settings: config::Webhook,
}

/// What is posted: the command and the agent's name.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    command: Command,
    agent: &'a str,
}

/// An operation without its parameters.
#[derive(Deserialize)]
struct Named {
    module: String,
}

impl Webhook {
    pub(crate) fn new(context: SenderContext, client: WebhookClient) -> Self {
        let settings = context.node().config.sender.webhook.clone();
        Self { context, client, settings }
    }

    /// Disables an agent that answers that it is gone.
    async fn disable(&self, delivery: &Delivery) -> Result<(), StoreError> {
        let (store, agent) = (&self.context.store, &delivery.agent);
        // Another agent may have the name by now.
        if store.agent_get(agent.no).await?.is_none() {
            return Ok(());
        }
        let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
        if let Some((no, _)) = store.agent_update(&agent.name, &patch, &Author::server("webhook")).await? {
            let signals = &self.context.node().signals;
            signals.agent_changed(no);
            signals.agent_disabled(no);
            log::warn!(agent = agent.name.as_str(); "an agent is disabled, since its webhook answered 410 Gone");
        }
        Ok(())
    }
}

fn failed(error: impl Into<String>) -> Outcome {
    Outcome::Failed { error: error.into(), results: Vec::new() }
}

/// The module of the only operation, which the result is of.
fn module_of(operations: &str) -> String {
    match serde_json::from_str::<Vec<Named>>(operations) {
        Ok(mut operations) if operations.len() == 1 => operations.remove(0).module,
        _ => MODULE.to_owned(),
    }
}

/// `host:port` of an address.
fn host_of(address: &str) -> Option<String> {
    let url = Url::parse(address).ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

#[async_trait]
impl Transport for Webhook {
    fn limits(&self) -> Limits {
        Limits {
            concurrency: self.settings.concurrency,
            per_group: self.settings.per_host,
            queue: QUEUE,
            timeout: self.settings.timeout.0 + GRACE,
        }
    }

    fn group(&self, delivery: &Delivery) -> Arc<str> {
        delivery.agent.address.as_deref().and_then(host_of).unwrap_or_default().into()
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let agent = &delivery.agent;
        let Some(address) = &agent.address else { return failed("the agent has no address") };
        let Some(secret) = &agent.secret else { return failed("the agent has no secret that signs its webhooks") };
        let keys = match SigningKeys::parse(secret.reveal()) {
            Ok(keys) => keys,
            Err(error) => return failed(error.to_string()),
        };
        let command = delivery.command();
        let id = message_id(run_id(command.action, &agent.name, command.run));
        let body = match serde_json::to_vec(&Body { command, agent: &agent.name }) {
            Ok(body) => body,
            Err(error) => return failed(format!("the command can't be written as JSON: {error}")),
        };
        let headers = keys.headers(&id, self.context.store.now().0 / 1_000, &body);
        let answer = self.client.post(address, headers, body, self.settings.timeout.0).await;
        let module = module_of(delivery.action.operations.get());
        match judge(answer, &module, chrono::Utc::now()) {
            Verdict::Done(result) => Outcome::Succeeded(vec![result]),
            Verdict::Received => Outcome::Received,
            Verdict::Refused(error) => failed(error),
            Verdict::Gone(error) => match self.disable(delivery).await {
                Ok(()) => failed(error),
                Err(error) => {
                    let error = format!("the agent answered 410 Gone and could not be disabled: {}", error.chain());
                    Outcome::AttemptFailed { error, retry_after: None }
                }
            },
            Verdict::Again { error, retry_after } => Outcome::AttemptFailed { error, retry_after },
            Verdict::Unreachable(error) => Outcome::Unreachable { error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::protocol::Operations;
    use crate::domain::time::Timestamp;
    use serde_json::{Value, json};
    use uuid::Uuid;

    #[test]
    fn the_body_is_the_command_and_the_agents_name() {
        let operations = r#"[{"module":"ping","parameters":{"n":12345678901234567890123,"x":1.10}}]"#;
        let command = Command {
            action: Uuid::nil(),
            run: 1,
            attempt: 2,
            name: "n".into(),
            operations: Operations::from_json(operations.into()).expect("JSON"),
            priority: 3,
            timeout_ms: 4,
            expires_at: Timestamp(0),
            scheduled_for: None,
        };
        let text = serde_json::to_string(&Body { command: command.clone(), agent: "a" }).expect("JSON");
        assert!(text.contains(operations), "{text}");
        let mut body: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(body.as_object_mut().expect("an object").remove("agent"), Some(json!("a")));
        assert_eq!(body, serde_json::to_value(&command).expect("JSON"));
    }

    #[test]
    fn the_group_is_host_and_port() {
        for (address, host) in [
            ("http://EXAMPLE.com/x", Some("example.com:80")),
            ("https://user:secret@example.com", Some("example.com:443")),
            ("http://0x7f.1:81/", Some("127.0.0.1:81")),
            ("http://[::1]:8080/", Some("[::1]:8080")),
            ("nonsense", None),
        ] {
            assert_eq!(host_of(address).as_deref(), host, "{address}");
        }
    }

    #[test]
    fn the_result_is_of_the_only_module() {
        assert_eq!(module_of(r#"[{"module":"a","parameters":[1]}]"#), "a");
        assert_eq!(module_of(r#"[{"module":"a"},{"module":"b"}]"#), "webhook");
    }
}
