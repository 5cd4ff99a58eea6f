//! A connection to the server that remembers the code (SQLSTATE) of the last error the server sent.
//!
//! What an error means is decided by its code: messages come in the server's language. diesel passes the message on and
//! drops the code, and the type that still has it is private. So the bytes from the server are read on their way to
//! tokio-postgres ([`Tap`]): type and length of each message, and of an ErrorResponse the field `C`. The alternatives were
//! worse: the text can't be trusted, `lc_messages` needs a superuser, and running each statement twice costs a round trip.
//!
//! tokio-postgres takes a stream of ours only without its own connecting, hence [`connect`]: hosts in turn (or shuffled),
//! each address of a host, the settings of the socket, and `target_session_attrs`, as libpq does.

use crate::store::SqlState;
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use futures_util::{StreamExt, stream};
use rand::seq::SliceRandom;
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState as Code;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::either::Either;

/// The code is among the first fields of an error; the rest of a long one isn't kept.
const KEPT: usize = 512;
/// PostgreSQL's port.
const PORT: u16 = 5432;

type Socket = Either<TcpStream, UnixStream>;

type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// The code of the last error on a connection; 0 is none. The driver writes it before the caller sees the error.
#[derive(Clone, Debug, Default)]
struct LastCode(Arc<AtomicU64>);

impl LastCode {
    fn set(&self, code: Option<SqlState>) {
        let number = code.map_or(0, |code| code.0.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        self.0.store(number, Ordering::Release);
    }

    fn get(&self) -> Option<SqlState> {
        let [_, _, _, code @ ..] = self.0.load(Ordering::Acquire).to_be_bytes();
        (code != [0; 5]).then_some(SqlState(code))
    }
}

/// An open connection. Its driver is a task on the runtime where it was opened, and ends with it.
pub(super) struct Connected {
    conn: AsyncPgConnection,
    last_code: LastCode,
    notifications: mpsc::UnboundedReceiver<String>,
    driver: oneshot::Sender<()>,
}

impl Connected {
    /// Forgets errors of earlier statements.
    pub(super) fn forget_code(&self) {
        self.last_code.set(None);
    }

    /// The code of the last error that the server sent.
    pub(super) fn code(&self) -> Option<SqlState> {
        self.last_code.get()
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

/// Connects to the first server of the settings that can be reached and is of the kind that is asked for.
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
    let last_code = LastCode::default();
    match (place, tls) {
        (Place::Tcp(address, name), Some(tls)) => {
            let socket = Tap::new(dial(address, config).await?, last_code.clone(), 1);
            let tls = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), &name)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let tls = TappedTls { tls, last_code: last_code.clone() };
            adopt(config.connect_raw(socket, tls).await?, config, last_code).await
        }
        (Place::Tcp(address, _), None) => {
            let socket = Tap::new(dial(address, config).await?, last_code.clone(), 0);
            adopt(config.connect_raw(socket, NoTls).await?, config, last_code).await
        }
        // As everywhere else, there is no TLS on a socket of this machine.
        (Place::Unix(path), _) => {
            let socket = Either::Right(within(config, UnixStream::connect(path)).await?);
            let mut plain = config.clone();
            plain.ssl_mode(SslMode::Disable);
            let connected = plain.connect_raw(Tap::new(socket, last_code.clone(), 0), NoTls).await?;
            adopt(connected, config, last_code).await
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
    config: &Config,
    last_code: LastCode,
) -> Result<Connected, NotConnected> {
    let (driver, ended) = oneshot::channel();
    let (notified, notifications) = mpsc::unbounded_channel();
    tokio::spawn(drive(connection, ended, notified));
    let wanted = config.get_target_session_attrs();
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
    Ok(Connected { conn: conn.map_err(NotConnected::Diesel)?, last_code, notifications, driver })
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

/// TLS over a socket that was tapped: what it deciphers is tapped instead.
struct TappedTls {
    tls: Rustls,
    last_code: LastCode,
}

impl TlsConnect<Tap<Socket>> for TappedTls {
    type Stream = Tap<<Rustls as TlsConnect<Socket>>::Stream>;
    type Error = <Rustls as TlsConnect<Socket>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, socket: Tap<Socket>) -> Self::Future {
        let connecting = self.tls.connect(socket.stream);
        Box::pin(async move { Ok(Tap::new(connecting.await?, self.last_code, 0)) })
    }
}

/// A stream from a server, with an ear for errors.
struct Tap<S> {
    stream: S,
    last_code: LastCode,
    reader: Reader,
}

impl<S> Tap<S> {
    /// The first `lead` bytes belong to no message: the answer to the question whether the server speaks TLS.
    fn new(stream: S, last_code: LastCode, lead: usize) -> Self {
        Self { stream, last_code, reader: Reader { lead, ..Reader::default() } }
    }
}

impl<S> fmt::Debug for Tap<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(code) = self.reader.feed(&buf.filled()[before..]) {
            self.last_code.set(Some(code));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// Follows the messages of the protocol: a byte for the type, four for the length (itself included), the body.
#[derive(Default)]
struct Reader {
    lead: usize,
    head: [u8; 5],
    head_len: usize,
    /// Bytes of the body that are still to come.
    body_left: usize,
    /// The beginning of an error's body.
    error: Option<Vec<u8>>,
}

impl Reader {
    /// Takes the next bytes; answers the code of the last error that is complete by them.
    fn feed(&mut self, mut bytes: &[u8]) -> Option<SqlState> {
        let lead = self.lead.min(bytes.len());
        self.lead -= lead;
        bytes = &bytes[lead..];
        let mut code = None;
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let (body, rest) = bytes.split_at(self.body_left.min(bytes.len()));
                if let Some(error) = &mut self.error {
                    error.extend(&body[..body.len().min(KEPT - error.len())]);
                }
                self.body_left -= body.len();
                bytes = rest;
            } else {
                let (head, rest) = bytes.split_at((self.head.len() - self.head_len).min(bytes.len()));
                self.head[self.head_len..self.head_len + head.len()].copy_from_slice(head);
                self.head_len += head.len();
                bytes = rest;
                if self.head_len < self.head.len() {
                    break;
                }
                self.head_len = 0;
                let [kind, length @ ..] = self.head;
                self.body_left = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                self.error = (kind == b'E').then(Vec::new);
            }
            if self.body_left == 0
                && let Some(error) = self.error.take()
            {
                code = code_of(&error).or(code);
            }
        }
        code
    }
}

/// The field `C` of an error: each field is a byte for its type and a text that a NUL ends.
fn code_of(body: &[u8]) -> Option<SqlState> {
    let field = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&b'C'))?;
    Some(SqlState(field.get(1..)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend(body);
        message
    }

    fn error(code: &str, said: &str) -> Vec<u8> {
        message(b'E', format!("SОШИБКА\0VERROR\0C{code}\0M{said}\0\0").as_bytes())
    }

    proptest! {
        #[test]
        fn the_last_code_is_found_however_the_bytes_are_cut(cuts in prop::collection::vec(1usize..40, 0..60)) {
            let long = "C".repeat(2_000);
            let all = [
                b"S".to_vec(), message(b'R', &[0, 0, 0, 0]), message(b'Z', b"I"), error("22021", &long),
                message(b'D', b"E\0\0\0\x09C00000\0"), message(b'1', b""), error("55P03", "C99999"), message(b'Z', b"E"),
            ].concat();
            let mut reader = Reader { lead: 1, ..Reader::default() };
            let (mut rest, mut found) = (&all[..], Vec::new());
            for cut in cuts {
                let (first, second) = rest.split_at(cut.min(rest.len()));
                found.extend(reader.feed(first));
                rest = second;
            }
            found.extend(reader.feed(rest));
            prop_assert_eq!(found.last(), Some(&SqlState(*b"55P03")));
            prop_assert!(found.len() <= 2);
        }
    }

    #[test]
    fn a_code_is_kept_until_it_is_forgotten() {
        let last = LastCode::default();
        assert_eq!(last.get(), None);
        last.set(Some(SqlState(*b"22P05")));
        assert_eq!(last.clone().get(), Some(SqlState(*b"22P05")));
        last.set(None);
        assert_eq!(last.get(), None);
    }
}
