//! A TCP proxy between a server and its database, which does to their connections what networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What happens to what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It arrives.
    Open,
    /// Every connection is reset, also new ones.
    Reset,
    /// Nothing arrives any more, in either direction, and nobody is told.
    BlackHole,
    /// It arrives this much later, and no more than so many bytes a second.
    Slow(Duration, usize),
}

struct Shared {
    line: watch::Sender<Line>,
    /// So many commits are cut off from their answers.
    commits: AtomicUsize,
}

/// See the module. It runs on a thread of its own, until it is dropped.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// To this port of loopback.
    pub fn to(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared { line: watch::Sender::new(Line::Open), commits: AtomicUsize::new(0) });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let here = listener.local_addr().unwrap().port();
        runtime.spawn(accept(listener, SocketAddr::from(([127, 0, 0, 1], port)), shared.clone()));
        Self { port: here, shared, runtime: Some(runtime) }
    }

    pub fn set(&self, line: Line) {
        self.shared.line.send_replace(line);
    }

    /// Cuts the connections of the next so many commits when the database has answered them, before the answer arrives.
    pub fn cut_commits(&self, number: usize) {
        self.shared.commits.store(number, Ordering::SeqCst);
    }

    /// How many are still to be cut.
    pub fn commits_to_cut(&self) -> usize {
        self.shared.commits.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, to: SocketAddr, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(pass(client, to, shared.clone()));
    }
}

async fn pass(client: TcpStream, to: SocketAddr, shared: Arc<Shared>) {
    // A reset, not a polite end, when it is dropped.
    client.set_zero_linger().ok();
    client.set_nodelay(true).ok();
    let mut line = shared.line.subscribe();
    if *line.borrow_and_update() == Line::Reset {
        return;
    }
    let Ok(server) = TcpStream::connect(to).await else { return };
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The answer to a commit is what comes next from the server.
    let cut = watch::Sender::new(false);
    tokio::select! {
        () = carry(from_client, to_server, &shared, &cut, true) => {}
        () = carry(from_server, to_client, &shared, &cut, false) => {}
        _ = line.wait_for(|line| *line == Line::Reset) => {}
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    cut: &watch::Sender<bool>,
    is_request: bool,
) {
    let mut line = shared.line.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if is_request && buffer[..length].windows(7).any(|window| window == b"COMMIT\0") {
            let one_less = |left: usize| left.checked_sub(1);
            if shared.commits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                cut.send_replace(true);
            }
        }
        if !is_request && *cut.borrow() {
            return;
        }
        loop {
            let now = *line.borrow_and_update();
            match now {
                Line::BlackHole => {}
                Line::Slow(delay, bytes_a_second) => {
                    tokio::time::sleep(delay + Duration::from_secs_f64(length as f64 / bytes_a_second as f64)).await;
                    break;
                }
                Line::Open | Line::Reset => break,
            }
            if line.changed().await.is_err() {
                return;
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
