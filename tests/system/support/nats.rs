//! A NATS server with JetStream as a process: on a free port, in a temporary folder; killed when dropped.

use super::wait::eventually;
use crate::cluster::free_port;
use async_nats::jetstream::Context;
use async_nats::{Client, ConnectOptions};
use std::fs::File;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The server's user, and its password.
pub const SERVER: (&str, &str) = ("odoshi", "very secret");

/// See the module. It keeps its folder and its port over restarts.
pub struct Nats {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Nats {
    /// A folder, a port and settings with the rights of `docs/BROKERS.md` for these agents, and no process yet. Every agent's
    /// password is `secret-NAME`.
    pub fn prepare(agents: &[String]) -> Self {
        let (folder, port) = (tempfile::Builder::new().prefix("odoshi-nats-").tempdir().unwrap(), free_port());
        let users: String = agents.iter().map(|name| agent(name)).collect();
        let (user, password) = SERVER;
        let settings = format!(
            r#"
host: 127.0.0.1
port: {port}
max_payload: 4718592
jetstream {{ store_dir: "{store}", max_memory_store: 67108864, max_file_store: 8589934592 }}
authorization {{
  users = [
    {{ user: "{user}", password: "{password}", permissions: {{
      publish: ["odoshi.commands.>", "odoshi.dead.>", "$JS.API.>", "$JS.ACK.ODOSHI_RESULTS.>"]
      subscribe: ["_INBOX.>"] }} }}
    {users}
    {{ user: "root", password: "root" }}
  ]
}}
"#,
            store = folder.path().join("store").display(),
        );
        std::fs::write(folder.path().join("nats.conf"), settings).unwrap();
        Self { folder, port, child: None }
    }

    pub async fn start(agents: &[String]) -> Self {
        let mut nats = Self::prepare(agents);
        nats.restart().await;
        nats
    }

    /// Starts it, and waits until it answers.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.folder.path().join("nats.log")).unwrap();
        let program = ["/usr/sbin/nats-server", "/usr/bin/nats-server"];
        let program = program.into_iter().find(|path| std::path::Path::new(path).exists()).unwrap_or("nats-server");
        let mut command = Command::new(program);
        command.arg("-c").arg(self.folder.path().join("nats.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("nats-server is installed"));
        eventually("NATS to answer", || async { self.connect("root", "root").await.ok() }).await;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The URL for the server under test.
    pub fn server_url(&self) -> String {
        format!("nats://{}:very%20secret@127.0.0.1:{}", SERVER.0, self.port)
    }

    /// The URL for an agent.
    pub fn agent_url(&self, name: &str) -> String {
        format!("nats://{name}:secret-{name}@127.0.0.1:{}", self.port)
    }

    pub async fn connect(&self, user: &str, password: &str) -> Result<Client, async_nats::ConnectError> {
        self.connect_with(ConnectOptions::with_user_and_password(user.into(), password.into())).await
    }

    pub async fn connect_with(&self, options: ConnectOptions) -> Result<Client, async_nats::ConnectError> {
        options.connect(format!("nats://127.0.0.1:{}", self.port)).await
    }

    /// JetStream as somebody who may do everything.
    pub async fn root(&self) -> Context {
        async_nats::jetstream::new(self.connect("root", "root").await.unwrap())
    }

    /// A line of `/proc/PID/status` in kilobytes: `VmRSS`, `VmHWM`.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.as_ref().unwrap().id())).unwrap();
        let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')).unwrap();
        value.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// The rights of an agent, as in `docs/BROKERS.md`.
fn agent(name: &str) -> String {
    let token = odoshi::domain::broker::token(name);
    format!(
        r#"
    {{ user: "{name}", password: "secret-{name}", permissions: {{
      publish: ["odoshi.results.{token}", "$JS.API.CONSUMER.MSG.NEXT.ODOSHI.{token}", "$JS.ACK.ODOSHI.{token}.>"]
      subscribe: ["_INBOX_{token}.>"] }} }}"#
    )
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = std::fs::read_to_string(self.folder.path().join("nats.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- the end of the log of NATS ---\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
