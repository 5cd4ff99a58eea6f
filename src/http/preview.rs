//! `/v1/targets`: what a target picks.

use super::pages::json;
use super::{Api, ApiResult, agents, auth};
use crate::domain::agent::Role;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many names a preview shows.
const SAMPLE: usize = 20;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PreviewedTarget {
    /// A target expression.
    #[schema(min_length = 1, example = "labels.role = 'web'")]
    target: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Preview {
    /// How many agents match now.
    count: i64,
    /// The first of their names.
    sample: Vec<String>,
}

/// How many agents match now, and the first of their names.
#[utoipa::path(post, path = "/v1/targets/preview", tag = "agents", request_body = PreviewedTarget,
    responses((status = 200, body = Preview, description = "What it picks")), security(("token" = ["operator"])))]
pub(super) async fn preview(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    let (PreviewedTarget { target }, _) = json(payload, api.max_body()).await?;
    let target = agents::parse(&target)?;
    let count = api.node.store.agent_count(&target).await?;
    let sample = api.node.store.agent_list(Some(&target), None, SAMPLE).await?;
    let sample = sample.into_iter().map(|agent| agent.name).collect();
    Ok(HttpResponse::Ok().json(Preview { count, sample }))
}
