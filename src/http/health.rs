//! `/healthz`, `/readyz` and `/metrics`.

use super::{Api, ApiError, ApiResult, auth};
use crate::domain::agent::Role;
use crate::domain::problem::ProblemKind;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "server",
    responses((status = 200, body = String, content_type = "text/plain", description = "It runs")))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Actions can be accepted.
    ready: bool,
    /// `ok`, or why not.
    store: String,
    draining: bool,
    actors: Vec<crate::supervision::ActorReport>,
}

/// Whether actions can be accepted: the store answers, and all actors run.
#[utoipa::path(get, path = "/readyz", tag = "server",
    responses((status = 200, body = Readiness, description = "They can"),
        (status = 503, body = Readiness, description = "They can't; this says why")))]
pub(super) async fn readyz(api: web::Data<Api>) -> HttpResponse {
    let store = match api.store.ping().await {
        Ok(()) => "ok".to_owned(),
        Err(error) => {
            log::warn!(error = error.to_string().as_str(); "not ready: the store does not answer");
            "not available".to_owned()
        }
    };
    let draining = api.supervision.is_draining();
    let actors = api.supervision.reports();
    let ready = store == "ok" && !draining && actors.iter().all(|actor| actor.state == "running");
    let readiness = Readiness { ready, store, draining, actors };
    if ready {
        HttpResponse::Ok().json(readiness)
    } else {
        HttpResponse::ServiceUnavailable().insert_header(("Retry-After", "1")).json(readiness)
    }
}

/// What the server counts of itself, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, body = String, content_type = "application/openmetrics-text", description = "OpenMetrics")),
    security(("token" = ["viewer"])))]
pub(super) async fn metrics(request: HttpRequest, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let store_up = api.store.ping().await.is_ok();
    if !api.public_metrics {
        auth::needs(&api, &request, Role::Viewer).await?;
    }
    let text = api.metrics.text(&api.supervision, &api.presence, store_up);
    let text = text.map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))?;
    Ok(HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(text))
}
