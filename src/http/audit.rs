//! `/v1/audit`: the audit log.

use super::api::Api;
use super::error::ApiResult;
use super::extract::Admin;
use super::pages::{Page, limit};
use super::query::Query;
use crate::domain::audit::AuditEntry;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// The page size; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The previous page's `next`.
    after: Option<i64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    audit: Vec<AuditEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Changes and their authors, newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = AuditPage, description = "A page of the audit log")), security(("token" = ["admin"])))]
pub(super) async fn list(_: Admin, query: Query<AuditQuery>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let Page { items: audit, next } =
        Page::new(api.node.store.audit_list(query.after, limit).await?, limit, |entry| entry.no);
    Ok(HttpResponse::Ok().json(AuditPage { audit, next }))
}
