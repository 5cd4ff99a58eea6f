//! Add, enroll, change and remove agents.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::agent::{AgentRef, Enrollment, MAX_DESCRIPTION, STREAM, Secret, SigningSecret, hash_of};
use crate::domain::audit::Author;
use crate::domain::broker::{MAX_QUEUE_NAME, commands_to};
use crate::domain::text::{has_nul, is_mail_address};
use crate::store::{AgentPatch, AgentView, Enrolled, MetadataView, NewAgent};
use std::collections::{BTreeMap, HashMap};

/// The longest address, in bytes.
const MAX_ADDRESS: usize = 2_048;
/// Keys of metadata that a list of agents is shown with, at most.
const MAX_LISTED_KEYS: usize = 64;

/// An agent that doesn't connect to the server.
#[derive(Clone, Debug)]
pub struct AddedAgent {
    /// Unique among agents.
    pub name: String,
    /// How commands reach the agent, such as `webhook`.
    pub transport: String,
    /// The agent's address; for `webhook` an http(s) URL.
    pub address: Option<String>,
    /// Labels for targets.
    pub labels: BTreeMap<String, String>,
}

/// The secrets of an agent that was just added. They can't be read again.
pub struct AgentSecrets {
    /// The token for its calls.
    pub token: Secret,
    /// The secret that signs webhooks to it.
    pub signing: SigningSecret,
}

/// Adds an agent that doesn't connect to the server.
///
/// # Errors
/// If something isn't valid, or the name is in use.
pub async fn add(node: &Node, added: AddedAgent, by: &Author) -> ServiceResult<AgentSecrets> {
    let AddedAgent { name, transport, address, labels } = added;
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if transport.is_empty() || transport.len() > 64 || !transport.chars().all(named) {
        return Err(ServiceError::invalid(format!("transport: {transport:?} is not 1 to 64 of A-Z a-z 0-9 _ -")));
    }
    check_new_address(&transport, address.as_deref())?;
    let enrollment = Enrollment { name, labels: Some(labels), ..Enrollment::default() };
    enrollment.check()?;
    if transport == "amqp" && commands_to(&enrollment.name).len() > MAX_QUEUE_NAME {
        let detail = format!("name: too long for the name of a queue, which has {MAX_QUEUE_NAME} bytes at most");
        return Err(ServiceError::invalid(detail));
    }
    let (token, signing) = (Secret::random(), SigningSecret::random());
    let new = NewAgent { enrollment, transport, address, secret: Some(signing.reveal().to_owned()) };
    let agent = enrolled(node.store.agent_enroll(&new, token.hash(), by).await?, &new)?;
    node.signals.agent_changed(agent.no);
    log::info!(agent = agent.name.as_str(), transport = agent.transport.as_str(); "an agent was added");
    Ok(AgentSecrets { token, signing })
}

/// The newest value of each key of an agent.
///
/// # Errors
/// If there is no such agent.
pub async fn metadata(node: &Node, name: &str) -> ServiceResult<BTreeMap<String, MetadataView>> {
    show(node, name).await?;
    let of = node.store.metadata_of(&[name.to_owned()], None).await?.pop();
    Ok(of.map(|agent| agent.values).unwrap_or_default())
}

/// The newest values of some keys, which are separated by commas, by agent. `None` if no keys are asked for.
///
/// # Errors
/// If there are too many keys.
pub async fn metadata_of(
    node: &Node,
    agents: &[AgentView],
    keys: Option<&str>,
) -> ServiceResult<Option<HashMap<String, BTreeMap<String, MetadataView>>>> {
    let Some(keys) = keys else { return Ok(None) };
    let keys: Vec<String> = keys.split(',').map(|key| key.trim().to_owned()).collect();
    if keys.len() > MAX_LISTED_KEYS || keys.iter().any(|key| key.is_empty() || has_nul(key)) {
        return Err(ServiceError::invalid(format!("metadata: not 1 to {MAX_LISTED_KEYS} keys, separated by commas")));
    }
    let names: Vec<String> = agents.iter().map(|agent| agent.name.clone()).collect();
    let of = node.store.metadata_of(&names, Some(&keys)).await?;
    Ok(Some(of.into_iter().map(|agent| (agent.name, agent.values)).collect()))
}

fn enrolled(enrolled: Enrolled, new: &NewAgent) -> ServiceResult<AgentRef> {
    match enrolled {
        Enrolled::New(agent) => Ok(agent),
        Enrolled::Taken => {
            Err(ServiceError::conflict(format!("name: {} is taken by another agent", new.enrollment.name)))
        }
    }
}

/// Checks the address of an agent to add: it is one of the transport, is there if the transport needs
/// one, and is not there if the agent connects itself.
fn check_new_address(transport: &str, address: Option<&str>) -> ServiceResult<()> {
    let detail = match transport {
        _ if address.is_none() => return check_address(transport, address),
        STREAM => "agents of the transport stream connect themselves and have none",
        "nats" | "amqp" => "agents of a broker are reached by their names and have none",
        _ => return check_address(transport, address),
    };
    Err(ServiceError::invalid(format!("address: {detail}")))
}

/// Checks that an address is one that the transport can use.
fn check_address(transport: &str, address: Option<&str>) -> ServiceResult<()> {
    if address.is_some_and(|address| has_nul(address) || address.len() > MAX_ADDRESS) {
        let detail = format!("address: longer than {MAX_ADDRESS} bytes, or holds a NUL character");
        return Err(ServiceError::invalid(detail));
    }
    let is_url = |address: &str| reqwest::Url::parse(address).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    let (fine, detail) = match transport {
        "webhook" => (address.is_some_and(is_url), "a webhook needs an http:// or https:// URL"),
        "smtp" => (address.is_some_and(is_mail_address), "smtp needs a mail address such as ops@example.com"),
        // Other transports don't use it, or know themselves what they need.
        _ => (true, ""),
    };
    if fine { Ok(()) } else { Err(ServiceError::invalid(format!("address: {detail}"))) }
}

/// Enrolls a new agent and returns its token. Repeating the call with the same nonce returns a
/// fresh token, as long as the previous one was never used.
///
/// # Errors
/// If the name is in use.
pub async fn enroll(node: &Node, enrollment: Enrollment, nonce: Option<&str>, by: &Author) -> ServiceResult<Secret> {
    let secret = Secret::random();
    let new = NewAgent { enrollment, transport: STREAM.into(), address: None, secret: None };
    let stored = node.store.agent_enroll_once(&new, secret.hash(), nonce.map(hash_of), by).await?;
    let agent = enrolled(stored, &new)?;
    node.signals.agent_changed(agent.no);
    log::info!(agent = agent.name.as_str(); "an agent has enrolled");
    Ok(secret)
}

/// Updates what a known agent reports about itself.
///
/// # Errors
/// If the report has another agent's name.
pub async fn refresh(node: &Node, agent: &AgentRef, said: &Enrollment) -> ServiceResult<()> {
    if agent.name != said.name {
        return Err(ServiceError::forbidden(format!("this token belongs to {}, not to {}", agent.name, said.name)));
    }
    if node.store.agent_refresh(agent.no, said.into()).await? {
        node.signals.agent_changed(agent.no);
    }
    Ok(())
}

/// An agent as users see it.
///
/// # Errors
/// If no agent has this name.
pub async fn show(node: &Node, name: &str) -> ServiceResult<AgentView> {
    node.store.agent_view(name).await?.ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> ServiceError {
    ServiceError::not_found(format!("agent {name} not found"))
}

/// Changes labels, address, and whether an agent is disabled.
///
/// # Errors
/// If there is no such agent, or something isn't valid.
pub async fn update(node: &Node, name: &str, patch: AgentPatch, by: &Author) -> ServiceResult<AgentView> {
    let nul = |(key, value): &(&String, &Option<String>)| has_nul(key) || value.as_deref().is_some_and(has_nul);
    if let Some((key, _)) = patch.labels.iter().find(nul) {
        return Err(ServiceError::invalid(format!("labels.{}: holds a NUL character", key.escape_default())));
    }
    let known = show(node, name).await?;
    if let Some(address) = &patch.address {
        check_address(&known.transport, address.as_deref())?;
    }
    if patch.labels.contains_key("") {
        return Err(ServiceError::invalid("labels: a key is empty"));
    }
    let size = |(key, value): (&String, &Option<String>)| key.len() + value.as_ref().map_or(0, String::len) + 6;
    let more: usize = patch.labels.iter().map(size).sum();
    if known.labels.get().len() + more > MAX_DESCRIPTION {
        return Err(ServiceError::invalid(format!("labels: larger than {MAX_DESCRIPTION} bytes as JSON")));
    }
    let (no, agent) = node.store.agent_update(name, &patch, by).await?.ok_or_else(|| not_found(name))?;
    node.signals.agent_changed(no);
    if agent.disabled {
        node.signals.agent_disabled(no);
    }
    log::info!(agent = name, disabled = agent.disabled; "an agent was changed");
    Ok(agent)
}

/// Removes an agent: its commands become undeliverable, its tokens are revoked, its name is free.
///
/// # Errors
/// If there is no such agent.
pub async fn remove(node: &Node, name: &str, by: &Author) -> ServiceResult<()> {
    let no = node.store.agent_remove(name, by).await?.ok_or_else(|| not_found(name))?;
    node.signals.agent_disabled(no);
    log::info!(agent = name; "an agent was removed");
    Ok(())
}
