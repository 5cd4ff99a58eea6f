//! The HTTP API: one file per resource. Handlers check the token, translate, and ask the store; they tell the pipeline by
//! messages that may be lost, since the store is the truth.

mod actions;
mod agent_calls;
mod agents;
mod audit;
mod auth;
mod check_in;
mod connections;
mod error;
mod events;
mod health;
mod limits;
mod lines;
mod nodes;
mod openapi;
mod pages;
mod preview;
mod tls;
mod tokens;

pub use connections::Connections;
pub use error::{ApiError, ApiResult};
pub use health::Unserved;
pub use limits::Limits;

use crate::config::Http;
use crate::context::Node;
use crate::runtime::Supervision;
use crate::senders::stream::SessionDeps;
use actix_web::body::EitherBody;
use actix_web::dev::{Server, Service, ServiceRequest, ServiceResponse};
use actix_web::{App, Error, HttpServer, web};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Threads that serve HTTP and the agents' connections.
const WORKERS: usize = 2;
/// How long a client may take for its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take for its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    /// What every part of this process works with.
    pub node: Arc<Node>,
    /// What one caller may take.
    pub limits: Limits,
    /// How many connections there are, and may be.
    pub connections: Connections,
    /// For agents that connect.
    pub sessions: SessionDeps,
    /// Whether agents may connect to this node.
    pub serves_stream: bool,
    /// Commands that no node has a sender for, as they were a moment ago.
    pub unserved: Arc<Unserved>,
    /// The actors' states.
    pub supervision: Supervision,
}

impl Api {
    /// Serves up to `connections` of them.
    pub fn new(sessions: SessionDeps, supervision: Supervision, serves_stream: bool, connections: usize) -> Self {
        let node = sessions.node.clone();
        let limits = Limits::new(node.config.http.token_rate, node.config.http.token_streams);
        let connections = Connections::new(connections, node.metrics.clone());
        Self { node, limits, connections, sessions, serves_stream, unserved: Arc::default(), supervision }
    }

    /// The largest body, in bytes.
    fn max_body(&self) -> usize {
        self.node.config.http.max_body.as_usize()
    }
}

/// An address that this process listens on, and the certificates that it serves there. Nothing is accepted yet.
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    certificates: Option<tls::Certificates>,
}

impl Listening {
    /// Loads the certificate and listens where the settings say.
    ///
    /// # Errors
    /// When the address can't be listened on, or the certificate can't be used; the text names the key.
    pub fn open(settings: &Http) -> Result<Self, String> {
        let certificates = tls::Certificates::load(&settings.tls)?;
        let listen = |error| format!("http.listen {}: {error}", settings.listen);
        let listener = TcpListener::bind(settings.listen).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address, certificates })
    }

    /// The address, with the port that was chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The server on what is listened on, which is to be spawned. `refusals` more connections than `api.connections` allows are
/// accepted, to be refused; others wait until one of these has closed.
///
/// # Errors
/// When the operating system refuses the listener.
pub fn serve(api: Api, listening: Listening, connections: usize, refusals: usize) -> std::io::Result<Server> {
    let Listening { listener, certificates, .. } = listening;
    let accepted = api.connections.clone();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(api.clone()))
            .app_data(web::QueryConfig::default().error_handler(|error, _| ApiError::bad_request(error).into()))
            .app_data(web::PathConfig::default().error_handler(|_, _| ApiError::not_found("no such path").into()))
            .wrap_fn(measured)
            .configure(routes)
            .default_service(web::to(|| async { ApiError::not_found("no such path") }))
    })
    .workers(WORKERS)
    .backlog(4096)
    .max_connections((connections + refusals).div_ceil(WORKERS))
    .on_connect(move |_, data| accepted.accepted(data))
    .client_request_timeout(HEAD_TIMEOUT)
    .keep_alive(Duration::from_secs(30))
    // Frames are small and are to go at once: otherwise one waits until the agent's machine has said that it has the one before,
    // which it does 40 ms later.
    .tcp_nodelay(true)
    .shutdown_timeout(5)
    .disable_signals();
    let server = match certificates {
        Some(certificates) => server.listen_rustls_0_23(listener, certificates.serve())?,
        None => server.listen(listener)?,
    };
    Ok(server.run())
}

/// Serves a request, unless its connection is refused, and counts how long that took.
fn measured<S, B>(
    request: ServiceRequest,
    service: &S,
) -> impl Future<Output = Result<ServiceResponse<EitherBody<B>>, Error>> + use<S, B>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    let began = Instant::now();
    let served = match connections::refusal(&request) {
        None => Ok(service.call(request)),
        Some(refusal) => Err(request.into_response(refusal)),
    };
    async move {
        let response = match served {
            Ok(served) => served.await?,
            Err(refused) => return Ok(refused.map_into_right_body()),
        };
        let request = response.request();
        // Anybody can make up a method.
        let method = match request.method().as_str() {
            "GET" => "GET",
            "POST" => "POST",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        if let (Some(path), Some(api)) = (request.match_pattern(), request.app_data::<web::Data<Api>>()) {
            api.node.metrics.http_answered(method, &path, began.elapsed());
        }
        Ok(response.map_into_left_body())
    }
}

fn routes(config: &mut web::ServiceConfig) {
    use web::{delete, get, patch, post};
    // Each path with the methods that it has, for whoever tries another one.
    let on = |path, allow: &'static str| {
        web::resource(path).default_service(web::to(move || async move { ApiError::method_not_allowed(allow) }))
    };
    config
        .service(on("/healthz", "GET").route(get().to(health::healthz)))
        .service(on("/readyz", "GET").route(get().to(health::readyz)))
        .service(on("/metrics", "GET").route(get().to(health::metrics)))
        .service(on("/openapi.json", "GET").route(get().to(openapi::openapi)))
        .service(on("/v1/actions", "GET, POST").route(get().to(actions::list)).route(post().to(actions::create)))
        .service(on("/v1/actions/{id}", "GET").route(get().to(actions::show)))
        .service(on("/v1/actions/{id}/commands", "GET").route(get().to(actions::commands)))
        .service(on("/v1/actions/{id}/events", "GET").route(get().to(events::action)))
        .service(on("/v1/actions/{id}/cancel", "POST").route(post().to(actions::cancel)))
        .service(on("/v1/actions/{id}/pause", "POST").route(post().to(actions::pause)))
        .service(on("/v1/actions/{id}/resume", "POST").route(post().to(actions::resume)))
        .service(on("/v1/actions/{id}/retry", "POST").route(post().to(actions::retry)))
        .service(on("/v1/agents", "GET, POST").route(get().to(agents::list)).route(post().to(agents::add)))
        .service(
            on("/v1/agents/{name}", "GET, PATCH, DELETE")
                .route(get().to(agents::show))
                .route(patch().to(agents::patch))
                .route(delete().to(agents::remove)),
        )
        .service(on("/v1/targets/preview", "POST").route(post().to(preview::preview)))
        .service(on("/v1/tokens", "GET, POST").route(get().to(tokens::list)).route(post().to(tokens::create)))
        .service(on("/v1/tokens/{id}", "DELETE").route(delete().to(tokens::revoke)))
        .service(on("/v1/nodes", "GET").route(get().to(nodes::list)))
        .service(on("/v1/audit", "GET").route(get().to(audit::list)))
        .service(on("/v1/agent/enroll", "POST").route(post().to(agent_calls::enroll)))
        .service(on("/v1/agent/commands", "GET").route(get().to(check_in::commands)))
        .service(on("/v1/agent/received", "POST").route(post().to(check_in::received)))
        .service(on("/v1/agent/results", "POST").route(post().to(check_in::results)))
        .service(on("/v1/agent/stream", "GET").route(get().to(agent_calls::stream)));
}
