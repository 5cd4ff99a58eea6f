//! `/v1/agents`: the fleet, as operators see it.

use super::pages::{Page, after, json, limit};
use super::{Api, ApiError, ApiResult, auth};
use crate::domain::agent::{Enrollment, MAX_DESCRIPTION, Role, STREAM, Secret, SigningSecret};
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::target::Target;
use crate::domain::text::has_nul;
use crate::store::{AgentPatch, AgentView, Enrolled, NewAgent};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// The longest address, in bytes.
const MAX_ADDRESS: usize = 2_048;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AgentsQuery {
    /// A target expression: only those that it picks.
    #[param(min_length = 1)]
    target: Option<String>,
    /// The size of the page, 100 if not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The last page's `next`.
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AgentPage {
    agents: Vec<AgentView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(super) fn parse(target: &str) -> ApiResult<Target> {
    Target::parse(target).map_err(|error| Problem::new(ProblemKind::InvalidDocument, format!("target: {error}")).into())
}

/// Agents by name: all, disabled ones too, or those that a target picks.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", params(AgentsQuery),
    responses((status = 200, body = AgentPage, description = "A page of agents"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "The target can't be read; the detail names line and column")),
    security(("token" = ["viewer"])))]
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<AgentsQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let limit = limit(query.limit)?;
    let target = query.target.as_deref().map(parse).transpose()?;
    let agents = api.node.store.agent_list(target.as_ref(), after(query.after.as_deref())?, limit).await?;
    let Page { items: agents, next } = Page::new(agents, limit, |agent| agent.name.clone());
    Ok(HttpResponse::Ok().json(AgentPage { agents, next }))
}

/// An agent that doesn't connect by itself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddedAgent {
    /// Unique among agents.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$")]
    name: String,
    /// How commands reach it, such as `webhook`.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "webhook")]
    transport: String,
    /// Where; for `webhook` an http(s) URL.
    #[serde(default)]
    #[schema(max_length = 2048)]
    address: Option<String>,
    /// For targets.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AgentSecrets {
    /// Its name.
    agent: String,
    /// For its calls to `/v1/agent/…`.
    token: String,
    /// Signs the webhooks that go to it (Standard Webhooks, `whsec_…`).
    secret: String,
}

/// Adds an agent that doesn't connect by itself. Its secrets are in this answer, and nowhere else ever again.
#[utoipa::path(post, path = "/v1/agents", tag = "agents", request_body = AddedAgent,
    responses((status = 201, body = AgentSecrets, description = "The agent"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The name is taken")),
    security(("token" = ["admin"])))]
pub(super) async fn add(request: HttpRequest, payload: web::Payload, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Admin).await?);
    let (AddedAgent { name, transport, address, labels }, _) = json(payload, api.max_body()).await?;
    let invalid = |detail: String| Err(Problem::new(ProblemKind::InvalidDocument, detail).into());
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if transport.is_empty() || transport.len() > 64 || !transport.chars().all(named) {
        return invalid(format!("transport: {transport:?} is not 1 to 64 of A-Z a-z 0-9 _ -"));
    }
    check_address(address.as_deref())?;
    let is_url = |address: &str| reqwest::Url::parse(address).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if transport == "webhook" && !address.as_deref().is_some_and(is_url) {
        return invalid("address: a webhook needs an http:// or https:// URL".into());
    }
    if transport == STREAM && address.is_some() {
        return invalid("address: agents of the transport stream connect by themselves and have none".into());
    }
    let enrollment = Enrollment { name, labels, ..Enrollment::default() };
    enrollment.check()?;
    let (token, secret) = (Secret::random(), SigningSecret::random());
    let new = NewAgent { enrollment, transport, address, secret: Some(secret.reveal().to_owned()) };
    match api.node.store.agent_enroll(&new, token.hash(), &by).await? {
        Enrolled::New(agent) => {
            api.node.signals.agent_changed(agent.no);
            log::info!(agent = agent.name.as_str(), transport = agent.transport.as_str(); "an agent was added");
            let (token, secret) = (token.reveal().to_owned(), secret.reveal().to_owned());
            Ok(HttpResponse::Created().json(AgentSecrets { agent: agent.name, token, secret }))
        }
        Enrolled::Taken => {
            let detail = format!("name: {} is taken by another agent", new.enrollment.name);
            Err(ApiError::new(ProblemKind::Conflict, detail))
        }
    }
}

fn check_address(address: Option<&str>) -> ApiResult<()> {
    if address.is_some_and(|address| has_nul(address) || address.len() > MAX_ADDRESS) {
        let detail = format!("address: longer than {MAX_ADDRESS} bytes, or holds a NUL character");
        return Err(Problem::new(ProblemKind::InvalidDocument, detail).into());
    }
    Ok(())
}

/// An agent.
#[utoipa::path(get, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path, description = "The agent's name")),
    responses((status = 200, body = AgentView, description = "The agent")), security(("token" = ["viewer"])))]
pub(super) async fn show(
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let agent =
        api.node.store.agent_view(&name).await?.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    Ok(HttpResponse::Ok().json(agent))
}

/// A JSON merge patch: what is null goes, what isn't there stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    /// Labels to be set, or (null) taken away.
    #[serde(default)]
    labels: BTreeMap<String, Option<String>>,
    /// Where it is, or (null) that this isn't known.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 2048)]
    address: Option<Option<String>>,
    /// Whether it gets nothing.
    #[serde(default)]
    disabled: Option<bool>,
}

/// Tells null from what isn't there.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Changes labels, address, and whether it is disabled: a JSON merge patch.
#[utoipa::path(patch, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path, description = "The agent's name")),
    request_body(content((Patch = "application/json"), (Patch = "application/merge-patch+json"))),
    responses((status = 200, body = AgentView, description = "The agent as it is now")), security(("token" = ["admin"])))]
pub(super) async fn patch(
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Admin).await?);
    let (Patch { labels, address, disabled }, _) = json(payload, api.max_body()).await?;
    let invalid = |detail: String| Err(Problem::new(ProblemKind::InvalidDocument, detail).into());
    let nul = |(key, value): &(&String, &Option<String>)| has_nul(key) || value.as_deref().is_some_and(has_nul);
    if let Some((key, _)) = labels.iter().find(nul) {
        return invalid(format!("labels.{}: holds a NUL character", key.escape_default()));
    }
    check_address(address.as_ref().and_then(|address| address.as_deref()))?;
    let known =
        api.node.store.agent_view(&name).await?.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    let more: usize = labels.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len) + 6).sum();
    if known.labels.get().len() + more > MAX_DESCRIPTION {
        return invalid(format!("labels: larger than {MAX_DESCRIPTION} bytes as JSON"));
    }
    let changed = api.node.store.agent_update(&name, &AgentPatch { labels, address, disabled }, &by).await?;
    let (no, agent) = changed.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    api.node.signals.agent_changed(no);
    if agent.disabled {
        api.node.signals.agent_disabled(no);
    }
    log::info!(agent = name.as_str(), disabled = agent.disabled; "an agent was changed");
    Ok(HttpResponse::Ok().json(agent))
}

/// Removes an agent: its commands become undeliverable, its token is no longer valid, its name is free.
#[utoipa::path(delete, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path, description = "The agent's name")),
    responses((status = 204, description = "It is removed")), security(("token" = ["admin"])))]
pub(super) async fn remove(
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Admin).await?);
    let removed = api.node.store.agent_remove(&name, &by).await?;
    let no = removed.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    api.node.signals.agent_disabled(no);
    log::info!(agent = name.as_str(); "an agent was removed");
    Ok(HttpResponse::NoContent().finish())
}
