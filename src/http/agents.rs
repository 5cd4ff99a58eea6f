//! `/v1/agents`: the fleet, as operators see it.

use super::api::Api;
use super::error::ApiResult;
use super::extract::{Admin, JsonBody, Viewer};
use super::pages::{limit, name};
use super::query::Query;
use crate::domain::problem::Problem;
use crate::service::{agents, fleet, targets};
use crate::store::{AgentPatch, AgentView, Among, MetadataView};
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AgentsQuery {
    /// A target expression: only agents that match it.
    #[param(min_length = 1)]
    target: Option<String>,
    /// Only those that are disabled, or only those that are not. Without it all; with a target, those that are not.
    disabled: Option<bool>,
    /// Keys of metadata whose newest values each agent is shown with, separated by commas; at most 64.
    #[param(min_length = 1)]
    metadata: Option<String>,
    /// The page size; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The previous page's `next`.
    after: Option<String>,
}

/// An agent, with metadata if that was asked for.
#[derive(Serialize, ToSchema)]
pub(super) struct ListedAgent {
    #[serde(flatten)]
    agent: AgentView,
    /// The newest values of the keys that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, MetadataView>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AgentPage {
    agents: Vec<ListedAgent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Agents by name: all, or those that match a target, or those that are disabled.
/// In a large fleet a page may have fewer agents than its limit, or none, and a `next`: after five seconds it is
/// answered with what was found.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", params(AgentsQuery),
    responses((status = 200, body = AgentPage, description = "A page of agents"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "The target isn't valid; the detail names line and column")),
    security(("token" = ["viewer"])))]
pub(super) async fn list(_: Viewer, query: Query<AgentsQuery>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let among = Among { target: query.target.as_deref().map(targets::parse).transpose()?, disabled: query.disabled };
    let found = fleet::list(&api.node, &among, name("after", query.after.as_deref())?, limit).await?;
    let mut metadata = agents::metadata_of(&api.node, &found.agents, query.metadata.as_deref()).await?;
    let with = |agent: AgentView| {
        let metadata = metadata.as_mut().map(|of| of.remove(&agent.name).unwrap_or_default());
        ListedAgent { agent, metadata }
    };
    let agents = found.agents.into_iter().map(with).collect();
    Ok(HttpResponse::Ok().json(AgentPage { agents, next: found.through }))
}

/// An agent that doesn't connect to the server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddedAgent {
    /// Unique among agents.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$")]
    name: String,
    /// How commands reach the agent, such as `webhook`.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "webhook")]
    transport: String,
    /// The agent's address; for `webhook` an http(s) URL.
    #[serde(default)]
    #[schema(max_length = 2048)]
    address: Option<String>,
    /// Labels for targets.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AgentSecrets {
    /// The agent's name.
    agent: String,
    /// The token for its calls to `/v1/agent/…`.
    token: String,
    /// The secret that signs webhooks to it (Standard Webhooks, `whsec_…`).
    secret: String,
}

/// Adds an agent that doesn't connect to the server. Its secrets are shown once, in this answer.
#[utoipa::path(post, path = "/v1/agents", tag = "agents", request_body = AddedAgent,
    responses((status = 201, body = AgentSecrets, description = "The agent"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The name is taken")),
    security(("token" = ["admin"])))]
pub(super) async fn add(admin: Admin, body: JsonBody<AddedAgent>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let AddedAgent { name, transport, address, labels } = body.read().await?;
    let added = agents::AddedAgent { name: name.clone(), transport, address, labels };
    let secrets = agents::add(&api.node, added, &admin.author()).await?;
    let (token, secret) = (secrets.token.reveal().to_owned(), secrets.signing.reveal().to_owned());
    Ok(HttpResponse::Created().json(AgentSecrets { agent: name, token, secret }))
}

/// An agent.
#[utoipa::path(get, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path, description = "The agent's name")),
    responses((status = 200, body = AgentView, description = "The agent")), security(("token" = ["viewer"])))]
pub(super) async fn show(_: Viewer, name: web::Path<String>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    Ok(HttpResponse::Ok().json(agents::show(&api.node, &name).await?))
}

/// A JSON merge patch: null removes a value, a missing key keeps it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    /// Labels to set, or to remove (null).
    #[serde(default)]
    labels: BTreeMap<String, Option<String>>,
    /// The new address, or null to remove it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 2048)]
    address: Option<Option<String>>,
    /// Whether the agent is disabled: it gets no commands.
    #[serde(default)]
    disabled: Option<bool>,
}

/// Distinguishes null from a missing key.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Changes an agent's labels, address, and whether it is disabled, by a JSON merge patch.
#[utoipa::path(patch, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path, description = "The agent's name")),
    request_body(content((Patch = "application/json"), (Patch = "application/merge-patch+json"))),
    responses((status = 200, body = AgentView, description = "The agent as it is now")), security(("token" = ["admin"])))]
pub(super) async fn patch(
    admin: Admin,
    name: web::Path<String>,
    body: JsonBody<Patch>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let Patch { labels, address, disabled } = body.read().await?;
    let patch = AgentPatch { labels, address, disabled };
    Ok(HttpResponse::Ok().json(agents::update(&api.node, &name, patch, &admin.author()).await?))
}

/// Removes an agent.
/// Its commands become undeliverable, its token is no longer valid, and its name is free.
#[utoipa::path(delete, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path, description = "The agent's name")),
    responses((status = 204, description = "The agent is removed")), security(("token" = ["admin"])))]
pub(super) async fn remove(admin: Admin, name: web::Path<String>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    agents::remove(&api.node, &name, &admin.author()).await?;
    Ok(HttpResponse::NoContent().finish())
}
