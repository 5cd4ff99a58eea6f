//! Server-sent events: an action's progress, live.
//!
//! A stream reads the store when its action has changed, at most ten times a second, and once a second to see what other
//! nodes commit. All streams of one action share the reads.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::extract::Viewer;
use super::limits::StreamRoom;
use crate::domain::action::ActionState;
use crate::domain::counts::Counts;
use crate::error_chain::ErrorChain;
use crate::service::actions;
use crate::signals::Watched;
use actix_web::{HttpResponse, web};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

/// The shortest time between two events.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often something is sent in any case, so that a client that is gone is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct Progress {
    status: ActionState,
    counts: Counts,
}

impl Progress {
    /// Whether the progress is final.
    fn is_over(&self) -> bool {
        self.status.is_final() && self.counts.finished() == self.counts.total
    }

    fn event(&self, name: &str) -> web::Bytes {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("event: {name}\ndata: {json}\n\n").into()
    }
}

/// Server-sent events: `progress` at once and at each change, then a last `end` of the same shape.
#[utoipa::path(get, path = "/v1/actions/{id}/events", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Progress, content_type = "text/event-stream", description = "Events, until the end")),
    security(("token" = ["viewer"])))]
pub(super) async fn action(viewer: Viewer, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let view = actions::show(&api.node, *id).await?;
    let room = api.limits.stream(viewer.token.id)?;
    let watched = api.node.signals.progress().watch(view.no);
    let mut changes = watched.subscribe();
    // What was committed since the read is noticed.
    changes.mark_changed();
    let next = Some(Progress { status: view.status, counts: view.counts });
    let watch = Watch { api, id: *id, watched, changes, next, said: None, at: Instant::now(), _room: room };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-cache"))
        .streaming(watch.events()))
}

struct Watch {
    api: web::Data<Api>,
    id: Uuid,
    watched: Arc<Watched>,
    changes: watch::Receiver<u64>,
    /// The event to send.
    next: Option<Progress>,
    /// The last event sent; `None` before the first.
    said: Option<Progress>,
    at: Instant,
    _room: StreamRoom,
}

impl Watch {
    fn events(self) -> impl Stream<Item = Result<web::Bytes, ApiError>> {
        unfold(Some(self), |watch| async {
            let mut watch = watch?;
            let (bytes, ended) = watch.event().await;
            Some((Ok(bytes), (!ended).then_some(watch)))
        })
    }

    /// The next event, and whether it is the last.
    async fn event(&mut self) -> (web::Bytes, bool) {
        loop {
            if let Some(progress) = self.next.take() {
                self.at = Instant::now();
                if progress.is_over() {
                    return (progress.event("end"), true);
                }
                let bytes = progress.event("progress");
                self.said = Some(progress);
                return (bytes, false);
            }
            if self.api.supervision.is_draining() {
                return (web::Bytes::from_static(b": the server is stopping\n\n"), true);
            }
            tokio::time::sleep_until(self.at + MIN_INTERVAL).await;
            tokio::time::timeout(POLL_INTERVAL, self.changes.changed()).await.ok();
            let read = async || {
                let view = self.api.node.store.action_view(self.id).await?;
                Ok(view.map(|view| (view.status, view.counts)))
            };
            match self.watched.see(read).await {
                Ok(Some((status, counts))) => {
                    let progress = Progress { status, counts };
                    self.next = (self.said.as_ref() != Some(&progress)).then_some(progress);
                }
                // The action was deleted: there is no event to send.
                Ok(None) => return (web::Bytes::from_static(b": the action is no longer kept\n\n"), true),
                Err(error) => {
                    log::warn!(error:% = error.chain(); "a stream of events waits for the store");
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
            if self.next.is_none() && self.at.elapsed() >= KEEP_ALIVE_INTERVAL {
                self.at = Instant::now();
                return (web::Bytes::from_static(b": alive\n\n"), false);
            }
        }
    }
}
