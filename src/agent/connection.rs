//! Keeps a connection to the server for ever: enrolls, connects, runs a [`Session`], waits,
//! connects again.

use super::backoff::{Backoff, HELD, Pause};
use super::config::AgentConfig;
use super::enroll::{Credentials, EnrollError, keep_facts};
use super::error::AgentError;
use super::session::{End, Session, SessionDeps};
use super::stop_signal::told_to;
use crate::domain::protocol::{MAX_FRAME, close};
use crate::unreached::why;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header::AUTHORIZATION};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Timeout of connecting, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// What the log says when the server doesn't know the agent's own token.
const REFUSED: &str = "the server does not let this agent in; if it was removed, start it again with an enroll token \
     in token_file, and it enrolls anew";
/// Small buffers: thousands of agents may live in one process, and frames are mostly short.
const BUFFER: usize = 4 * 1024;

/// The transport below a WebSocket: TCP, with or without TLS.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Socket = WebSocketStream<Box<dyn Io>>;

/// The agent's connection to the server.
pub(super) struct Connection {
    config: AgentConfig,
    deps: SessionDeps,
    credentials: Credentials,
    /// Whether the server has stored labels and facts since this process began.
    enrolled: bool,
    backoff: Backoff,
}

impl Connection {
    pub(super) fn new(config: AgentConfig, deps: SessionDeps, credentials: Credentials) -> Self {
        let backoff = Backoff::new(config.backoff);
        Self { config, deps, credentials, enrolled: false, backoff }
    }

    /// Runs until `stop` is true. An error is one that only people can fix.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), AgentError> {
        loop {
            let socket = tokio::select! {
                socket = Box::pin(self.prepare()) => socket?,
                () = told_to(&mut stop) => return Ok(()),
            };
            let pause = match socket {
                Ok(socket) => self.talk(socket, &stop).await,
                Err(pause) => Some(pause),
            };
            let Some(pause) = pause else { return Ok(()) };
            let wait = self.backoff.next(pause);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = told_to(&mut stop) => return Ok(()),
            }
        }
    }

    /// Enrolls if necessary, and connects. The inner `Err` is the wait before another attempt.
    async fn prepare(&mut self) -> Result<Result<Socket, Pause>, AgentError> {
        if !self.enrolled
            && let Some(pause) = self.enroll().await?
        {
            return Ok(Err(pause));
        }
        let agent = self.config.name.as_str();
        Ok(match timeout(CONNECT_TIMEOUT, self.connect()).await {
            Ok(Ok(socket)) => {
                self.credentials.used(&self.config.state_dir).await?;
                Ok(socket)
            }
            Ok(Err(tungstenite::Error::Http(answer)))
                if answer.status().as_u16() == 401 && self.credentials.may_be_replaced() =>
            {
                self.enrolled = false;
                Err(Pause::Backoff)
            }
            Ok(Err(tungstenite::Error::Http(answer))) if matches!(answer.status().as_u16(), 401 | 403) => {
                log::warn!(agent, status = answer.status().as_u16(); "{REFUSED}");
                Err(Pause::Long)
            }
            Ok(Err(error)) => {
                log::info!(agent, error = why(&error); "can't connect");
                Err(Pause::Backoff)
            }
            Err(_) => {
                log::info!(agent; "connecting took too long");
                Err(Pause::Backoff)
            }
        })
    }

    /// Runs one session to its end. `None` if the agent stops.
    async fn talk(&mut self, socket: Socket, stop: &watch::Receiver<bool>) -> Option<Pause> {
        let agent = self.config.name.as_str();
        let began = Instant::now();
        log::debug!(agent, server = self.config.server.as_str(); "a connection is open");
        let mut session = Session::new(socket, self.deps.clone());
        let (mut stop, mut late) = (stop.clone(), stop.clone());
        let end = tokio::select! {
            end = session.run(&mut stop) => end,
            () = stopped_and_late(&mut late) => End::Stopped,
            () = keep_facts(&self.config, &self.credentials.token) => End::Stopped,
        };
        if session.welcomed() && began.elapsed() >= HELD {
            self.backoff.reset();
        }
        match end {
            End::Stopped => None,
            End::Closed { code: close::GOING_AWAY, .. } => {
                log::info!(agent; "the server goes away");
                Some(Pause::AtOnce)
            }
            End::Closed { code: code @ (close::REPLACED | close::NOT_ALLOWED), reason } => {
                log::warn!(agent, code, reason; "the server does not want this connection");
                Some(if code == close::REPLACED { Pause::Long } else { Pause::Disabled })
            }
            End::Closed { code, reason } => {
                log::info!(agent, code, reason; "the server closed the connection");
                Some(Pause::Backoff)
            }
            End::Broken(error) => {
                log::info!(agent, error; "the connection broke");
                Some(Pause::Backoff)
            }
        }
    }

    /// Gets the agent's own token, or refreshes its labels and facts on the server. `Some` is the
    /// wait before another attempt.
    async fn enroll(&mut self) -> Result<Option<Pause>, AgentError> {
        let agent = self.config.name.as_str();
        match self.credentials.enroll(&self.config).await? {
            Ok(()) => {
                self.enrolled = true;
                Ok(None)
            }
            Err(EnrollError::NotNow(error)) => {
                log::info!(agent, error; "can't enroll yet");
                Ok(Some(Pause::Backoff))
            }
            Err(EnrollError::Refused { detail: error, .. }) if self.credentials.is_own => {
                log::warn!(agent, error; "{REFUSED}");
                Ok(Some(Pause::Long))
            }
            // The server knows the agent. It can work even though its labels were not refreshed.
            Err(error) if self.credentials.is_own => {
                log::warn!(agent, error:%; "labels and facts could not be refreshed");
                self.enrolled = true;
                Ok(None)
            }
            Err(error) => Err(AgentError::Enroll { name: agent.to_owned(), reason: error.to_string() }),
        }
    }

    async fn connect(&self) -> Result<Socket, tungstenite::Error> {
        let base = self.config.server.trim_end_matches('/');
        // `http` becomes `ws`, `https` becomes `wss`.
        let rest = base.get(4..).unwrap_or_default();
        let mut request = format!("ws{rest}/v1/agent/stream").into_client_request()?;
        request.headers_mut().insert(AUTHORIZATION, self.authorization()?);
        let is_tls = request.uri().scheme_str() == Some("wss");
        let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = request.uri().port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        let socket: Box<dyn Io> = match is_tls {
            true => {
                let tls = crate::tls::client_config(base, "ca_file", self.config.ca_file.as_deref());
                let tls = TlsConnector::from(Arc::new(tls.map_err(io::Error::other)?));
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                Box::new(tls.connect(name, tcp).await?)
            }
            false => Box::new(tcp),
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(Some(MAX_FRAME))
            .max_frame_size(Some(MAX_FRAME));
        let (socket, _) = client_async_with_config(request, socket, Some(config)).await?;
        Ok(socket)
    }

    fn authorization(&self) -> Result<HeaderValue, tungstenite::Error> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.credentials.token))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How long a session may take to close.
const GOODBYE: Duration = Duration::from_secs(5);

async fn stopped_and_late(stop: &mut watch::Receiver<bool>) {
    told_to(stop).await;
    tokio::time::sleep(GOODBYE).await;
}
