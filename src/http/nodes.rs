//! `/v1/nodes`: who shares the store.

use super::{Api, ApiResult, auth};
use crate::domain::agent::Role;
use crate::store::NodeView;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct Nodes {
    nodes: Vec<NodeView>,
}

/// The nodes that share the store, oldest first, and who is alive.
#[utoipa::path(get, path = "/v1/nodes", tag = "server",
    responses((status = 200, body = Nodes, description = "The nodes")), security(("token" = ["viewer"])))]
pub(super) async fn list(request: HttpRequest, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    Ok(HttpResponse::Ok().json(Nodes { nodes: api.node.store.node_list().await? }))
}
