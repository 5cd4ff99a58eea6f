//! The HTTP API: one file per resource. Handlers check the token, translate, and ask the store; they tell the pipeline by
//! messages that may be lost, since the store is the truth.

mod actions;
mod agent_calls;
mod agents;
mod auth;
mod check_in;
mod error;
mod events;
mod health;
mod lines;
mod tokens;

pub use error::{ApiError, ApiResult};

use crate::metrics::Metrics;
use crate::pipeline::action_book::ActionBook;
use crate::pipeline::delay_scheduler::DelayScheduler;
use crate::pipeline::housekeeper::Housekeeper;
use crate::pipeline::notifier::Notifier;
use crate::pipeline::presence::Presence;
use crate::pipeline::resolver::Resolver;
use crate::pipeline::waiters::Waiters;
use crate::senders::stream::session::SessionParts;
use crate::store::Store;
use crate::supervision::Supervision;
use actix::Addr;
use actix_web::dev::Server;
use actix_web::{App, HttpServer, web};
use futures_util::StreamExt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Threads that serve HTTP and the agents' connections.
const WORKERS: usize = 2;
/// How long a client may take for its request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take for its body.
const BODY_WITHIN: Duration = Duration::from_secs(60);
/// Streams of events and long lists that are open at a time.
const WATCHERS: usize = 1_000;
/// Page sizes.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    /// Where everything is.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub book: ActionBook,
    /// Told of new actions.
    pub resolver: Addr<Resolver>,
    /// Told of cancelled ones.
    pub scheduler: Addr<DelayScheduler>,
    /// Told of changed ones.
    pub housekeeper: Addr<Housekeeper>,
    /// Moves when something is committed.
    pub notifier: Notifier,
    /// Agents that wait over plain HTTP.
    pub waiters: Waiters,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is connected.
    pub presence: Presence,
    /// Whether the metrics are for everybody.
    pub public_metrics: bool,
    /// Room for those who watch, see [`watchers`].
    pub watchers: Arc<Semaphore>,
    /// For agents that connect.
    pub sessions: SessionParts,
    /// Who is alive.
    pub supervision: Supervision,
    /// The largest body, in bytes.
    pub max_body: usize,
}

/// Room for so many who watch at a time.
pub fn watchers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(WATCHERS))
}

/// Listens on `address`; answers the address (with the port that was chosen for port 0) and the server, which is to be
/// spawned.
///
/// # Errors
/// When the address can't be listened on.
pub fn serve(api: Api, address: SocketAddr) -> std::io::Result<(SocketAddr, Server)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(api.clone()))
            .app_data(web::QueryConfig::default().error_handler(|error, _| ApiError::bad_request(error).into()))
            .app_data(web::PathConfig::default().error_handler(|_, _| ApiError::not_found("no such path").into()))
            .configure(routes)
            .default_service(web::to(|| async { ApiError::not_found("no such path") }))
    })
    .workers(WORKERS)
    .backlog(4096)
    .client_request_timeout(HEAD_WITHIN)
    .keep_alive(Duration::from_secs(30))
    .shutdown_timeout(5)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok((address, server))
}

fn routes(config: &mut web::ServiceConfig) {
    use web::{delete, get, patch, post};
    let on = |path| web::resource(path).default_service(web::to(|| async { ApiError::method_not_allowed() }));
    config
        .service(on("/healthz").route(get().to(health::healthz)))
        .service(on("/readyz").route(get().to(health::readyz)))
        .service(on("/metrics").route(get().to(health::metrics)))
        .service(on("/v1/actions").route(get().to(actions::list)).route(post().to(actions::create)))
        .service(on("/v1/actions/{id}").route(get().to(actions::show)))
        .service(on("/v1/actions/{id}/commands").route(get().to(actions::commands)))
        .service(on("/v1/actions/{id}/events").route(get().to(events::action)))
        .service(on("/v1/actions/{id}/cancel").route(post().to(actions::cancel)))
        .service(on("/v1/actions/{id}/pause").route(post().to(actions::pause)))
        .service(on("/v1/actions/{id}/resume").route(post().to(actions::resume)))
        .service(on("/v1/actions/{id}/retry").route(post().to(actions::retry)))
        .service(on("/v1/agents").route(get().to(agents::list)))
        .service(
            on("/v1/agents/{name}")
                .route(get().to(agents::show))
                .route(patch().to(agents::patch))
                .route(delete().to(agents::remove)),
        )
        .service(on("/v1/targets/preview").route(post().to(agents::preview)))
        .service(on("/v1/tokens").route(get().to(tokens::list)).route(post().to(tokens::create)))
        .service(on("/v1/tokens/{id}").route(delete().to(tokens::revoke)))
        .service(on("/v1/agent/enroll").route(post().to(agent_calls::enroll)))
        .service(on("/v1/agent/commands").route(get().to(check_in::commands)))
        .service(on("/v1/agent/received").route(post().to(check_in::received)))
        .service(on("/v1/agent/results").route(post().to(check_in::results)))
        .service(on("/v1/agent/stream").route(get().to(agent_calls::stream)));
}

/// Reads a body of at most `max` bytes.
async fn body(mut payload: web::Payload, max: usize) -> ApiResult<web::BytesMut> {
    let read = async {
        let mut body = web::BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(ApiError::bad_request)?;
            if body.len() + chunk.len() > max {
                return Err(ApiError::too_large(max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(BODY_WITHIN, read)
        .await
        .unwrap_or_else(|_| Err(ApiError::bad_request("the body did not come within 60 seconds")))
}

/// The size of a page, as asked for.
fn limit(asked: Option<usize>) -> ApiResult<usize> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        other => Err(ApiError::bad_request(format!("limit: {other} is not between 1 and {MAX_LIMIT}"))),
    }
}
