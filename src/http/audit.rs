//! `/v1/audit`: who did what.

use super::pages::{Page, limit};
use super::{Api, ApiResult, auth};
use crate::domain::agent::Role;
use crate::domain::audit::AuditEntry;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// The size of the page, 100 if not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The last page's `next`.
    after: Option<i64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    audit: Vec<AuditEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The changes that were made, newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = AuditPage, description = "A page of the audit log")), security(("token" = ["admin"])))]
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<AuditQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    let limit = limit(query.limit)?;
    let Page { items: audit, next } =
        Page::new(api.node.store.audit_list(query.after, limit).await?, limit, |entry| entry.no);
    Ok(HttpResponse::Ok().json(AuditPage { audit, next }))
}
