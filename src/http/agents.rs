//! `/v1/agents` and `/v1/targets`: the fleet, as operators see it.

use super::{Api, ApiError, ApiResult, auth, body, limit};
use crate::domain::agent::Role;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::target::Target;
use crate::store::AgentView;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};

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
    let preview: Preview = serde_json::from_slice(&json).map_err(|error| {
        let kind = if error.is_data() { ProblemKind::InvalidDocument } else { ProblemKind::MalformedJson };
        Problem::new(kind, error.to_string())
    })?;
    let target = parse(&preview.target)?;
    let count = api.store.agent_count(&target).await?;
    let sample = api.store.agent_list(Some(&target), None, SAMPLE).await?;
    let sample: Vec<String> = sample.into_iter().map(|agent| agent.name).collect();
    Ok(HttpResponse::Ok().json(serde_json::json!({ "count": count, "sample": sample })))
}
