//! What agents report again and again: their calls, and one agent's values.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::extract::{Body, CallingAgent, Viewer};
use crate::domain::problem::ProblemKind;
use crate::domain::protocol::{MAX_FRAME, MetadataItem, RefusedKey};
use crate::domain::time::Span;
use crate::service::{agents, check_in};
use crate::store::MetadataView;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct AgentMetadata {
    /// The newest value of each key.
    metadata: BTreeMap<String, MetadataView>,
}

/// The newest value of each key of an agent.
#[utoipa::path(get, path = "/v1/agents/{name}/metadata", tag = "agents",
    params(("name" = String, Path, description = "The agent's name")),
    responses((status = 200, body = AgentMetadata, description = "Its metadata")), security(("token" = ["viewer"])))]
pub(super) async fn of_agent(_: Viewer, name: web::Path<String>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    Ok(HttpResponse::Ok().json(AgentMetadata { metadata: agents::metadata(&api.node, &name).await? }))
}

#[derive(Deserialize, ToSchema)]
pub(super) struct MetadataBody {
    /// Repeated in the answer.
    #[serde(default)]
    seq: i64,
    items: Vec<MetadataItem>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct MetadataAnswer {
    seq: i64,
    /// Keys whose values are not stored, and why.
    rejected: Vec<RefusedKey>,
    /// How often to report at most, if that is less often than every 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "30s")]
    metadata_interval: Option<Span>,
}

/// Reports metadata. Answered once these values, or newer ones of the same keys, are durable.
#[utoipa::path(post, path = "/v1/agent/metadata", tag = "agent", request_body = MetadataBody,
    responses((status = 200, body = MetadataAnswer, description = "They are stored, but for the rejected ones")),
    security(("token" = ["agent"])))]
pub(super) async fn report(
    CallingAgent { agent, .. }: CallingAgent,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (MetadataBody { seq, items }, size) = body.at_least(MAX_FRAME).json().await?;
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let room = api.sessions.metadata_budget.clone().try_acquire_many_owned(size);
    let _room = room.map_err(|_| ApiError::new(ProblemKind::Unavailable, "too much metadata is in flight"))?;
    let stored = check_in::metadata(&api.node, agent.no, seq, items).await?;
    let (rejected, metadata_interval) = (stored.rejected, stored.metadata_interval);
    Ok(HttpResponse::Ok().json(MetadataAnswer { seq: stored.seq, rejected, metadata_interval }))
}
