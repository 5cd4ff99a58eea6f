//! `/v1/nodes`: the nodes that share the store.

use super::api::Api;
use super::error::ApiResult;
use super::extract::Viewer;
use crate::store::NodeView;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct Nodes {
    nodes: Vec<NodeView>,
}

/// The nodes that share the store, oldest first, and whether each is alive.
#[utoipa::path(get, path = "/v1/nodes", tag = "server",
    responses((status = 200, body = Nodes, description = "The nodes")), security(("token" = ["viewer"])))]
pub(super) async fn list(_: Viewer, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    Ok(HttpResponse::Ok().json(Nodes { nodes: api.node.store.node_list().await? }))
}
