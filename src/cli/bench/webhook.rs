//! Webhooks to receivers on loopback: throughput beside a plain HTTP load generator, and what a
//! hanging host or a dead transport costs the others.
//!
//! The receivers are the addresses 127.0.0.1, 127.0.0.2 and so on of one server, so that each is a
//! host of its own to the sender.

use crate::Odoshi;
use crate::cli::scratch_store::ScratchStore;
use crate::config::Config;
use crate::domain::action::NewAction;
use crate::domain::agent::{Enrollment, SigningSecret};
use crate::node::Running;
use crate::senders::pooled::{PooledSender, Transport};
use crate::senders::{Delivery, Outcome};
use crate::store::{ActionView, NewAgent};
use actix_web::{App, HttpResponse, HttpServer, web};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Requests under way, of the load generator and of the sender.
const CONCURRENCY: usize = 100;
/// The longest that a round may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Commands that wait for the dead transport.
const DEAD: u32 = 10_000;

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Number of commands per round
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    commands: u32,
    /// Number of receiving hosts
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=200))]
    hosts: u8,
    /// Number of rounds; the figures are medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// The URL of a database, in which a separate schema is used; without it, SQLite in a temporary
    /// folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

pub(super) async fn run(args: &Args, folder: &Path) -> Result<(), Box<dyn Error>> {
    let place = ScratchStore::at(args.store.as_deref()).await?;
    let measured = measure(args, &place, folder).await;
    place.leave().await?;
    measured
}

async fn measure(args: &Args, place: &ScratchStore, folder: &Path) -> Result<(), Box<dyn Error>> {
    let receiver = Receiver::start()?;
    let bench = Bench::start(args, place, folder, &receiver).await?;
    let (mut plain, mut ours, mut hung) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        plain.push(load(args, receiver.port).await?);
        ours.push(bench.all("labels.kind = 'host'", args.commands).await?);
        hung.push(bench.all("labels.kind IN ('host', 'hangs')", args.commands).await?);
    }
    let (plain, ours, hung) = (median(plain), median(ours), median(hung));
    let rate = |time: Duration| f64::from(args.commands) / time.as_secs_f64();
    say!("load generator: {:.0} requests/s", rate(plain));
    say!("webhooks: {:.0} commands/s, ratio {:.2}", rate(ours), rate(ours) / rate(plain));
    say!("beside a host that hangs: {:.0} commands/s, ratio {:.2}", rate(hung), rate(hung) / rate(ours));
    let idle = bench.latency().await?;
    bench.submit("labels.kind = 'dead'").await?;
    let beside = bench.latency().await?;
    let ratio = beside.as_secs_f64() / idle.as_secs_f64();
    say!("latency of a webhook: {:.1} ms", idle.as_secs_f64() * 1e3);
    say!("beside {DEAD} commands of a dead transport: {:.1} ms, ratio {ratio:.2}", beside.as_secs_f64() * 1e3);
    bench.running.drain().await?;
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Answers every request, and accepts connections at another port without answering.
struct Receiver {
    port: u16,
    /// Its backlog accepts connections that nobody serves.
    hanging: TcpListener,
}

impl Receiver {
    fn start() -> Result<Self, Box<dyn Error>> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = listener.local_addr()?.port();
        let answer = || async { HttpResponse::Ok().json(json!({"ok": true})) };
        let app = move || App::new().default_service(web::to(answer));
        let server = HttpServer::new(app).workers(1).disable_signals().listen(listener)?.run();
        actix_rt::spawn(server);
        Ok(Self { port, hanging: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))? })
    }
}

/// A transport whose server is away.
struct Dead;

#[async_trait]
impl Transport for Dead {
    async fn deliver(&self, _: &Delivery) -> Outcome {
        Outcome::Away { error: "it is dead".into() }
    }
}

struct Bench {
    running: Running,
}

impl Bench {
    async fn start(
        args: &Args,
        place: &ScratchStore,
        folder: &Path,
        receiver: &Receiver,
    ) -> Result<Self, Box<dyn Error>> {
        let mut flags = vec![
            ("data_dir".to_owned(), folder.join("server").display().to_string()),
            ("http.listen".to_owned(), "127.0.0.1:0".to_owned()),
            ("sender.enabled".to_owned(), "webhook".to_owned()),
            ("sender.webhook.concurrency".to_owned(), CONCURRENCY.to_string()),
            ("sender.webhook.allow".to_owned(), "127.0.0.0/8".to_owned()),
        ];
        flags.extend(place.url().map(|url| ("store.url".to_owned(), url.to_owned())));
        let config = Config::load_with(None, std::iter::empty(), &flags)?;
        let odoshi = Odoshi::builder(config).sender("dead", |context| PooledSender::new(context, Dead));
        let mut running = odoshi.start().await?;
        running.ready().await?;
        let agent = |name: String, kind: &str, transport: &str, address: Option<String>| NewAgent {
            enrollment: Enrollment {
                name,
                labels: Some([("kind".into(), kind.into())].into()),
                ..Enrollment::default()
            },
            transport: transport.into(),
            address,
            secret: Some(SigningSecret::random().reveal().to_owned()),
        };
        let host = |n: u32| format!("http://127.0.0.{}:{}/", 1 + n % u32::from(args.hosts), receiver.port);
        let mut agents: Vec<NewAgent> =
            (0..args.commands).map(|n| agent(format!("host-{n}"), "host", "webhook", Some(host(n)))).collect();
        let hangs = format!("http://{}/", receiver.hanging.local_addr()?);
        agents.extend((0..100).map(|n| agent(format!("hangs-{n}"), "hangs", "webhook", Some(hangs.clone()))));
        agents.extend((0..DEAD).map(|n| agent(format!("dead-{n}"), "dead", "dead", None)));
        for chunk in agents.chunks(10_000) {
            running.store().agent_insert(chunk.to_vec()).await?;
        }
        Ok(Self { running })
    }

    async fn submit(&self, target: &str) -> Result<Uuid, Box<dyn Error>> {
        let (id, store) = (Uuid::now_v7(), self.running.store());
        let document = json!({"name": "bench", "target": target, "operations": [{"module": "ping"}]});
        store.action_insert(vec![NewAction::from_json(document.to_string().as_bytes(), id, store.now())?]).await?;
        self.running.actions_submitted();
        Ok(id)
    }

    /// The time until so many commands of an action over these agents have succeeded. Then it is
    /// cancelled.
    async fn all(&self, target: &str, commands: u32) -> Result<Duration, Box<dyn Error>> {
        let started = Instant::now();
        let id = self.submit(target).await?;
        self.until(id, |view| view.counts.succeeded >= i64::from(commands)).await?;
        let took = started.elapsed();
        self.running.store().action_cancel(id, &crate::domain::audit::Author::server("bench")).await?;
        Ok(took)
    }

    async fn until(&self, id: Uuid, is_over: impl Fn(&ActionView) -> bool) -> Result<(), Box<dyn Error>> {
        let started = Instant::now();
        while !self.running.store().action_view(id).await?.is_some_and(|view| is_over(&view)) {
            if started.elapsed() > PATIENCE {
                return Err("the round did not end".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// The median time from an action for one webhook until its command has succeeded.
    async fn latency(&self) -> Result<Duration, Box<dyn Error>> {
        let mut times = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            let id = self.submit("name = 'host-0'").await?;
            self.until(id, |view| view.counts.succeeded == 1).await?;
            times.push(started.elapsed());
        }
        Ok(median(times))
    }
}

/// The time that a plain client needs for as many requests.
async fn load(args: &Args, port: u16) -> Result<Duration, Box<dyn Error>> {
    let tls = crate::tls::client_config("", "", None)?;
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).tcp_nodelay(true).no_proxy().build()?;
    let body = json!({"action": Uuid::nil(), "run": 1, "name": "bench", "operations": [{"module": "ping"}]});
    let started = Instant::now();
    let requests = stream::iter(0..args.commands).map(|n| {
        let url = format!("http://127.0.0.{}:{port}/", 1 + n % u32::from(args.hosts));
        let post = http.post(url).json(&body);
        async move { post.send().await?.error_for_status()?.bytes().await }
    });
    let mut answers = requests.buffer_unordered(CONCURRENCY);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(started.elapsed())
}
