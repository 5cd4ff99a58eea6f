//! An idle server: time from `POST /v1/actions` until a connected agent has the command, over HTTP
//! and a WebSocket on loopback.

use super::raw;
use crate::Odoshi;
use crate::cli::client::read_token;
use crate::cli::output::say_table;
use crate::cli::scratch_store::ScratchStore;
use crate::config::Config;
use crate::domain::agent::{Enrollment, STREAM, Secret};
use crate::domain::audit::Author;
use crate::node::Running;
use crate::store::{Enrolled, NewAgent};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Pause between samples, so that each finds an idle server.
const PAUSE: Duration = Duration::from_millis(10);
/// Number of turns that the samples are divided into, so that ours and the bare ones see the same
/// machine.
const TURNS: u32 = 10;
/// The longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Number of actions, one after the other
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    samples: u32,
    /// The URL of a database, in which a separate schema is used; without it, SQLite in a temporary
    /// folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

pub(super) async fn run(args: &Args, folder: &Path) -> Result<(), Box<dyn Error>> {
    let place = ScratchStore::at(args.store.as_deref()).await?;
    let measured = measure(args, &place, folder).await;
    place.leave().await?;
    print(measured?);
    Ok(())
}

/// The duration of each sample.
#[derive(Default)]
struct Times {
    /// Time until the `202`.
    accepted: Vec<Duration>,
    /// Time until the agent had the command.
    arrived: Vec<Duration>,
    /// Two transactions of one row each, on the same store.
    bare: Vec<Duration>,
}

async fn measure(args: &Args, place: &ScratchStore, folder: &Path) -> Result<Times, Box<dyn Error>> {
    let mut rig = Rig::start(place, folder).await?;
    let mut times = Times::default();
    for turn in 0..TURNS {
        let samples = args.samples / TURNS;
        for _ in 0..samples {
            let (accepted, arrived) = rig.sample("TRUE").await?;
            times.accepted.push(accepted);
            times.arrived.push(arrived);
        }
        times.bare.extend(match place {
            ScratchStore::Schema(scratch) => raw::postgres::pairs(scratch, samples, PAUSE).await?,
            ScratchStore::File(_) => {
                let database = folder.join(format!("bare-{turn}.db"));
                let raw = tokio::task::spawn_blocking(move || raw::sqlite::pairs(&database, samples, PAUSE));
                raw.await?.map_err(|error| error as Box<dyn Error>)?
            }
        });
    }
    rig.stop().await?;
    Ok(times)
}

/// A server, an operator and an agent.
pub(super) struct Rig {
    running: Running,
    http: reqwest::Client,
    url: String,
    admin: String,
    agent: BenchAgent,
}

impl Rig {
    /// Starts a server with one agent, whose name is `bench`, and connects it.
    pub(super) async fn start(place: &ScratchStore, folder: &Path) -> Result<Self, Box<dyn Error>> {
        let mut flags = vec![
            ("data_dir".to_owned(), folder.join("server").display().to_string()),
            ("http.listen".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        flags.extend(place.url().map(|url| ("store.url".to_owned(), url.to_owned())));
        let mut running = Odoshi::builder(Config::load_with(None, std::iter::empty(), &flags)?).start().await?;
        running.ready().await?;
        let token = Secret::random();
        let enrollment = Enrollment { name: "bench".into(), ..Enrollment::default() };
        let agent = NewAgent { enrollment, transport: STREAM.into(), address: None, secret: None };
        let enrolled = running.store().agent_enroll(&agent, token.hash(), &Author::server("bench")).await?;
        if enrolled == Enrolled::Taken {
            return Err("the store is not empty".into());
        }
        let admin = read_token(&folder.join("server/admin.token"))?;
        let address = running.address();
        let agent = BenchAgent::connect(&address.to_string(), &token).await?;
        let url = format!("http://{address}/v1/actions");
        let tls = crate::tls::client_config(&url, "", None)?;
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).tcp_nodelay(true).build()?;
        Ok(Self { running, http, url, admin, agent })
    }

    /// Submits an action after a pause. Returns the time until the `202`, and until the agent has the command.
    pub(super) async fn sample(&mut self, target: &str) -> Result<(Duration, Duration), Box<dyn Error>> {
        tokio::time::sleep(PAUSE).await;
        let document = json!({ "name": "bench", "target": target, "operations": [{ "module": "ping" }] });
        let started = Instant::now();
        let call = self.http.post(&self.url).bearer_auth(&self.admin).json(&document).send();
        let agent = &mut self.agent;
        let (accepted, command) = tokio::join!(async { (call.await, started.elapsed()) }, async {
            (agent.command().await, started.elapsed())
        });
        accepted.0?.error_for_status()?;
        agent.succeed(&command.0?).await?;
        Ok((accepted.1, command.1))
    }

    /// Stops the server.
    pub(super) async fn stop(self) -> Result<(), Box<dyn Error>> {
        drop(self.agent);
        Ok(self.running.drain().await?)
    }
}

/// An agent that only answers.
struct BenchAgent(WebSocketStream<TcpStream>);

impl BenchAgent {
    async fn connect(address: &str, token: &Secret) -> Result<Self, Box<dyn Error>> {
        let mut request = format!("ws://{address}/v1/agent/stream").into_client_request()?;
        request.headers_mut().insert("Authorization", format!("Bearer {}", token.reveal()).parse()?);
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut agent = Self(client_async(request, tcp).await?.0);
        agent.say(&json!({ "type": "hello", "version": "bench", "facts": {}, "capacity": 16, "running": [] })).await?;
        agent.until("welcome").await?;
        Ok(agent)
    }

    async fn say(&mut self, frame: &Value) -> Result<(), Box<dyn Error>> {
        Ok(self.0.send(Message::text(frame.to_string())).await?)
    }

    /// Waits for the next frame of this type.
    async fn until(&mut self, kind: &str) -> Result<Value, Box<dyn Error>> {
        loop {
            match tokio::time::timeout(PATIENCE, self.0.next()).await? {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text)?;
                    if frame["type"] == kind {
                        return Ok(frame);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err("the server closed the connection".into()),
            }
        }
    }

    async fn command(&mut self) -> Result<Value, Box<dyn Error>> {
        Ok(self.until("commands").await?["commands"][0].take())
    }

    async fn succeed(&mut self, command: &Value) -> Result<(), Box<dyn Error>> {
        let result =
            json!({ "action": command["action"], "run": command["run"], "status": "succeeded", "results": [] });
        self.say(&json!({ "type": "results", "results": [result] })).await?;
        self.until("stored").await.map(|_| ())
    }
}

fn print(times: Times) {
    let samples = times.arrived.len();
    let rows = [
        ("POST → the agent has the command", times.arrived),
        ("POST → 202", times.accepted),
        ("bare: two commits of one row", times.bare),
    ];
    let (mut lines, mut medians) = (Vec::new(), Vec::new());
    for (what, mut row) in rows {
        row.sort_unstable();
        let at = |percent: usize| row.get((row.len() * percent / 100).min(row.len().saturating_sub(1)));
        let millis = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1_000.0);
        let [p50, p99, max] = [at(50), at(99), at(100)].map(millis);
        lines.push(vec![what.to_owned(), format!("{p50:.2}"), format!("{p99:.2}"), format!("{max:.2}")]);
        medians.push((p50, p99));
    }
    say_table(&["", "p50 ms", "p99 ms", "max ms"].map(str::to_owned), &lines);
    let ratio = |of: fn(&(f64, f64)) -> f64| of(&medians[0]) / of(&medians[2]);
    say!("{samples} actions: arrived/bare = {:.2} (p50), {:.2} (p99)", ratio(|row| row.0), ratio(|row| row.1));
}
