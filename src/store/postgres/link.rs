//! A connection to the server: it remembers the code of the last error that the server sent (see
//! [`tap`](super::tap)), and its statement can be cancelled.
//!
//! tokio-postgres takes a stream of ours only without its own connecting, hence [`connect`]: hosts
//! in turn (or shuffled), each address of a host, the settings of the socket, and
//! `target_session_attrs`, as libpq does.

use super::tap::{LastCode, Rustls, Socket, Tap, TappedTls};
use crate::store::SqlState;
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use futures_util::{StreamExt, stream};
use rand::seq::SliceRandom;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState as Code;
use tokio_postgres::tls::{MakeTlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::either::Either;

/// PostgreSQL's port.
const PORT: u16 = 5432;

/// An open connection. Its driver is a task on the runtime where it was opened, and ends with it.
pub(super) struct Connected {
    conn: AsyncPgConnection,
    last_code: LastCode,
    route: Arc<Route>,
    notifications: mpsc::UnboundedReceiver<String>,
    driver: oneshot::Sender<()>,
    /// A transaction was begun, and has neither been committed nor rolled back.
    in_transaction: bool,
}

impl Connected {
    /// A transaction begins, or has ended. One that neither ends well nor badly, in a crash, makes the connection useless.
    pub(super) fn set_in_transaction(&mut self, in_transaction: bool) {
        self.in_transaction = in_transaction;
    }

    /// Whether a transaction was begun that has not ended.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Forgets errors of earlier statements.
    pub(super) fn forget_code(&self) {
        self.last_code.set(None);
    }

    /// The code of the last error that the server sent.
    pub(super) fn code(&self) -> Option<SqlState> {
        self.last_code.get()
    }

    /// What cancels the statement that this connection runs.
    pub(super) fn canceller(&self) -> Canceller {
        Canceller { token: self.conn.cancel_token(), route: self.route.clone() }
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.driver.is_closed()
    }

    /// The payload of the next notification; `None` when the connection has ended.
    pub(super) async fn notification(&mut self) -> Option<String> {
        self.notifications.recv().await
    }

    /// The connection alone: its driver ends when the server or the last user of it does.
    pub(super) fn into_inner(self) -> AsyncPgConnection {
        self.driver.send(()).ok();
        self.conn
    }
}

impl Deref for Connected {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

impl DerefMut for Connected {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotConnected {
    #[error("{0}")]
    Settings(&'static str),
    #[error("error connecting to server: {0}")]
    Io(#[from] io::Error),
    // The error and all its causes are in the text.
    #[error("{}", told(.0))]
    Server(tokio_postgres::Error),
    #[error("{0}")]
    Diesel(ConnectionError),
}

impl From<tokio_postgres::Error> for NotConnected {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Server(error)
    }
}

impl NotConnected {
    /// Whether a later try can't go better: the server answered, and what it said is about us.
    pub(super) fn is_hopeless(&self) -> bool {
        let about_us = [
            Code::INVALID_PASSWORD,
            Code::INVALID_AUTHORIZATION_SPECIFICATION,
            Code::INVALID_CATALOG_NAME,
            Code::INSUFFICIENT_PRIVILEGE,
        ];
        match self {
            Self::Settings(_) => true,
            Self::Server(error) => {
                error.code().is_some_and(|code| about_us.contains(code))
                    || std::error::Error::source(error).is_some_and(|cause| cause.to_string().contains("certificate"))
            }
            Self::Io(_) | Self::Diesel(_) => false,
        }
    }
}

/// The error with its causes.
fn told(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Where a server may be.
enum Place {
    Tcp(SocketAddr, String),
    Unix(PathBuf),
}

/// How a server was reached.
struct Route {
    place: Place,
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

impl Route {
    async fn socket(&self) -> io::Result<Socket> {
        match &self.place {
            Place::Tcp(address, _) => dial(*address, &self.config).await,
            Place::Unix(path) => Ok(Either::Right(within(&self.config, UnixStream::connect(path)).await?)),
        }
    }

    /// TLS, unless the settings exclude it. As everywhere else, there is none on a socket of this
    /// machine.
    fn tls(&self) -> io::Result<Option<Rustls>> {
        let (Place::Tcp(_, name), Some(tls)) = (&self.place, &self.tls) else { return Ok(None) };
        let tls = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), name);
        tls.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

/// Cancels the statement that a connection runs, by a request on a connection of its own.
pub(super) struct Canceller {
    token: CancelToken,
    route: Arc<Route>,
}

impl Canceller {
    /// Sends the request. The server tells nobody whether there was a statement to cancel.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) async fn cancel(&self) -> Result<(), NotConnected> {
        let socket = self.route.socket().await?;
        match self.route.tls()? {
            Some(tls) => self.token.cancel_query_raw(socket, tls).await?,
            None => self.token.cancel_query_raw(socket, NoTls).await?,
        }
        Ok(())
    }
}

/// Connects to the first server of the settings that can be reached and is of the kind that is
/// asked for.
pub(super) async fn connect(config: &Config, tls: Option<&MakeRustlsConnect>) -> Result<Connected, NotConnected> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    let fits = |given: usize| given == 0 || given == count;
    if count == 0 {
        return Err(NotConnected::Settings("both host and hostaddr are missing"));
    }
    if !fits(hosts.len()) || !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1) {
        return Err(NotConnected::Settings("as many hosts, hostaddrs and ports are needed of each"));
    }
    let random = config.get_load_balance_hosts() == LoadBalanceHosts::Random;
    let mut order: Vec<usize> = (0..count).collect();
    if random {
        order.shuffle(&mut rand::rng());
    }
    let mut failed = NotConnected::Settings("the host has no address");
    for i in order {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(PORT);
        let places = match (hosts.get(i), addresses.get(i)) {
            (Some(Host::Unix(folder)), None) => Ok(vec![Place::Unix(folder.join(format!(".s.PGSQL.{port}")))]),
            (Some(Host::Tcp(name)), Some(address)) => Ok(vec![Place::Tcp((*address, port).into(), name.clone())]),
            (_, Some(address)) => Ok(vec![Place::Tcp((*address, port).into(), address.to_string())]),
            (Some(Host::Tcp(name)), None) => lookup_host((name.as_str(), port))
                .await
                .map(|found| found.map(|address| Place::Tcp(address, name.clone())).collect()),
            (None, None) => continue,
        };
        let mut places = match places {
            Ok(places) => places,
            Err(error) => {
                failed = error.into();
                continue;
            }
        };
        if random {
            places.shuffle(&mut rand::rng());
        }
        for place in places {
            match connect_to(place, config, tls).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failed = error,
            }
        }
    }
    Err(failed)
}

async fn connect_to(place: Place, config: &Config, tls: Option<&MakeRustlsConnect>) -> Result<Connected, NotConnected> {
    let mut config = config.clone();
    if matches!(place, Place::Unix(_)) {
        config.ssl_mode(SslMode::Disable);
    }
    let route = Route { place, config, tls: tls.cloned() };
    let (socket, last_code) = (route.socket().await?, LastCode::default());
    match route.tls()? {
        Some(tls) => {
            let tls = TappedTls { tls, last_code: last_code.clone() };
            let connected = route.config.connect_raw(Tap::new(socket, last_code.clone(), 1), tls).await?;
            adopt(connected, route, last_code).await
        }
        None => {
            let connected = route.config.connect_raw(Tap::new(socket, last_code.clone(), 0), NoTls).await?;
            adopt(connected, route, last_code).await
        }
    }
}

/// A socket with the settings that notice a server that is gone.
async fn dial(address: SocketAddr, config: &Config) -> io::Result<Socket> {
    let stream = within(config, TcpStream::connect(address)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(config.get_tcp_user_timeout().copied())?;
    if config.get_keepalives() {
        let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
        if let Some(interval) = config.get_keepalives_interval() {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(retries) = config.get_keepalives_retries() {
            keepalive = keepalive.with_retries(retries);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    Ok(Either::Left(stream))
}

async fn within<S>(config: &Config, connecting: impl Future<Output = io::Result<S>>) -> io::Result<S> {
    match config.get_connect_timeout() {
        Some(timeout) => tokio::time::timeout(*timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out"))),
        None => connecting.await,
    }
}

/// Starts the driver, and looks whether the server is of the kind that is asked for.
async fn adopt<T: TlsStream + Unpin + Send + 'static>(
    (client, connection): (Client, Connection<Tap<Socket>, T>),
    route: Route,
    last_code: LastCode,
) -> Result<Connected, NotConnected> {
    let (driver, ended) = oneshot::channel();
    let (notified, notifications) = mpsc::unbounded_channel();
    tokio::spawn(drive(connection, ended, notified));
    let wanted = route.config.get_target_session_attrs();
    if wanted != TargetSessionAttrs::Any {
        let answer = client.simple_query("SHOW transaction_read_only").await?;
        let is_read_only = answer.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
            _ => false,
        });
        if is_read_only != (wanted == TargetSessionAttrs::ReadOnly) {
            let why = if is_read_only { "database does not allow writes" } else { "database is not read only" };
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why).into());
        }
    }
    let conn: ConnectionResult<_> = AsyncPgConnection::try_from(client).await;
    let conn = conn.map_err(NotConnected::Diesel)?;
    Ok(Connected { conn, last_code, route: Arc::new(route), notifications, driver, in_transaction: false })
}

/// Moves the connection's bytes until it ends or its owner is gone, and passes notifications on.
async fn drive<T: TlsStream + Unpin + Send + 'static>(
    mut connection: Connection<Tap<Socket>, T>,
    mut owner: oneshot::Receiver<()>,
    notified: mpsc::UnboundedSender<String>,
) {
    let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
    let mut is_owned = true;
    loop {
        let message = tokio::select! {
            left = &mut owner, if is_owned => match left {
                Ok(()) => {
                    is_owned = false;
                    continue;
                }
                // Also in the middle of a statement: nobody waits for its answer.
                Err(_) => return,
            },
            message = messages.next() => message,
        };
        match message {
            Some(Ok(AsyncMessage::Notification(notification))) => {
                notified.send(notification.payload().to_owned()).ok();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                log::debug!(error = told(&error).as_str(); "a connection to the database ended");
                return;
            }
            None => return,
        }
    }
}
