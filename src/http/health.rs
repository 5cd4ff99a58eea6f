//! `/healthz`, `/readyz` and `/metrics`.

use super::{Api, ApiError, ApiResult, auth};
use crate::domain::agent::Role;
use crate::domain::problem::ProblemKind;
use crate::metrics::ActorGauge;
use crate::store::Store;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// How long it counts what was found of commands that nobody serves.
const UNSERVED_FOR: Duration = Duration::from_secs(10);
/// Readiness waits no longer for it.
const UNSERVED_TIMEOUT: Duration = Duration::from_secs(2);
/// Counted no further.
const UNSERVED_LIMIT: usize = 100_000;

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
    actors: Vec<crate::runtime::ActorReport>,
    /// Actors whose work has been failing for 10 s or more. Actions can be accepted all the same.
    stalled: Vec<crate::metrics::Stalled>,
    /// Due commands, by transport, that no node has a sender for: they wait until one is started that has. Looked at every
    /// 10 s, and counted up to 100,000.
    unserved: BTreeMap<String, i64>,
}

/// What [`Store::command_unserved`](crate::store::Store::command_unserved) said last: readiness is asked for by everybody.
#[derive(Debug, Default)]
pub struct Unserved(tokio::sync::Mutex<Option<(Instant, BTreeMap<String, i64>)>>);

impl Unserved {
    async fn look(&self, store: &dyn Store) -> BTreeMap<String, i64> {
        let mut last = self.0.lock().await;
        if let Some((at, unserved)) = &*last
            && at.elapsed() < UNSERVED_FOR
        {
            return unserved.clone();
        }
        let asked = tokio::time::timeout(UNSERVED_TIMEOUT, store.command_unserved(UNSERVED_LIMIT)).await;
        let unserved: BTreeMap<_, _> = match asked {
            Ok(Ok(unserved)) => unserved.into_iter().collect(),
            // What it was before says more than nothing; whether the store answers is asked by itself.
            failed => {
                let why = failed.map_or_else(|elapsed| elapsed.to_string(), |failed| format!("{failed:?}"));
                log::warn!(error = why.as_str(); "commands that nobody serves can't be counted now");
                last.take().map(|(_, unserved)| unserved).unwrap_or_default()
            }
        };
        *last = Some((Instant::now(), unserved.clone()));
        unserved
    }
}

/// Whether actions can be accepted: the store answers, and all actors run.
#[utoipa::path(get, path = "/readyz", tag = "server",
    responses((status = 200, body = Readiness, description = "They can"),
        (status = 503, body = Readiness, description = "They can't; this says why")))]
pub(super) async fn readyz(api: web::Data<Api>) -> HttpResponse {
    let (store, unserved) = match api.node.store.ping().await {
        Ok(()) => ("ok".to_owned(), api.unserved.look(&*api.node.store).await),
        Err(error) => {
            log::warn!(error = error.to_string().as_str(); "not ready: the store does not answer");
            ("not available".to_owned(), BTreeMap::new())
        }
    };
    let draining = api.supervision.is_draining();
    let actors = api.supervision.reports();
    let stalled = api.node.metrics.progress().stalled();
    let ready = store == "ok" && !draining && actors.iter().all(|actor| actor.state == "running");
    let readiness = Readiness { ready, store, draining, actors, stalled, unserved };
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
    Ok(HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(text))
}
