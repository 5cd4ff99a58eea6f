//! The client against real sockets on loopback.

use super::client::{Answer, ClientSettings, MAX_BODY, PostError, PostErrorKind, WebhookClient};
use super::guard::{Looking, Lookup};
use reqwest::header::HeaderMap;
use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// For answers that never come.
const SHORT: Duration = Duration::from_millis(300);

/// A listener that counts its connections and keeps what the last request said.
struct Receiver {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    request: Arc<Mutex<String>>,
}

impl Receiver {
    /// Listens at `address`, and has `reply` answer each request after it was read.
    async fn at<F: Future<Output = ()> + Send>(
        address: &str,
        reply: impl Fn(TcpStream) -> F + Send + Sync + Copy + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (connections, request) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(String::new())));
        let (count, last) = (connections.clone(), request.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let last = last.clone();
                tokio::spawn(async move {
                    let mut text = String::new();
                    let mut buffer = [0; 4096];
                    while !text.ends_with("{}") {
                        match stream.read(&mut buffer).await {
                            Ok(0) | Err(_) => return,
                            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                        }
                    }
                    *last.lock().expect("no panic") = text;
                    reply(stream).await;
                });
            }
        });
        Self { address, connections, request }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

async fn write(mut stream: TcpStream, text: &str) {
    // The client may have closed the connection.
    stream.write_all(text.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

async fn fine(stream: TcpStream) {
    write(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
}

fn client(allow: &[&str]) -> WebhookClient {
    WebhookClient::new(&settings(allow)).expect("a client")
}

fn settings(allow: &[&str]) -> ClientSettings {
    let allow = allow.iter().map(|network| network.parse().expect("a network")).collect();
    ClientSettings { allow, idle_per_host: 2 }
}

async fn post(client: &WebhookClient, url: &str, timeout: Duration) -> Result<Answer, PostError> {
    client.post(url, HeaderMap::new(), b"{}".to_vec(), timeout).await
}

/// Answers each lookup with the next of these lists; with the last one from then on.
struct Scripted {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    lookups: AtomicUsize,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |list: &&[&str]| list.iter().map(|ip| ip.parse().expect("an address")).collect();
        Arc::new(Self { answers: Mutex::new(answers.iter().map(parse).collect()), lookups: AtomicUsize::new(0) })
    }
}

impl Lookup for Scripted {
    fn lookup(&self, _: String) -> Looking {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().expect("no panic");
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        let found = answer.unwrap_or_default().into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
        Box::pin(async move { Ok(found) })
    }
}

#[tokio::test]
async fn no_spelling_of_loopback_reaches_a_listener_unless_it_is_allowed() {
    // Where the machine has IPv6, `[::]` takes IPv4 connections as well.
    let six = TcpListener::bind("[::1]:0").await.is_ok();
    let receiver = Receiver::at(if six { "[::]:0" } else { "0.0.0.0:0" }, fine).await;
    let port = receiver.address.port();
    let (guarded, free) = (client(&[]), client(&["127.0.0.0/8", "0.0.0.0/32", "::1/128", "::/128"]));
    let mut hosts = vec![
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "127.0.0.1.",
        "localhost",
        "127.9.9.9",
        "user:password@127.0.0.1",
    ];
    if six {
        hosts.extend(["[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"]);
    }
    for host in &hosts {
        let url = format!("http://{host}:{port}/");
        let error = post(&guarded, &url, LONG).await.expect_err(host);
        let is_name = *host == "localhost";
        assert_eq!(error.kind, if is_name { PostErrorKind::RefusedName } else { PostErrorKind::Refused }, "{host}");
        assert!(!error.text.contains("password"), "{error}");
    }
    assert_eq!(receiver.connections(), 0);
    for (at, host) in hosts.iter().enumerate() {
        let answer = post(&free, &format!("http://{host}:{port}/"), LONG).await.expect(host);
        assert_eq!((answer.status.as_u16(), receiver.connections()), (200, at + 1), "{host}");
    }
}

/// One loopback address stands for a public one, since it is allowed, and another one for a private
/// one.
#[tokio::test]
async fn a_name_that_is_public_first_and_private_then_never_reaches_the_private_address() {
    let public = Receiver::at("127.0.0.2:0", fine).await;
    let port = public.address.port();
    let private = Receiver::at(&format!("127.0.0.1:{port}"), fine).await;
    let lookup = Scripted::new(&[&["127.0.0.2"], &["127.0.0.1"]]);
    let client = WebhookClient::with_lookup(&settings(&["127.0.0.2/32"]), lookup.clone()).expect("a client");
    let url = format!("http://rebinding.example:{port}/");
    assert_eq!(post(&client, &url, LONG).await.expect("public").status, 200);
    assert_eq!(lookup.lookups.load(Ordering::SeqCst), 1, "the answer that was checked is the one that is connected to");
    let error = post(&client, &url, LONG).await.expect_err("private");
    assert_eq!(error.kind, PostErrorKind::RefusedName);
    assert!(error.text.contains("127.0.0.1, which is loopback"), "{error}");
    assert_eq!((public.connections(), private.connections()), (1, 0));
}

#[tokio::test]
async fn of_a_names_addresses_only_the_fine_ones_are_connected_to() {
    let public = Receiver::at("127.0.0.2:0", fine).await;
    let port = public.address.port();
    let private = Receiver::at(&format!("127.0.0.1:{port}"), fine).await;
    let lookup = Scripted::new(&[&["127.0.0.1", "127.0.0.2", "::1"]]);
    let client = WebhookClient::with_lookup(&settings(&["127.0.0.2/32"]), lookup).expect("a client");
    for _ in 0..3 {
        assert!(post(&client, &format!("http://mixed.example:{port}/"), LONG).await.is_ok());
    }
    assert_eq!((public.connections(), private.connections()), (3, 0));
}

#[tokio::test]
async fn redirects_are_answers_and_are_not_followed() {
    let receiver = Receiver::at("127.0.0.1:0", |stream| {
        write(stream, "HTTP/1.1 307 Go\r\nconnection: close\r\nlocation: /else\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let answer = post(&client(&["127.0.0.1/32"]), &receiver.url(), LONG).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), receiver.connections()), (307, 1));
}

#[tokio::test]
async fn answers_that_never_end_are_given_up_after_the_timeout() {
    let client = client(&["127.0.0.1/32"]);
    let hanging = Receiver::at("127.0.0.1:0", |stream| async {
        tokio::time::sleep(LONG).await;
        drop(stream);
    })
    .await;
    let dripping = Receiver::at("127.0.0.1:0", |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.ok();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let endless_head = Receiver::at("127.0.0.1:0", |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await.ok();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for receiver in [hanging, dripping, endless_head] {
        let start = Instant::now();
        let error = post(&client, &receiver.url(), SHORT).await.expect_err("no answer");
        assert_eq!(error.kind, PostErrorKind::Timeout);
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn broken_and_endless_answers_are_errors_and_long_bodies_are_cut() {
    let client = client(&["127.0.0.1/32"]);
    let early =
        Receiver::at("127.0.0.1:0", |stream| write(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")).await;
    let closing = Receiver::at("127.0.0.1:0", |stream| async { drop(stream) }).await;
    let garbage = Receiver::at("127.0.0.1:0", |stream| write(stream, "220 mail.example ESMTP\r\n")).await;
    let huge_head = Receiver::at("127.0.0.1:0", |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok();
        while stream.write_all(format!("x: {}\r\n", "y".repeat(60_000)).as_bytes()).await.is_ok() {}
    })
    .await;
    for receiver in [early, closing, garbage, huge_head] {
        let error = post(&client, &receiver.url(), LONG).await.expect_err("no answer");
        assert_eq!(error.kind, PostErrorKind::Protocol, "{error}");
    }
    let endless = Receiver::at("127.0.0.1:0", |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok();
        while stream.write_all(&[b'z'; 10_000]).await.is_ok() {}
    })
    .await;
    let answer = post(&client, &endless.url(), LONG).await.expect("an answer");
    assert!(answer.truncated && answer.body.len() == MAX_BODY);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nobody = listener.local_addr().expect("its address");
    drop(listener);
    let error = post(&client, &format!("http://{nobody}/"), LONG).await.expect_err("nobody listens");
    assert_eq!(error.kind, PostErrorKind::Connect, "{error}");
}

#[tokio::test]
async fn a_password_in_the_url_is_sent_and_not_shown() {
    let receiver = Receiver::at("127.0.0.1:0", |stream| async { drop(stream) }).await;
    let url = format!("http://user:hunter2@{}/path?token=hunter2", receiver.address);
    let error = post(&client(&["127.0.0.1/32"]), &url, LONG).await.expect_err("it closed");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    let request = receiver.request.lock().expect("no panic").clone();
    assert!(request.starts_with("POST /path?token=hunter2 HTTP/1.1"), "{request}");
    assert!(request.contains("authorization: Basic dXNlcjpodW50ZXIy"), "{request}");
    assert!(request.contains("content-type: application/json"), "{request}");
}

#[tokio::test]
async fn retry_after_is_passed_on() {
    let receiver = Receiver::at("127.0.0.1:0", |stream| {
        write(stream, "HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let answer = post(&client(&["127.0.0.1/32"]), &receiver.url(), LONG).await.expect("an answer");
    assert_eq!(answer.retry_after.as_deref(), Some("7"));
}
