//! A small server for one agent at a time.

use super::*;
use crate::domain::protocol::{AgentFrame, Hello, MAX_FRAME, RunResult, ServerFrame, Stored, Welcome};
use futures_util::{SinkExt, StreamExt};
use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// A plain HTTP request: its head in lower case, and its body.
pub(super) type Asked = (String, serde_json::Value);

/// The beginning of the request for the stream.
const STREAM: [u8; STREAM_LEN] = *b"GET /v1/agent/stream";
const STREAM_LEN: usize = 20;

/// Answers enrolling and accepts connections.
pub(super) struct Server {
    pub(super) url: String,
    /// Status (0: no answer is sent) and body for every enrolling.
    pub(super) answer: Arc<Mutex<(u16, String)>>,
    /// Answers before that one, in order.
    pub(super) first: Arc<Mutex<VecDeque<(u16, String)>>>,
    pub(super) enrolled: mpsc::UnboundedReceiver<Asked>,
    /// Answers to the calls of a check-in, in order.
    pub(super) check_in: Arc<Mutex<VecDeque<(u16, String)>>>,
    sessions: mpsc::UnboundedReceiver<(String, WebSocketStream<TcpStream>)>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let answer = Arc::new(Mutex::new((201, r#"{"agent":"a","token":"own"}"#.to_owned())));
        let (tell_enrolled, enrolled) = mpsc::unbounded_channel();
        let (tell_session, sessions) = mpsc::unbounded_channel();
        let answers = answer.clone();
        let first = Arc::new(Mutex::new(VecDeque::new()));
        let firsts = first.clone();
        let check_in = Arc::new(Mutex::new(VecDeque::new()));
        let script = check_in.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut start = [0; STREAM.len()];
                while !matches!(stream.peek(&mut start).await, Ok(0 | STREAM_LEN) | Err(_)) {
                    tokio::task::yield_now().await;
                }
                if start != STREAM {
                    let request = read_request(&mut stream).await;
                    let (status, body) = if request.0.starts_with("post /v1/agent/enroll") {
                        let once = firsts.lock().expect("not poisoned").pop_front();
                        once.unwrap_or_else(|| answers.lock().expect("not poisoned").clone())
                    } else {
                        script.lock().expect("not poisoned").pop_front().expect("an answer in the script")
                    };
                    if status == 0 {
                        // The answer gets lost.
                        let _ = tell_enrolled.send(request);
                        continue;
                    }
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = tell_enrolled.send(request);
                } else {
                    let mut bearer = String::new();
                    #[expect(clippy::result_large_err, reason = "the library's type")]
                    let upgrade = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
                        assert_eq!(request.uri().path(), "/v1/agent/stream");
                        let header = request.headers().get("authorization").expect("a token");
                        bearer = header.to_str().expect("text").to_owned();
                        Ok(response)
                    };
                    if let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, upgrade).await {
                        let _ = tell_session.send((bearer, socket));
                    }
                }
            }
        });
        Self { url, answer, first, enrolled, check_in, sessions }
    }

    /// The next connection, after its `hello`.
    #[track_caller]
    pub(super) fn connection(&mut self) -> impl Future<Output = Peer> {
        let next = soon(self.sessions.recv());
        async move {
            let (bearer, socket) = next.await.expect("a connection");
            let mut peer = Peer {
                bearer,
                socket,
                hello: Hello {
                    version: String::new(),
                    facts: None,
                    instance: None,
                    capacity: 0,
                    running: Vec::new(),
                    clock: None,
                },
            };
            let AgentFrame::Hello(hello) = peer.frame().await else { panic!("no hello") };
            peer.hello = hello;
            peer
        }
    }

    /// The next connection, after `welcome`.
    #[track_caller]
    pub(super) fn session(&mut self) -> impl Future<Output = Peer> {
        let connection = self.connection();
        async move {
            let mut peer = connection.await;
            peer.welcome(Timestamp::of_this_machine()).await;
            peer
        }
    }
}

/// The server's side of an agent's connection.
pub(super) struct Peer {
    pub(super) bearer: String,
    pub(super) hello: Hello,
    pub(super) socket: WebSocketStream<TcpStream>,
}

impl Peer {
    pub(super) async fn welcome(&mut self, server_time: Timestamp) {
        self.send(&ServerFrame::Welcome(Welcome {
            agent: "a".into(),
            server_time,
            clock: None,
            metadata_interval: None,
        }))
        .await;
    }

    pub(super) async fn send(&mut self, frame: &ServerFrame) {
        self.socket.send(Message::text(frame.to_text())).await.expect("sent");
    }

    pub(super) async fn commands(&mut self, commands: impl IntoIterator<Item = Command>) {
        self.send(&ServerFrame::Commands { commands: commands.into_iter().collect() }).await;
    }

    pub(super) async fn stored(&mut self, commands: Vec<RunRef>) {
        self.send(&ServerFrame::Stored(Stored { commands, rejected: Vec::new() })).await;
    }

    pub(super) async fn message(&mut self) -> Message {
        loop {
            match soon(self.socket.next()).await.expect("a message").expect("a whole one") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    pub(super) async fn frame(&mut self) -> AgentFrame {
        let message = self.message().await;
        let text = message.to_text().expect("text");
        assert!(message.is_text() && text.len() <= MAX_FRAME, "{} bytes", text.len());
        AgentFrame::parse(text).expect("a frame").expect("a known one")
    }

    /// Expects `received` as the next frame.
    pub(super) async fn received(&mut self) -> Vec<RunRef> {
        match self.frame().await {
            AgentFrame::Received { commands } => commands,
            other => panic!("{other:?}"),
        }
    }

    /// Expects `results` as the next frame.
    pub(super) async fn results(&mut self) -> Vec<RunResult> {
        match self.frame().await {
            AgentFrame::Results { results } => results,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the agent's close, ignoring what comes before it.
    pub(super) async fn closed(&mut self) -> CloseFrame {
        loop {
            if let Message::Close(frame) = self.message().await {
                return frame.expect("a code");
            }
        }
    }

    pub(super) async fn close(&mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.socket.close(Some(frame)).await.expect("closed");
    }
}

async fn read_request(stream: &mut TcpStream) -> Asked {
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.expect("readable") > 0, "a whole request");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let body = if head.starts_with("GET") { "null" } else { body };
        if let Ok(body) = serde_json::from_str(body) {
            return (head.to_lowercase(), body);
        }
    }
}
