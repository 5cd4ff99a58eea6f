//! The HTTP server.

use super::api::Api;
use super::connections;
use super::error::ApiError;
use super::openapi::OpenApiJson;
use super::routes::{Document, routes};
use super::tls;
use crate::config::Http;
use actix_web::body::EitherBody;
use actix_web::dev::{Server, Service, ServiceRequest, ServiceResponse};
use actix_web::{App, Error, HttpServer, web};
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};
use utoipa::OpenApi;

/// Threads that serve HTTP and the agents' connections: one for each core, within these bounds.
const WORKERS: std::ops::RangeInclusive<usize> = 2..=32;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The address that this process listens on, and the certificates for it. Nothing is accepted yet.
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    certificates: Option<tls::Certificates>,
}

impl Listening {
    /// Loads the certificate and listens on `http.listen`.
    ///
    /// # Errors
    /// If the address can't be listened on, or the certificate can't be used. The text names the
    /// key.
    pub fn open(settings: &Http) -> Result<Self, String> {
        let certificates = tls::Certificates::load(&settings.tls)?;
        let listen = |error| format!("http.listen {}: {error}", settings.listen);
        let listener = TcpListener::bind(settings.listen).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address, certificates })
    }

    /// The address, with the actual port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A server for the open listener; the caller spawns it. `refusals` more connections than
/// `api.connections` allows are accepted in order to refuse them. Others wait until one of these
/// has closed.
///
/// # Errors
/// If the operating system refuses the listener.
pub fn serve(api: Api, listening: Listening, connections: usize, refusals: usize) -> std::io::Result<Server> {
    let Listening { listener, certificates, .. } = listening;
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = cores.clamp(*WORKERS.start(), *WORKERS.end());
    let accepted = api.connections.clone();
    let document = web::Data::new(OpenApiJson(Document::openapi().to_json().map_err(std::io::Error::other)?));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(api.clone()))
            .app_data(document.clone())
            .app_data(web::PathConfig::default().error_handler(|_, _| ApiError::not_found("no such path").into()))
            .wrap_fn(measured)
            .configure(routes)
            .default_service(web::to(|| async { ApiError::not_found("no such path") }))
    })
    .workers(workers)
    .backlog(4096)
    .max_connections((connections + refusals).div_ceil(workers))
    .on_connect(move |_, data| accepted.accepted(data))
    .client_request_timeout(HEAD_TIMEOUT)
    .keep_alive(Duration::from_secs(30))
    // Frames are small and urgent. With Nagle's algorithm, a frame would wait for the
    // acknowledgement of the previous one, which the agent's machine delays by 40 ms.
    .tcp_nodelay(true)
    .shutdown_timeout(5)
    .disable_signals();
    let server = match certificates {
        Some(certificates) => server.listen_rustls_0_23(listener, certificates.serve())?,
        None => server.listen(listener)?,
    };
    Ok(server.run())
}

/// Serves a request, unless its connection is refused, and measures its duration.
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
        // Unknown methods share one label, because clients can send any name.
        let method = match request.method().as_str() {
            "GET" => "GET",
            "POST" => "POST",
            "HEAD" => "HEAD",
            "PUT" => "PUT",
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
