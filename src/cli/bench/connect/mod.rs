//! Many agents' WebSockets: how long it takes to connect them, what an idle one costs, an action to all of them, and all of
//! them back at once.
//!
//! The server is a process of its own, and so is the bare one beside it: the same WebSockets on the same web framework,
//! which answers each frame and stores nothing. The agents speak the protocol and keep no journal.

mod agents;
mod bare;
mod server;

use crate::cli::output::say_table;
use crate::cli::scratch_store::ScratchStore;
use agents::Agents;
pub(super) use bare::BareArgs;
pub(super) use bare::run as run_bare;
use server::{Process, Sample};
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Open files beside the connections.
const OTHER_FILES: u64 = 200;
/// Commands that wait for each agent when all come back.
const WAITING: usize = 3;
/// How long an idle server is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// How long memory is given to settle.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Number of agents; this process and the server need an open file for each
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    agents: u32,
    /// Actions to the whole fleet; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The URL of a database, in which a separate schema is used; without it, SQLite in a temporary
    /// folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// What was measured of one server.
#[derive(Default)]
struct Measured {
    connect: Duration,
    /// Bytes of memory for each connection.
    memory: f64,
    /// Part of a core.
    idle: f64,
    action: Duration,
    /// All back at once, with waiting commands; for the bare server without.
    storm: Duration,
    /// The same without waiting commands.
    reconnect: Duration,
}

pub(super) async fn run(args: &Args, folder: &Path) -> Result<(), Box<dyn Error>> {
    let files = crate::cli::limits::raise_open_files();
    if u64::from(args.agents) + OTHER_FILES > files {
        let most = files.saturating_sub(OTHER_FILES);
        let text = format!("{} agents need more than the {files} open files of a process: at most {most}", args.agents);
        return Err(text.into());
    }
    // Not on this thread, which times them.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let place = ScratchStore::at(args.store.as_deref()).await?;
    let measured = async { Ok((ours(args, &place, folder, &runtime).await?, bare(args, &runtime).await?)) }.await;
    place.leave().await?;
    runtime.shutdown_background();
    let (ours, bare) = measured.map_err(|error: Box<dyn Error>| error)?;
    print(args, &ours, &bare);
    Ok(())
}

async fn ours(args: &Args, place: &ScratchStore, folder: &Path, runtime: &Runtime) -> Result<Measured, Box<dyn Error>> {
    let server = Process::server(folder, place.url(), args.agents).await?;
    let mut agents = Agents::new(server.address(), runtime);
    agents.enroll(&server, args.agents).await?;
    let mut measured = Measured::default();
    // Agents use their tokens for the first time, which the store writes down once.
    connect(&mut agents, &server).await?;
    agents.leave();
    server.until_left().await?;
    idle(&mut agents, &server, &mut measured).await?;
    let mut times = Vec::new();
    for _ in 0..args.rounds {
        let results = agents.results();
        let began = std::time::Instant::now();
        let action = server.submit().await?;
        agents.until_results(results + args.agents as usize).await?;
        server.until_completed(&action).await?;
        times.push(began.elapsed());
    }
    measured.action = median(times);
    agents.leave();
    server.until_left().await?;
    let mut actions = Vec::new();
    for _ in 0..WAITING {
        actions.push(server.submit().await?);
    }
    server.until_waiting(&actions, args.agents).await?;
    let results = agents.results();
    let began = std::time::Instant::now();
    agents.connect().await?;
    measured.reconnect = began.elapsed();
    agents.until_results(results + WAITING * args.agents as usize).await?;
    for action in &actions {
        server.until_completed(action).await?;
    }
    measured.storm = began.elapsed();
    agents.leave();
    server.stop();
    Ok(measured)
}

async fn bare(args: &Args, runtime: &Runtime) -> Result<Measured, Box<dyn Error>> {
    let server = Process::bare().await?;
    let mut agents = Agents::new(server.address(), runtime);
    agents.need_no_tokens(args.agents);
    let mut measured = Measured::default();
    connect(&mut agents, &server).await?;
    agents.leave();
    tokio::time::sleep(SETTLE).await;
    idle(&mut agents, &server, &mut measured).await?;
    let mut times = Vec::new();
    for _ in 0..args.rounds {
        let results = agents.results();
        let began = std::time::Instant::now();
        server.broadcast().await?;
        agents.until_results(results + args.agents as usize).await?;
        times.push(began.elapsed());
    }
    measured.action = median(times);
    agents.leave();
    tokio::time::sleep(SETTLE).await;
    measured.reconnect = connect(&mut agents, &server).await?;
    measured.storm = measured.reconnect;
    agents.leave();
    server.stop();
    Ok(measured)
}

/// Connects all agents.
async fn connect(agents: &mut Agents, server: &Process) -> Result<Duration, Box<dyn Error>> {
    let began = std::time::Instant::now();
    agents.connect().await?;
    let took = began.elapsed();
    server.sample()?;
    Ok(took)
}

/// Connects all agents, and looks at the server while they do nothing.
async fn idle(agents: &mut Agents, server: &Process, measured: &mut Measured) -> Result<(), Box<dyn Error>> {
    tokio::time::sleep(SETTLE).await;
    let before = server.sample()?;
    measured.connect = connect(agents, server).await?;
    tokio::time::sleep(SETTLE).await;
    let connected = server.sample()?;
    let grown = connected.memory.saturating_sub(before.memory);
    measured.memory = grown as f64 / agents.number() as f64;
    tokio::time::sleep(IDLE).await;
    let Sample { cpu, .. } = server.sample()?;
    measured.idle = (cpu - connected.cpu).as_secs_f64() / IDLE.as_secs_f64();
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn print(args: &Args, ours: &Measured, bare: &Measured) {
    let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
    let row = |what: &str, of: &dyn Fn(&Measured) -> String| vec![what.to_owned(), of(ours), of(bare)];
    let lines = [
        row("connect all, s", &|measured| seconds(measured.connect)),
        row("an action to all, with results, s", &|measured| seconds(measured.action)),
        row("all back at once, s", &|measured| seconds(measured.reconnect)),
        vec![format!("all back at once, {WAITING} commands each done, s"), seconds(ours.storm), String::new()],
        row("memory per idle connection, KiB", &|measured| format!("{:.1}", measured.memory / 1024.0)),
        row("CPU while idle, % of a core", &|measured| format!("{:.1}", measured.idle * 100.0)),
    ];
    say_table(&["", "odoshi", "bare"].map(str::to_owned), &lines);
    say!("{} agents, median of {} actions; memory a second time connected", args.agents, args.rounds);
}
