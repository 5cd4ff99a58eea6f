//! The server as a process of its own, and what it costs.

use crate::cli::client::{Client, read_token};
use nix::unistd::{SysconfVar, sysconf};
use reqwest::Method;
use serde_json::{Value, json};
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the server may take for one thing.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often progress is read.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct Process {
    child: Child,
    address: SocketAddr,
    client: Client,
    /// With the token for enrolling.
    enrolling: Option<Client>,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Bytes of memory.
    pub(super) memory: u64,
    /// Time of its threads on all cores.
    pub(super) cpu: Duration,
}

impl Process {
    /// A server with its data in `folder`.
    pub(super) async fn server(folder: &Path, store: Option<&str>, agents: u32) -> Result<Self, Box<dyn Error>> {
        let address = free_address()?;
        let (data, settings) = (folder.join("server"), folder.join("server.toml"));
        let mut text = format!(
            "data_dir = {:?}\n[http]\nlisten = \"{address}\"\ntoken_rate = 1_000_000\nmax_connections = {}\n",
            data.display().to_string(),
            2 * agents + 1_000
        );
        if let Some(url) = store {
            text.push_str(&format!("[store]\nurl = {url:?}\n"));
        }
        std::fs::write(&settings, text)?;
        let child = start(&["serve", "--config", &settings.display().to_string()])?;
        let mut process = Self {
            child,
            address,
            client: Client::with(&format!("http://{address}"), "none".into(), None)?,
            enrolling: None,
        };
        process.until_ready().await?;
        let server = format!("http://{address}");
        process.client = Client::with(&server, read_token(&data.join("admin.token"))?, None)?;
        let made = json!({ "role": "enroll", "name": "bench" });
        let token = process.client.call(Method::POST, "/v1/tokens", Some(made)).await?;
        let token = token["token"].as_str().unwrap_or_default().to_owned();
        process.enrolling = Some(Client::with(&server, token, None)?);
        Ok(process)
    }

    /// The bare server.
    pub(super) async fn bare() -> Result<Self, Box<dyn Error>> {
        let address = free_address()?;
        let child = start(&["bench", "bare-server", &address.to_string()])?;
        let client = Client::with(&format!("http://{address}"), "none".into(), None)?;
        let process = Self { child, address, client, enrolling: None };
        process.until_ready().await?;
        Ok(process)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn until_ready(&self) -> Result<(), Box<dyn Error>> {
        until("the server is ready", async || Ok(self.client.text("/readyz").await.is_ok())).await
    }

    /// Enrolls an agent, and returns its token.
    pub(super) async fn enroll(&self, name: String) -> Result<String, Box<dyn Error>> {
        let client = self.enrolling.as_ref().ok_or("this server enrolls nobody")?;
        let enrolled = client.call(Method::POST, "/v1/agent/enroll", Some(json!({ "name": name }))).await?;
        Ok(enrolled["token"].as_str().unwrap_or_default().to_owned())
    }

    /// Submits an action for the whole fleet.
    pub(super) async fn submit(&self) -> Result<String, Box<dyn Error>> {
        let document = json!({ "name": "bench", "target": "TRUE", "operations": [{ "module": "ping" }] });
        let accepted = self.client.call(Method::POST, "/v1/actions", Some(document)).await?;
        Ok(accepted["id"].as_str().unwrap_or_default().to_owned())
    }

    async fn action(&self, id: &str) -> Result<Value, Box<dyn Error>> {
        Ok(self.client.get(&format!("/v1/actions/{id}")).await?)
    }

    /// Waits until an action is completed.
    pub(super) async fn until_completed(&self, id: &str) -> Result<(), Box<dyn Error>> {
        until("the action is completed", async || Ok(self.action(id).await?["status"] == "completed")).await
    }

    /// Waits until each of so many agents has a command of these actions that waits for it.
    pub(super) async fn until_waiting(&self, actions: &[String], agents: u32) -> Result<(), Box<dyn Error>> {
        for id in actions {
            until("the action is resolved", async || {
                let action = self.action(id).await?;
                Ok(action["counts"]["resolved"] == true && action["counts"]["total"] == agents)
            })
            .await?;
        }
        // Then they are written down as waiting, which is nowhere to be seen.
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    }

    /// Waits until no agent is connected.
    pub(super) async fn until_left(&self) -> Result<(), Box<dyn Error>> {
        until("all agents have left", async || {
            let metrics = self.client.text("/metrics").await?;
            Ok(metrics.lines().any(|line| line == "odoshi_agents_connected 0"))
        })
        .await
    }

    /// Has the bare server send a command to all.
    pub(super) async fn broadcast(&self) -> Result<(), Box<dyn Error>> {
        self.client.call(Method::POST, "/broadcast", None).await?;
        Ok(())
    }

    /// What the process has used until now.
    pub(super) fn sample(&self) -> Result<Sample, Box<dyn Error>> {
        let folder = Path::new("/proc").join(self.child.id().to_string());
        let status = std::fs::read_to_string(folder.join("status"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let memory = kib.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        let stat = std::fs::read_to_string(folder.join("stat"))?;
        // After the name, which may hold anything; user and system time are the 14th and 15th field.
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no name")?.1.split_whitespace().collect();
        let ticks: u64 =
            fields.get(11).ok_or("no time")?.parse::<u64>()? + fields.get(12).ok_or("no time")?.parse::<u64>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
        Ok(Sample { memory, cpu: Duration::from_millis(ticks * 1_000 / per_second) })
    }

    /// Ends the process.
    pub(super) fn stop(mut self) {
        end(&mut self.child);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It is a scratch server: nothing of it is kept.
    child.kill().ok();
    child.wait().ok();
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

fn start(arguments: &[&str]) -> std::io::Result<Child> {
    let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    Command::new(std::env::current_exe()?)
        .args(arguments)
        .env("RUST_LOG", log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

async fn until(what: &str, is_so: impl AsyncFn() -> Result<bool, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while !is_so().await? {
        if began.elapsed() > PATIENCE {
            return Err(format!("not after {} s: {what}", PATIENCE.as_secs()).into());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
