//! `/v1/agents` and `/v1/targets`: the fleet, as operators see it.

use super::{Api, ApiError, ApiResult, auth, body, limit};
use crate::domain::agent::{MAX_DESCRIPTION, Role};
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::target::Target;
use crate::domain::text::has_nul;
use crate::pipeline::messages::Banned;
use crate::store::{AgentPatch, AgentView};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// The longest address, in bytes.
const MAX_ADDRESS: usize = 2_048;
/// How many names a preview shows.
const SAMPLE: usize = 20;

#[derive(Deserialize)]
pub(super) struct ListQuery {
    target: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
struct Agents {
    agents: Vec<AgentView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

fn parse(target: &str) -> ApiResult<Target> {
    Target::parse(target).map_err(|error| Problem::new(ProblemKind::InvalidDocument, format!("target: {error}")).into())
}

/// `GET /v1/agents`: by name; all, disabled ones too, or those that a target picks.
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<ListQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let limit = limit(query.limit)?;
    let target = query.target.as_deref().map(parse).transpose()?;
    let agents = api.store.agent_list(target.as_ref(), query.after.as_deref(), limit).await?;
    let next = (agents.len() == limit).then(|| agents.last().map(|agent| agent.name.clone())).flatten();
    Ok(HttpResponse::Ok().json(Agents { agents, next }))
}

/// `GET /v1/agents/{name}`.
pub(super) async fn show(
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let agent = api.store.agent_view(&name).await?.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    Ok(HttpResponse::Ok().json(agent))
}

/// A JSON merge patch: what is null goes, what isn't there stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    #[serde(default)]
    labels: BTreeMap<String, Option<String>>,
    #[serde(default, deserialize_with = "given")]
    address: Option<Option<String>>,
    #[serde(default)]
    disabled: Option<bool>,
}

/// Tells null from what isn't there.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> ApiResult<T> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let kind = if error.inner().is_data() { ProblemKind::InvalidDocument } else { ProblemKind::MalformedJson };
        Problem::new(kind, error.to_string()).into()
    })
}

/// `PATCH /v1/agents/{name}`: changes labels, address, and whether it is disabled.
pub(super) async fn patch(
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    let json = body(payload, api.max_body).await?;
    let Patch { labels, address, disabled } = read(&json)?;
    let invalid = |detail: String| Err(Problem::new(ProblemKind::InvalidDocument, detail).into());
    let nul = |(key, value): &(&String, &Option<String>)| has_nul(key) || value.as_deref().is_some_and(has_nul);
    if let Some((key, _)) = labels.iter().find(nul) {
        return invalid(format!("labels.{}: holds a NUL character", key.escape_default()));
    }
    if address.iter().flatten().any(|address| has_nul(address) || address.len() > MAX_ADDRESS) {
        return invalid(format!("address: longer than {MAX_ADDRESS} bytes, or holds a NUL character"));
    }
    let known = api.store.agent_view(&name).await?.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    let more: usize = labels.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len) + 6).sum();
    if known.labels.get().len() + more > MAX_DESCRIPTION {
        return invalid(format!("labels: larger than {MAX_DESCRIPTION} bytes as JSON"));
    }
    let changed = api.store.agent_update(&name, &AgentPatch { labels, address, disabled }).await?;
    let (no, agent) = changed.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    if agent.disabled {
        api.sessions.sender.try_send(Banned(no)).ok();
    }
    log::info!(agent = name.as_str(), disabled = agent.disabled; "an agent was changed");
    Ok(HttpResponse::Ok().json(agent))
}

/// `DELETE /v1/agents/{name}`: its commands become undeliverable, its token is no longer valid, its name is free.
pub(super) async fn remove(
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    let removed = api.store.agent_remove(&name).await?;
    let no = removed.ok_or_else(|| ApiError::not_found(format!("no agent {name}")))?;
    api.sessions.sender.try_send(Banned(no)).ok();
    log::info!(agent = name.as_str(); "an agent was removed");
    Ok(HttpResponse::NoContent().finish())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Preview {
    target: String,
}

/// `POST /v1/targets/preview`: how many agents match now, and the first of their names.
pub(super) async fn preview(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    let json = body(payload, api.max_body).await?;
    let preview: Preview = read(&json)?;
    let target = parse(&preview.target)?;
    let count = api.store.agent_count(&target).await?;
    let sample = api.store.agent_list(Some(&target), None, SAMPLE).await?;
    let sample: Vec<String> = sample.into_iter().map(|agent| agent.name).collect();
    Ok(HttpResponse::Ok().json(serde_json::json!({ "count": count, "sample": sample })))
}
