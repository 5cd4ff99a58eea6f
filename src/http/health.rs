//! `/healthz`, `/readyz` and `/metrics`.

use super::api::Api;
use super::auth;
use super::error::{ApiError, ApiResult};
use crate::domain::agent::Role;
use crate::domain::problem::ProblemKind;
use crate::domain::schedule::ZoneInfo;
use crate::error_chain::ErrorChain;
use crate::metrics::{ActorGauge, plain};
use actix_web::http::header::ACCEPT;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "server",
    responses((status = 200, body = String, content_type = "text/plain", description = "The process runs")))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("ok\n")
}

#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether actions can be accepted.
    ready: bool,
    /// `ok`, or the reason.
    store: String,
    draining: bool,
    actors: Vec<crate::runtime::ActorReport>,
    /// Actors whose work has been failing for 10 s or more. Actions can be accepted all the same.
    stalled: Vec<crate::metrics::Stalled>,
    /// The zone data by which schedules are computed.
    tzdata: ZoneInfo,
    /// The senders of this process.
    senders: Vec<crate::metrics::SenderReport>,
    /// Due commands that no node has a sender for, by transport. They wait until such a node
    /// starts. Counted every 10 s, up to 100,000.
    unserved: BTreeMap<String, i64>,
}

/// Whether actions can be accepted: the store answers, and all actors run.
#[utoipa::path(get, path = "/readyz", tag = "server",
    responses((status = 200, body = Readiness, description = "Actions can be accepted"),
        (status = 503, body = Readiness, description = "Actions can't be accepted; the body says why")))]
pub(super) async fn readyz(api: web::Data<Api>) -> HttpResponse {
    let (store, unserved) = match api.node.store.ping().await {
        Ok(()) => ("ok".to_owned(), api.unserved.look(&*api.node.store).await),
        Err(error) => {
            log::warn!(error:% = error.chain(); "not ready: the store does not answer");
            ("not available".to_owned(), BTreeMap::new())
        }
    };
    let draining = api.supervision.is_draining();
    let actors = api.supervision.reports();
    let stalled = api.node.metrics.progress().stalled();
    let ready = store == "ok" && !draining && actors.iter().all(|actor| actor.state == "running");
    let tzdata = api.node.zones.get().info().clone();
    let senders = api.node.metrics.senders().reports();
    let readiness = Readiness { ready, store, draining, actors, stalled, tzdata, senders, unserved };
    if ready {
        HttpResponse::Ok().json(readiness)
    } else {
        HttpResponse::ServiceUnavailable().insert_header(("Retry-After", "1")).json(readiness)
    }
}

/// The server's metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, description = "OpenMetrics, if the request accepts that, else Prometheus' text format", content(
        (String = "application/openmetrics-text"), (String = "text/plain")))),
    security(("token" = ["viewer"])))]
pub(super) async fn metrics(request: HttpRequest, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let store_up = api.node.store.ping().await.is_ok();
    if !api.node.config.http.public_metrics {
        auth::needs(&api, &request, Role::Viewer).await?;
    }
    let actors = api.supervision.reports().into_iter().map(|actor| ActorGauge {
        name: actor.name,
        restarts: actor.restarts,
        is_running: actor.state == "running",
    });
    let text = api.node.metrics.text(&actors.collect::<Vec<_>>(), api.node.presence.len(), store_up);
    let text = text.map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))?;
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (kind, text) = if accept.contains("application/openmetrics-text") {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", plain(&text))
    };
    Ok(HttpResponse::Ok().content_type(kind).body(text))
}
