//! A RabbitMQ server as a process: on free ports of loopback, in a temporary folder, with an `epmd` of its own; both are
//! killed when dropped.

use super::wait::eventually;
use crate::cluster::free_port;
use base64::Engine as _;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The virtual host.
const VHOST: &str = "odoshi";
/// Somebody who may do everything.
const ROOT: &str = "root";

/// See the module. It keeps its folder and its ports over restarts.
pub struct Rabbit {
    folder: TempDir,
    port: u16,
    tls_port: u16,
    epmd_port: u16,
    dist_port: u16,
    epmd: Child,
    child: Option<Child>,
}

fn password(user: &str) -> String {
    format!("secret {user}")
}

/// The patterns of `rabbitmqctl WHAT -p odoshi USER` in `docs/BROKERS.md`, with this agent instead of `web-1`.
fn documented(what: &str, user: &str, agent: &str) -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/BROKERS.md")).unwrap();
    let begin = format!("rabbitmqctl {what} -p odoshi {user} ");
    let line = text.lines().find(|line| line.starts_with(&begin)).unwrap();
    let token = odoshi::domain::broker::token(agent);
    line.split('\'').skip(1).step_by(2).map(|pattern| pattern.replace("web-1", &token)).collect()
}

fn user(name: &str) -> Value {
    let salt = [1, 2, 3, 4];
    let hash = Sha256::new().chain_update(salt).chain_update(password(name)).finalize();
    let hash = base64::engine::general_purpose::STANDARD.encode([&salt[..], &hash[..]].concat());
    json!({ "name": name, "password_hash": hash, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": "" })
}

fn permissions(name: &str, patterns: &[String]) -> Value {
    let [configure, write, read] = patterns else { panic!("{patterns:?}") };
    json!({ "user": name, "vhost": VHOST, "configure": configure, "write": write, "read": read })
}

/// Users with the rights of `docs/BROKERS.md`.
fn definitions(agents: &[String]) -> Value {
    let all = vec![".*".to_owned(); 3];
    let mut rights = vec![permissions(ROOT, &all), permissions("odoshi", &documented("set_permissions", "odoshi", ""))];
    rights.extend(agents.iter().map(|agent| permissions(agent, &documented("set_permissions", "web-1", agent))));
    let topics = agents.iter().map(|agent| {
        let patterns = documented("set_topic_permissions", "web-1", agent);
        let [write, read] = &patterns[..] else { panic!("{patterns:?}") };
        json!({ "user": agent, "vhost": VHOST, "exchange": "odoshi.results", "write": write, "read": read })
    });
    let users: Vec<Value> = [ROOT, "odoshi"].into_iter().chain(agents.iter().map(String::as_str)).map(user).collect();
    json!({
        "vhosts": [{ "name": VHOST }],
        "users": users,
        "permissions": rights,
        "topic_permissions": topics.collect::<Vec<_>>(),
        "queues": [], "exchanges": [], "bindings": [], "policies": [], "parameters": [],
    })
}

impl Rabbit {
    /// A folder, ports and users with the rights of the documentation for these agents, and no broker yet.
    pub fn prepare(agents: &[String]) -> Self {
        let folder = tempfile::Builder::new().prefix("odoshi-rabbit-").tempdir().unwrap();
        let (port, epmd_port, dist_port) = (free_port(), free_port(), free_port());
        let path = folder.path();
        std::fs::write(path.join("definitions.json"), definitions(agents).to_string()).unwrap();
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nload_definitions = {}\nlog.file.level = warning\n",
            path.join("definitions.json").display()
        );
        std::fs::write(path.join("rabbitmq.conf"), settings).unwrap();
        std::fs::write(path.join("enabled_plugins"), "[].\n").unwrap();
        // Erlang would start one that stays.
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let epmd = epmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { folder, port, tls_port: 0, epmd_port, dist_port, epmd: epmd.expect("epmd is installed"), child: None }
    }

    /// One that speaks TLS too, with a certificate by the authority `ca.crt` in its folder.
    pub async fn start_with_tls(agents: &[String]) -> Self {
        let mut rabbit = Self::prepare(agents);
        let (path, port) = (rabbit.folder.path(), free_port());
        crate::https::certificate(path, "ca");
        let mut settings = std::fs::read_to_string(path.join("rabbitmq.conf")).unwrap();
        let folder = path.display();
        settings += &format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {folder}/ca.crt\n\
             ssl_options.certfile = {folder}/server.crt\nssl_options.keyfile = {folder}/server.key\n"
        );
        std::fs::write(path.join("rabbitmq.conf"), settings).unwrap();
        rabbit.tls_port = port;
        rabbit.restart().await;
        rabbit
    }

    /// The URL for a user with TLS, and the file with the authority to trust.
    pub fn tls_url(&self, user: &str) -> (String, PathBuf) {
        let url = self
            .url(user)
            .replacen("amqp", "amqps", 1)
            .replace(&format!(":{}/", self.port), &format!(":{}/", self.tls_port));
        (url, self.folder.path().join("ca.crt"))
    }

    pub async fn start(agents: &[String]) -> Self {
        let mut rabbit = Self::prepare(agents);
        rabbit.restart().await;
        rabbit
    }

    /// Starts it, and waits until it answers.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let path = self.folder.path();
        let log = || File::options().create(true).append(true).open(path.join("rabbit.log")).unwrap();
        // The one in PATH changes to a user of its own.
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
        command
            .env("HOME", path)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("odoshi{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_CONFIG_FILE", path.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", path.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", path.join("log"))
            .env("RABBITMQ_PID_FILE", path.join("pid"))
            // So that this process becomes the broker, and no script stays in between.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            // The end of its input would end it.
            .stdin(Stdio::piped())
            .stdout(log())
            .stderr(log());
        self.child = Some(command.spawn().expect("rabbitmq-server is installed"));
        eventually("RabbitMQ to answer", || async { self.connect(ROOT).await.ok() }).await;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The URL for a user.
    pub fn url(&self, user: &str) -> String {
        format!("amqp://{user}:{}@127.0.0.1:{}/{VHOST}", password(user).replace(' ', "%20"), self.port)
    }

    pub async fn connect(&self, user: &str) -> Result<Connection, lapin::Error> {
        Connection::connect(&self.url(user), ConnectionProperties::default()).await
    }

    /// As somebody who may do everything.
    pub async fn root(&self) -> Connection {
        self.connect(ROOT).await.unwrap()
    }

    /// How many messages are ready in a queue; `None` if it does not exist.
    pub async fn waiting(&self, root: &Connection, queue: &str) -> Option<u32> {
        let channel = root.create_channel().await.ok()?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        let count = queue.message_count();
        channel.close(200, "done".into()).await.ok()?;
        Some(count)
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.kill();
        self.epmd.kill().unwrap();
        self.epmd.wait().unwrap();
        if std::thread::panicking() {
            for log in ["rabbit.log", &format!("log/odoshi{}@localhost.log", self.port)] {
                let text = std::fs::read_to_string(self.folder.path().join(log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!(
                    "--- the end of RabbitMQ's {log} ---\n{}",
                    lines[lines.len().saturating_sub(20)..].join("\n")
                );
            }
        }
    }
}
