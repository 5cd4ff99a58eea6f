//! `odoshi demo`: a server, a fleet and two actions in a temporary folder, all of them real.
//!
//! The agents are the reference agent, each with its own journal and WebSocket over loopback. They
//! share this process only to save memory. The actions go through the spool, as those of any
//! program would.

use super::client::{Client, read_token};
use super::outcome::Outcome;
use super::output::{progress, say_table};
use super::scratch_store::ScratchStore;
use crate::Odoshi;
use crate::agent::modules::exec::Exec;
use crate::agent::modules::{Call, Outcome as CallOutcome};
use crate::agent::{Agent, AgentConfig, ExecConfig, Module, Secret};
use crate::config::Config;
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::node::Running;
use crate::os_signals::StopSignals;
use async_trait::async_trait;
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

/// The longest that a demo may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the agents may take to stop.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often progress is read.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Open files per agent: its socket, the server's end of it, its journal, and the lock of its
/// folder. The lock is a separate file, since compaction replaces the journal by a new file.
const FILES_PER_AGENT: u64 = 4;
/// Open files of the server's store and spool.
const FILES_FOR_SERVER: u64 = 96;
/// Open files per program while it is being started: both ends of its pipes, and the handles of its
/// process.
const FILES_PER_PROGRAM: u64 = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Number of agents
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=9_000))]
    agents: u32,
    /// The URL of a database, in which a separate schema is used; without it, SQLite in the
    /// temporary folder
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

pub(super) fn run(args: Args) -> Outcome {
    let files = super::limits::raise_open_files();
    let most = most_agents(files);
    if u64::from(args.agents) > most {
        let agents = args.agents;
        return Err(format!(
            "{agents} agents need more than the {files} files that this process may open: start at most {most} with \
             --agents, or raise the limit (ulimit -n)"
        )
        .into());
    }
    let folder = tempfile::Builder::new().prefix("odoshi-demo-").tempdir()?;
    let programs = most_programs(files);
    let outcome = actix_rt::System::new().block_on(async {
        let mut signals = StopSignals::listen()?;
        let place = ScratchStore::at(args.store.as_deref()).await?;
        let outcome = tokio::select! {
            outcome = show(&args, programs, place.url(), folder.path()) => outcome,
            () = signals.next() => {
                eprintln!("\ninterrupted; the temporary folder is removed");
                Ok(ExitCode::from(130))
            }
        };
        place.leave().await?;
        outcome
    });
    folder.close()?;
    outcome
}

/// Maximum number of agents in a process that may open `files` files. An eighth is left for the
/// programs that they start.
fn most_agents(files: u64) -> u64 {
    files.saturating_sub(FILES_FOR_SERVER + files / 8) / FILES_PER_AGENT
}

/// Maximum number of programs that run at a time, over all agents.
fn most_programs(files: u64) -> usize {
    usize::try_from(files / 8 / FILES_PER_PROGRAM).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS)
}

/// `exec` for agents that share the open files of one process: it limits the number of running
/// programs.
struct SharedExec {
    exec: Exec,
    room: Arc<Semaphore>,
}

#[async_trait]
impl Module for SharedExec {
    async fn call(&self, call: Call) -> CallOutcome {
        let Ok(_room) = self.room.acquire().await else { return CallOutcome::failed("the demo has ended") };
        self.exec.call(call).await
    }
}

async fn show(args: &Args, programs: usize, store: Option<&str>, folder: &Path) -> Outcome {
    let mut flags = vec![
        ("data_dir".to_owned(), folder.join("server").display().to_string()),
        ("http.listen".to_owned(), "127.0.0.1:0".to_owned()),
    ];
    flags.extend(store.map(|url| ("store.url".to_owned(), url.to_owned())));
    let config = Config::load_with(None, std::iter::empty(), &flags)?;
    let (spool, admin) = (config.spool_dir(), config.data_dir.join("admin.token"));
    let mut running = Odoshi::builder(config).start().await?;
    running.ready().await?;
    let server = format!("http://{}", running.address());
    say!("a server on {server}, its spool in {}", spool.display());
    let client = Client::with(&server, read_token(&admin)?, None)?;
    let enroll = client.call(Method::POST, "/v1/tokens", Some(json!({ "role": "enroll", "name": "demo" }))).await?;
    let enroll = enroll["token"].as_str().unwrap_or_default().to_owned();

    let fleet = Fleet::start(args.agents, programs, &server, &enroll, &folder.join("agents"))?;
    all_connected(&running, args.agents).await?;

    let roles = "labels.role IN ('web', 'db', 'cache')";
    let actions = [
        ("ping the whole fleet", "TRUE", json!({ "module": "ping", "parameters": { "hello": "fleet" } }), None),
        (
            "kernel of web, db and cache",
            roles,
            json!({ "module": "exec", "parameters": { "argv": ["uname", "-sr"] } }),
            Some("2s"),
        ),
    ];
    let mut rows = Vec::new();
    for (name, target, operation, spread) in actions {
        let mut document = json!({ "name": name, "target": target, "operations": [operation], "expires_after": "10m" });
        if let Some(spread) = spread {
            document["spread"] = spread.into();
        }
        rows.push(follow(&client, &spool, document).await?);
    }
    let succeeded = rows.iter().all(|row| row.all_succeeded());
    say_summary(&rows);
    fleet.stop().await?;
    running.drain().await?;
    if succeeded {
        say!("next: odoshi serve, then drop JSON files like these into odoshi-data/spool/new (README.md has a tour)");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("some commands did not succeed");
        Ok(ExitCode::FAILURE)
    }
}

/// The agents, on their own runtime so that they don't use the server's threads.
struct Fleet {
    stop: watch::Sender<bool>,
    /// `None` after the shutdown.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // The demo was interrupted: don't wait for the agents.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fleet {
    fn start(
        count: u32,
        programs: usize,
        server: &str,
        enroll: &str,
        folder: &Path,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(32)
            .thread_name("demo-agents")
            .enable_all()
            .build()?;
        let stop = watch::Sender::new(false);
        let room = Arc::new(Semaphore::new(programs));
        for number in 0..count {
            let name = format!("agent-{number:04}");
            let role = ["web", "db", "cache", "batch"][number as usize % 4];
            let config = AgentConfig {
                server: server.to_owned(),
                state_dir: folder.join(&name),
                name,
                labels: Some([("role".to_owned(), role.to_owned())].into()),
                token: Some(Secret(enroll.to_owned())),
                exec: ExecConfig { allow: vec!["uname".to_owned()], ..ExecConfig::default() },
                ..AgentConfig::default()
            };
            let exec = Exec::new(config.exec.clone(), config.bounds());
            let agent = Agent::new(config)?.with_module("exec", SharedExec { exec, room: room.clone() });
            let mut stopped = stop.subscribe();
            runtime.spawn(async move {
                let until = async move {
                    stopped.wait_for(|stop| *stop).await.ok();
                };
                if let Err(error) = agent.run(until).await {
                    log::error!(error:% = error.chain(); "a demo agent has stopped");
                }
            });
        }
        Ok(Self { stop, runtime: Some(runtime) })
    }

    async fn stop(mut self) -> Result<(), tokio::task::JoinError> {
        self.stop.send_replace(true);
        // The agents close their connections while the server still runs. Those that take too long
        // are cut off.
        let runtime = self.runtime.take();
        tokio::task::spawn_blocking(move || runtime.map(|runtime| runtime.shutdown_timeout(GOODBYE_TIMEOUT))).await?;
        Ok(())
    }
}

fn bar(length: u64, what: &str) -> ProgressBar {
    let bar = progress("{msg:<30} [{wide_bar}] {pos}/{len} {elapsed}").with_message(what.to_owned());
    bar.set_length(length);
    bar
}

async fn all_connected(running: &Running, count: u32) -> Result<(), String> {
    let started = Instant::now();
    let bar = bar(u64::from(count), "agents connected");
    loop {
        let here = running.presence().len();
        bar.set_position(here as u64);
        if here >= count as usize {
            bar.finish();
            say!("{count} agents enrolled and connected in {:.2} s", started.elapsed().as_secs_f64());
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("only {here} of {count} agents are connected"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The result of one action. Times are milliseconds since the file was moved into the spool.
struct Row {
    name: String,
    counts: Value,
    accepted: i64,
    stored: i64,
    delivered: i64,
    done: i64,
}

impl Row {
    fn all_succeeded(&self) -> bool {
        self.counts["total"].as_i64().is_some_and(|total| total > 0) && self.counts["succeeded"] == self.counts["total"]
    }
}

/// Moves the document into the spool and follows its action to the end.
async fn follow(client: &Client, spool: &Path, mut document: Value) -> Result<Row, Box<dyn std::error::Error>> {
    let id = Uuid::now_v7();
    let name = document["name"].as_str().unwrap_or_default().to_owned();
    document["id"] = id.to_string().into();
    let file = format!("{id}.json");
    std::fs::write(spool.join("tmp").join(&file), document.to_string())?;
    std::fs::rename(spool.join("tmp").join(&file), spool.join("new").join(&file))?;
    let (dropped, started) = (Timestamp::of_this_machine(), Instant::now());
    let bar = bar(0, &name);
    let mut stored = None;
    let view = loop {
        if started.elapsed() > PATIENCE {
            return Err(format!("{name}: not done after {} s", PATIENCE.as_secs()).into());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        let failed = spool.join("failed").join(format!("{file}.error"));
        if failed.exists() {
            return Err(std::fs::read_to_string(failed)?.into());
        }
        let view = match client.get(&format!("/v1/actions/{id}")).await {
            Ok(view) => view,
            // The file hasn't been loaded yet.
            Err(super::client::ClientError::Refused(problem)) if problem.status == 404 => continue,
            Err(error) => return Err(error.into()),
        };
        let count = |key: &str| view["counts"][key].as_i64().unwrap_or(0);
        if view["counts"]["resolved"] == true {
            stored.get_or_insert(Timestamp::of_this_machine().0 - dropped.0);
        }
        bar.set_length(count("total") as u64);
        bar.set_position((count("total") - count("pending") - count("sent")) as u64);
        if view["status"] == "completed" {
            break view;
        }
    };
    bar.finish();
    let (mut delivered, mut done) = (dropped, dropped);
    let mut after = String::new();
    loop {
        let page = client.get(&format!("/v1/actions/{id}/commands?limit=1000{after}")).await?;
        for command in page["commands"].as_array().into_iter().flatten() {
            let at = |key: &str| command[key].as_str().and_then(|text| Timestamp::parse(text).ok());
            delivered = delivered.max(at("sent_at").unwrap_or(dropped));
            done = done.max(at("finished_at").unwrap_or(dropped));
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let accepted = view["created_at"].as_str().and_then(|text| Timestamp::parse(text).ok()).unwrap_or(dropped);
    Ok(Row {
        name,
        counts: view["counts"].clone(),
        // The store's clock may be a round trip behind this machine's.
        accepted: (accepted.0 - dropped.0).max(0),
        stored: stored.unwrap_or_default(),
        delivered: delivered.0 - dropped.0,
        done: done.0 - dropped.0,
    })
}

/// Prints how the actions went.
fn say_summary(rows: &[Row]) {
    let states = ["total", "succeeded", "failed", "timed_out", "undeliverable", "expired", "cancelled"];
    let header: Vec<String> = std::iter::once(String::new()).chain(rows.iter().map(|row| row.name.clone())).collect();
    let mut lines: Vec<Vec<String>> = Vec::new();
    for state in states {
        let counts = rows.iter().map(|row| row.counts[state].to_string());
        lines.push(std::iter::once(state.to_owned()).chain(counts).collect());
    }
    type Time = fn(&Row) -> i64;
    let times: [(&str, Time); 4] = [
        ("file → accepted", |row| row.accepted),
        ("file → all commands stored", |row| row.stored),
        ("file → all delivered", |row| row.delivered),
        ("file → all done", |row| row.done),
    ];
    for (label, time) in times {
        let millis = rows.iter().map(|row| format!("{} ms", time(row)));
        lines.push(std::iter::once(label.to_owned()).chain(millis).collect());
    }
    say_table(&header, &lines);
}

#[cfg(test)]
mod tests {
    use super::{most_agents, most_programs};

    #[test]
    fn the_limit_of_open_files_bounds_the_agents() {
        assert_eq!(most_agents(1_024), 200, "the default fits the usual soft limit");
        assert_eq!(most_agents(20_000), 4_351);
        assert_eq!(most_agents(64), 0);
        assert_eq!((most_programs(1_024), most_programs(0)), (16, 1));
    }
}
