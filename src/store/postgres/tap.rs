//! The code (SQLSTATE) of the last error that a server sent, read from the bytes of the connection.
//!
//! What an error means is decided by its code: messages come in the server's language. diesel
//! passes the message on and drops the code, and the type that still has it is private. So the
//! bytes from the server are read on their way to tokio-postgres: type and length of each message,
//! and of an ErrorResponse the field `C`. The alternatives were worse: the text can't be trusted,
//! `lc_messages` needs a superuser, and running each statement twice costs a round trip.

use crate::store::SqlState;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::either::Either;

/// The code is among the first fields of an error; the rest of a long one isn't kept.
const KEPT: usize = 512;

/// A socket to a server.
pub(super) type Socket = Either<TcpStream, UnixStream>;

/// TLS over it.
pub(super) type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// The code of the last error on a connection; 0 is none. The driver writes it before the caller
/// sees the error.
#[derive(Clone, Debug, Default)]
pub(super) struct LastCode(Arc<AtomicU64>);

impl LastCode {
    pub(super) fn set(&self, code: Option<SqlState>) {
        let number = code.map_or(0, |code| code.0.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        self.0.store(number, Ordering::Release);
    }

    pub(super) fn get(&self) -> Option<SqlState> {
        let [_, _, _, code @ ..] = self.0.load(Ordering::Acquire).to_be_bytes();
        (code != [0; 5]).then_some(SqlState(code))
    }
}

/// TLS over a socket that was tapped: what it deciphers is tapped instead.
pub(super) struct TappedTls {
    pub(super) tls: Rustls,
    pub(super) last_code: LastCode,
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
pub(super) struct Tap<S> {
    stream: S,
    last_code: LastCode,
    reader: Reader,
}

impl<S> Tap<S> {
    /// The first `lead` bytes belong to no message: the answer to the question whether the server
    /// speaks TLS.
    pub(super) fn new(stream: S, last_code: LastCode, lead: usize) -> Self {
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

/// Follows the messages of the protocol: a byte for the type, four for the length (itself
/// included), the body.
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
