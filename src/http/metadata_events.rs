//! Server-sent events: the metadata of all agents that match a target, live.
//!
//! A stream begins with a snapshot, or with what was written since `Last-Event-ID`, and goes on with the
//! changes from the target's feed. The socket is the only queue: a reader that is too slow for the feed
//! gets the newest state from the store again.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::extract::Viewer;
use super::limits::StreamRoom;
use super::query::Query;
use crate::domain::json::on_one_line;
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::service::metadata::{Feed, MetadataEvent, PAGE, json};
use crate::service::targets;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use utoipa::IntoParams;

/// How often something is sent in any case, so that a client that is gone is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long a new stream waits until other nodes know that somebody watches here. Without that, it hears of
/// their values by polling.
const TOLD_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of what is sent at once, apart from its last event.
const CHUNK: usize = 64 * 1024;
/// The wait after a read of the store that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How much earlier than an event's id a stream begins again: a value may have been written before that time
/// and be visible only later.
const LATE: Duration = Duration::from_secs(60);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// A target expression: the agents to watch.
    #[param(min_length = 1)]
    target: String,
}

/// Server-sent events: `metadata` for each agent that matches, first with all of its values and then with those
/// that change. After a break, a client that sends `Last-Event-ID` gets what it has missed.
#[utoipa::path(get, path = "/v1/metadata/events", tag = "agents", params(EventsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client has")),
    responses((status = 200, body = MetadataEvent, content_type = "text/event-stream", description = "Events, without end")),
    security(("token" = ["viewer"])))]
pub(super) async fn events(
    viewer: Viewer,
    request: HttpRequest,
    query: Query<EventsQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let target = targets::parse(&query.target)?;
    let room = api.limits.stream(viewer.token.id)?;
    let feed = api.feeds.of(&api.node, target);
    let mut told = api.node.signals.metadata_watch().told();
    timeout(TOLD_TIMEOUT, told.wait_for(|told| *told)).await.ok();
    let last = request.headers().get("Last-Event-ID").and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let since = last.map_or(Timestamp(-1), |id| Timestamp(id).minus(LATE));
    let (news, phase) = (feed.subscribe(), Phase::begin(&api, &feed, since));
    let watch = Watch { api, feed, news, phase, _room: room };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-cache"))
        .streaming(watch.chunks()))
}

enum Phase {
    /// Reads from the store: all that was written after `since`, of agents after the key `after`.
    Snapshot {
        since: Timestamp,
        after: i64,
        /// When it began, and the number of the feed's next event then.
        began: Timestamp,
        number: u64,
    },
    /// Follows the feed, from this number on. What was written before `through` is sent.
    Follow { number: u64, through: Timestamp },
}

impl Phase {
    /// The number is read before the store: what is written meanwhile comes twice rather than not at all.
    fn begin(api: &Api, feed: &Feed, since: Timestamp) -> Self {
        let number = feed.end();
        Self::Snapshot { since, after: 0, began: api.node.store.now(), number }
    }
}

struct Watch {
    api: web::Data<Api>,
    feed: Arc<Feed>,
    news: watch::Receiver<u64>,
    phase: Phase,
    _room: StreamRoom,
}

impl Watch {
    fn chunks(self) -> impl Stream<Item = Result<web::Bytes, ApiError>> {
        unfold(Some(self), |watch| async {
            let mut watch = watch?;
            if watch.api.supervision.is_draining() {
                return Some((Ok(web::Bytes::from_static(b": the server is stopping\n\n")), None));
            }
            let chunk = watch.next().await;
            Some((Ok(chunk), Some(watch)))
        })
    }

    /// What to send next.
    async fn next(&mut self) -> web::Bytes {
        let alive = Instant::now() + KEEP_ALIVE_INTERVAL;
        loop {
            let text = match self.phase {
                Phase::Snapshot { since, after, began, number } => self.read(since, after, began, number).await,
                Phase::Follow { number, through } => self.follow(number, through).await,
            };
            if !text.is_empty() {
                return text.into();
            }
            let is_draining = self.api.supervision.is_draining();
            if is_draining || Instant::now() >= alive {
                return web::Bytes::from_static(b": alive\n\n");
            }
        }
    }

    async fn read(&mut self, since: Timestamp, after: i64, began: Timestamp, number: u64) -> String {
        let read = self.api.node.store.metadata_since(self.feed.target(), None, since, after, PAGE).await;
        let page = match read {
            Ok(page) => page,
            Err(error) => {
                log::warn!(error:% = error.chain(); "a stream of metadata waits for the store");
                tokio::time::sleep(RETRY).await;
                return String::new();
            }
        };
        let mut text = String::new();
        for agent in page.agents {
            push(&mut text, &json(&agent.into()), None);
        }
        match page.through {
            Some(after) => self.phase = Phase::Snapshot { since, after, began, number },
            None => {
                self.phase = Phase::Follow { number, through: began };
                // Sets the last event's id, and is no event.
                write!(text, ": that is all for now\nid: {}\n\n", began.0).ok();
            }
        }
        text
    }

    async fn follow(&mut self, number: u64, through: Timestamp) -> String {
        let Some(events) = self.feed.from(number, CHUNK) else {
            self.phase = Phase::begin(&self.api, &self.feed, through.minus(LATE));
            return String::new();
        };
        let Some(last) = events.last() else {
            timeout(Duration::from_secs(1), self.news.changed()).await.ok();
            return String::new();
        };
        self.phase = Phase::Follow { number: number + events.len() as u64, through: last.through };
        let mut text = String::new();
        for event in &events {
            push(&mut text, &event.json, Some(event.through));
        }
        text
    }
}

fn push(text: &mut String, json: &str, id: Option<Timestamp>) {
    if let Some(id) = id {
        writeln!(text, "id: {}", id.0).ok();
    }
    write!(text, "event: metadata\ndata: {}\n\n", on_one_line(json)).ok();
}
