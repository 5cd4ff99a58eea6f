//! Agents that speak the protocol over WebSockets and answer each command at once.

use super::server::Process;
use crate::domain::protocol::{AgentFrame, Hello, RunResult, RunStatus, ServerFrame};
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Connections that are being made at the same time: about as many as a listener keeps.
const CONNECTING: usize = 1_000;
/// Agents that enroll at the same time.
const ENROLLING: usize = 32;
/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Commands that an agent takes at a time.
const CAPACITY: u32 = 16;

type Failure = Box<dyn Error + Send + Sync>;

/// What all agents share.
#[derive(Default)]
struct Counts {
    welcomed: AtomicUsize,
    /// Results that are stored.
    results: AtomicUsize,
    failed: AtomicUsize,
}

/// See the module.
pub(super) struct Agents {
    address: SocketAddr,
    runtime: Handle,
    tokens: Vec<String>,
    counts: Arc<Counts>,
    running: Vec<JoinHandle<()>>,
}

impl Agents {
    pub(super) fn new(address: SocketAddr, runtime: &tokio::runtime::Runtime) -> Self {
        let (runtime, counts) = (runtime.handle().clone(), Arc::default());
        Self { address, runtime, tokens: Vec::new(), counts, running: Vec::new() }
    }

    /// Gets a token for each of so many agents.
    pub(super) async fn enroll(&mut self, server: &Process, number: u32) -> Result<(), Box<dyn Error>> {
        let mut calls = FuturesUnordered::new();
        for agent in 0..number {
            if calls.len() >= ENROLLING {
                self.tokens.extend(calls.next().await.transpose()?);
            }
            calls.push(server.enroll(format!("agent-{agent:06}")));
        }
        while let Some(token) = calls.next().await {
            self.tokens.push(token?);
        }
        Ok(())
    }

    /// As many agents without tokens.
    pub(super) fn need_no_tokens(&mut self, number: u32) {
        self.tokens = vec!["none".to_owned(); number as usize];
    }

    pub(super) fn number(&self) -> usize {
        self.tokens.len()
    }

    /// Connects all, and waits until each is welcome.
    pub(super) async fn connect(&mut self) -> Result<(), Box<dyn Error>> {
        self.counts.welcomed.store(0, Ordering::SeqCst);
        let room = Arc::new(Semaphore::new(CONNECTING));
        for token in &self.tokens {
            let (address, token, counts, room) = (self.address, token.clone(), self.counts.clone(), room.clone());
            self.running.push(self.runtime.spawn(async move {
                if let Err(error) = agent(address, &token, &counts, &room).await
                    && counts.failed.fetch_add(1, Ordering::SeqCst) == 0
                {
                    eprintln!("an agent's connection ended: {error}");
                }
            }));
        }
        let counts = self.counts.clone();
        self.until(|| counts.welcomed.load(Ordering::SeqCst), self.number()).await
    }

    /// Closes all connections, as a machine that is switched off does.
    pub(super) fn leave(&mut self) {
        self.running.drain(..).for_each(|running| running.abort());
    }

    /// Results that were stored so far.
    pub(super) fn results(&self) -> usize {
        self.counts.results.load(Ordering::SeqCst)
    }

    /// Waits until so many results are stored.
    pub(super) async fn until_results(&self, number: usize) -> Result<(), Box<dyn Error>> {
        self.until(|| self.results(), number).await
    }

    async fn until(&self, count: impl Fn() -> usize, expected: usize) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        while count() < expected {
            let failed = self.counts.failed.load(Ordering::SeqCst);
            if failed > 0 {
                return Err(format!("{failed} connections ended").into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{} of {expected} after {} s", count(), PATIENCE.as_secs()).into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// One agent, until its connection ends.
async fn agent(address: SocketAddr, token: &str, counts: &Counts, room: &Semaphore) -> Result<(), Failure> {
    let connecting = room.acquire().await?;
    let mut request = format!("ws://{address}/v1/agent/stream").into_client_request()?;
    request.headers_mut().insert("Authorization", format!("Bearer {token}").parse()?);
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    // Buffers are small: there are thousands of them.
    let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
    let (mut socket, _) = client_async_with_config(request, tcp, Some(config)).await?;
    let hello = Hello {
        version: "bench".into(),
        facts: None,
        instance: None,
        capacity: CAPACITY,
        running: Vec::new(),
        clock: None,
    };
    socket.send(Message::text(AgentFrame::Hello(hello).to_text())).await?;
    let mut connecting = Some(connecting);
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        match ServerFrame::parse(&text)? {
            Some(ServerFrame::Welcome(_)) => {
                connecting = None;
                counts.welcomed.fetch_add(1, Ordering::SeqCst);
            }
            Some(ServerFrame::Commands { commands }) => {
                let runs: Vec<_> = commands.iter().map(|command| command.run_ref()).collect();
                let results = runs.iter().map(|run| RunResult {
                    action: run.action,
                    run: run.run,
                    status: RunStatus::Succeeded,
                    results: Vec::new(),
                    started_at: None,
                    finished_at: None,
                });
                let results = AgentFrame::Results { results: results.collect() };
                socket.feed(Message::text(AgentFrame::Received { commands: runs }.to_text())).await?;
                socket.send(Message::text(results.to_text())).await?;
            }
            Some(ServerFrame::Stored(stored)) => {
                counts.results.fetch_add(stored.commands.len(), Ordering::SeqCst);
            }
            _ => {}
        }
    }
    drop(connecting);
    Err("the server closed the connection".into())
}
