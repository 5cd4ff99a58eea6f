//! `/v1/targets`: which agents a target matches.

use super::api::Api;
use super::error::ApiResult;
use super::extract::{JsonBody, Operator};
use crate::service::targets;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

/// The number of agents that match now, and the first of their names.
#[utoipa::path(post, path = "/v1/targets/preview", tag = "agents", request_body = PreviewedTarget,
    responses((status = 200, body = Preview, description = "The matching agents")), security(("token" = ["operator"])))]
pub(super) async fn preview(
    _: Operator,
    body: JsonBody<PreviewedTarget>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let targets::Preview { count, sample } = targets::preview(&api.node, &body.read().await?.target).await?;
    Ok(HttpResponse::Ok().json(Preview { count, sample }))
}
