//! `odoshi serve` as a process in a temporary folder; stopped when dropped.

use super::wait::{PATIENCE, eventually};
use super::{Sql, slots};
use crate::cluster::{self, Cluster, free_port};
use odoshi::config::Config;
use odoshi::domain::agent::Enrollment;
use odoshi::store::{self, NewAgent, Store};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tempfile::TempDir;

thread_local! {
    /// What this thread's last panic said.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From here on panics are remembered, beside being printed.
fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            LAST_PANIC.set(panic.to_string());
            print(panic);
        }));
    });
}

/// The program under test. `ODOSHI_TEST_PROGRAM` names a copy of it, for when a build goes on beside a test that restarts it.
pub fn program() -> PathBuf {
    std::env::var_os("ODOSHI_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_odoshi").into(), PathBuf::from)
}

/// Which store a server uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum On {
    /// A file in its data folder.
    #[default]
    Sqlite,
    /// A database of its own in the PostgreSQL server that the tests of this process share.
    Postgres,
}

impl On {
    /// The defaults, on this store.
    pub fn options(self) -> ServerOptions {
        ServerOptions { on: self, ..ServerOptions::default() }
    }
}

/// A disk of its own for a folder in the server's data folder, which the server alone sees there.
#[derive(Clone, Copy, Debug)]
pub struct SmallDisk {
    /// `store`, where the SQLite file is then, or `spool`.
    pub folder: &'static str,
    /// As `mount` takes it.
    pub size: &'static str,
}

/// What a test may choose.
#[derive(Clone, Default)]
pub struct ServerOptions {
    /// `ODOSHI__…` settings and anything else for the environment.
    pub env: Vec<(String, String)>,
    /// The user and group that the server runs as and owns its folder; else those of the test.
    pub uid: Option<u32>,
    /// The store.
    pub on: On,
    /// The PostgreSQL server that it is in, if it isn't the shared one.
    pub cluster: Option<&'static Cluster>,
    /// A database that is there already, in the shared PostgreSQL server: another server's.
    pub database: Option<String>,
    /// A disk that can be filled.
    pub disk: Option<SmallDisk>,
    /// The server of [`crate::recording`] instead of the program.
    pub recording: bool,
    /// How many files the server may open.
    pub open_files: Option<u64>,
    /// Keep everything in memory, where there is such a folder: a commit waits for no disk, and a kill loses nothing.
    pub in_memory: bool,
}

impl ServerOptions {
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Runs the server as this user. Only root can do so.
    pub fn run_as(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }
}

/// A server in a process of its own. It keeps its folder and its port over restarts.
pub struct Server {
    pub folder: TempDir,
    pub url: String,
    options: ServerOptions,
    /// Its database, if it is one of PostgreSQL.
    database: Option<(&'static Cluster, String)>,
    port: u16,
    child: Option<Child>,
    /// How often it was started.
    pub starts: usize,
}

impl Server {
    pub async fn start(options: ServerOptions) -> Self {
        let mut server = Self::prepare(options);
        server.restart().await;
        server
    }

    /// A folder and a port, and no process yet.
    pub fn prepare(options: ServerOptions) -> Self {
        slots::take();
        remember_panics();
        // The tests' own HTTP clients are made without saying how they would speak TLS.
        rustls::crypto::ring::default_provider().install_default().ok();
        let port = free_port();
        let folder = match options.in_memory {
            true => cluster::in_memory("odoshi-test-"),
            false => tempfile::Builder::new().prefix("odoshi-test-").tempdir().unwrap(),
        };
        let database = (options.on == On::Postgres).then(|| {
            let cluster = options.cluster.unwrap_or_else(cluster::shared);
            (cluster, options.database.clone().unwrap_or_else(|| cluster.database()))
        });
        let url = format!("http://127.0.0.1:{port}");
        if let Some(uid) = options.uid {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(uid)).unwrap();
        }
        Self { folder, url, options, database, port, child: None, starts: 0 }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn spool(&self, folder: &str) -> PathBuf {
        self.data().join("spool").join(folder)
    }

    /// Where its store is.
    pub fn store_url(&self) -> String {
        match &self.database {
            Some((cluster, database)) => cluster.url(database),
            None => format!("sqlite://{}", self.file().display()),
        }
    }

    /// Its SQLite file, as the server sees it.
    fn file(&self) -> PathBuf {
        match self.options.disk {
            Some(SmallDisk { folder: "store", .. }) => self.data().join("store/odoshi.db"),
            _ => self.data().join("odoshi.db"),
        }
    }

    /// Its small disk, as others see it.
    pub fn small_disk(&self) -> PathBuf {
        let folder = self.data().join(self.options.disk.expect("it has one").folder);
        Path::new(&format!("/proc/{}/root", self.pid())).join(folder.strip_prefix("/").unwrap())
    }

    /// From the next start on its database is this one's, of the same name.
    pub fn move_to(&mut self, cluster: &'static Cluster) {
        self.database = self.database.take().map(|(_, name)| (cluster, name));
    }

    /// A look into its database.
    pub fn sql(&self) -> Sql {
        match &self.database {
            Some((cluster, database)) => Sql::Database(cluster, database.clone()),
            None => match self.options.disk {
                Some(SmallDisk { folder: "store", .. }) => Sql::open_within(self.pid(), &self.file()),
                _ => Sql::open(&self.file()),
            },
        }
    }

    /// The same, to change something.
    pub fn sql_write(&self) -> Sql {
        match &self.database {
            Some((cluster, database)) => Sql::Database(cluster, database.clone()),
            None => Sql::open_to_write(&self.file()),
        }
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> String {
        let call = reqwest::Client::new().get(format!("{}/metrics", self.url)).bearer_auth(self.admin_token());
        call.send().await.unwrap().text().await.unwrap()
    }

    /// The name of its database.
    pub fn database(&self) -> &str {
        &self.database.as_ref().expect("it is on PostgreSQL").1
    }

    /// Its store, for a test that puts something into it. (SQLite takes two, if neither is in the other's way for long.)
    pub async fn store(&self) -> Arc<dyn Store> {
        let flags = [("store.url".to_owned(), self.store_url())];
        let store = store::open(&Config::load_with(None, std::iter::empty(), &flags).unwrap()).await.unwrap();
        store.prepare().await.unwrap();
        store
    }

    /// Puts agents that never connect straight into the store, while the server doesn't run.
    pub async fn put_agents(&self, count: usize, transport: &str) {
        let agent = |n| NewAgent {
            enrollment: Enrollment::from_json(format!(r#"{{"name":"a{n:07}"}}"#).as_bytes()).unwrap(),
            transport: transport.into(),
            address: None,
            secret: None,
        };
        let store = self.store().await;
        for first in (0..count).step_by(10_000) {
            store.agent_insert((first..count.min(first + 10_000)).map(agent).collect()).await.unwrap();
        }
        store.node_stop().await.unwrap();
    }

    /// The log of the `n`th start, from 1.
    pub fn log(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("server-{n}.log"))
    }

    /// Gives it a settings file from the next start on.
    pub fn configure(&self, settings: &str) {
        std::fs::write(self.folder.path().join("odoshi.toml"), settings).unwrap();
    }

    /// Starts the process, without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.starts += 1;
        let log = File::create(self.log(self.starts)).unwrap();
        let mut command = match self.options.disk {
            None if self.options.recording => crate::recording::command(&self.data()),
            None if self.options.open_files.is_some() => {
                let mut limited = Command::new("sh");
                limited.args(["-c", r#"ulimit -n "$0" && exec "$@""#]);
                limited.arg(self.options.open_files.unwrap_or_default().to_string()).arg(program());
                limited
            }
            None => Command::new(program()),
            Some(SmallDisk { folder, size }) => {
                let folder = self.data().join(folder);
                std::fs::create_dir_all(&folder).unwrap();
                // In a view of the file systems that goes with the process; who isn't root makes himself root in it.
                let mut unshare = Command::new("unshare");
                unshare.arg(if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" }).args(["sh", "-c"]);
                unshare.arg(r#"mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@""#).args(["sh", size]);
                unshare.arg(folder).arg(program());
                unshare
            }
        };
        if !self.options.recording {
            command.arg("serve");
        }
        let settings = self.folder.path().join("odoshi.toml");
        if settings.exists() {
            command.arg("--config").arg(settings);
        }
        command
            .env("ODOSHI__DATA_DIR", self.data())
            .env("ODOSHI__HTTP__LISTEN", format!("127.0.0.1:{}", self.port))
            .env("ODOSHI__STORE__URL", self.store_url())
            .envs(self.options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        if let Some(uid) = self.options.uid {
            command.uid(uid).gid(uid);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Puts something into the environment of the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.options.env.push((key.into(), value.into()));
    }

    /// Takes something out of the environment of the next start.
    pub fn unset(&mut self, key: &str) {
        self.options.env.retain(|(name, _)| name != key);
    }

    /// What `/readyz` says, and with which status; `None` when nobody answers.
    pub async fn readyz(&self) -> Option<(u16, Value)> {
        let answer = reqwest::get(format!("{}/readyz", self.url)).await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    }

    /// How often this actor was restarted since the server's start.
    pub async fn restarts(&self, actor: &str) -> u64 {
        let (_, readiness) = self.readyz().await.unwrap();
        let actors = readiness["actors"].as_array().unwrap();
        actors.iter().find(|report| report["name"] == actor).unwrap()["restarts"].as_u64().unwrap()
    }

    pub async fn ready(&mut self) {
        let http = reqwest::Client::new();
        let url = format!("{}/readyz", self.url);
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.log_text());
            }
            if http.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "the server is not ready: {}", self.log_text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log(self.starts)).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    /// A line of `/proc/PID/status` in kilobytes: `VmRSS`, `VmHWM`.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')).unwrap();
        value.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Whether its process runs; one that has ended may be started again.
    pub fn is_running(&mut self) -> bool {
        if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
            self.child = None;
        }
        self.child.is_some()
    }

    pub async fn restart(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// SIGTERM, and how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait().await
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn admin_token(&self) -> String {
        std::fs::read_to_string(self.data().join("admin.token")).unwrap().trim().to_owned()
    }

    /// Calls the API as the admin: status and JSON.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call_as(&self.admin_token(), method, path, body).await
    }

    /// Asks again while the store is away, as clients do: nothing of such a call was written.
    pub async fn call_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        eventually(&format!("the store to be there for {method} {path}"), || async {
            let (status, answer) = self.call_once(token, method, path, body.clone()).await;
            (status != 503).then_some((status, answer))
        })
        .await
    }

    pub async fn call_once(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (reads, method) = (method == "GET", method.parse().unwrap());
        let mut request = reqwest::Client::new().request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let again = request.try_clone().filter(|_| reads);
        let answer = match (request.send().await, again) {
            // On a busy machine the server may close a connection before the request's head has come.
            (Err(error), Some(again)) if !error.is_connect() => again.send().await.unwrap(),
            (sent, _) => sent.unwrap(),
        };
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    /// The action, once it is there.
    pub async fn action(&self, id: &str) -> Value {
        eventually(&format!("action {id}"), || async {
            let (status, view) = self.call("GET", &format!("/v1/actions/{id}"), None).await;
            (status == 200).then_some(view)
        })
        .await
    }

    /// Submits a document by HTTP; answers its id.
    pub async fn submit(&self, document: Value) -> String {
        let (status, answer) = self.call("POST", "/v1/actions", Some(document)).await;
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    }

    /// Drops a document into the spool.
    pub fn drop_file(&self, name: &str, content: &str) {
        let tmp = self.spool("tmp").join(name);
        std::fs::write(&tmp, content).unwrap();
        std::fs::rename(tmp, self.spool("new").join(name)).unwrap();
    }

    /// Waits until the action has this status.
    pub async fn until_status(&self, id: &str, status: &str) -> Value {
        eventually(&format!("action {id} to be {status}"), || async {
            let view = self.action(id).await;
            (view["status"] == status).then_some(view)
        })
        .await
    }

    /// All commands of an action.
    pub async fn commands(&self, id: &str) -> Vec<Value> {
        let mut commands = Vec::new();
        let mut after = String::new();
        loop {
            let (status, page) = self.call("GET", &format!("/v1/actions/{id}/commands?limit=1000{after}"), None).await;
            assert_eq!(status, 200, "{page}");
            commands.extend(page["commands"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return commands,
            }
        }
    }

    /// A token that lets agents enroll.
    pub async fn enroll_token(&self) -> String {
        let (status, made) = self.call("POST", "/v1/tokens", Some(json!({ "role": "enroll" }))).await;
        assert_eq!(status, 201, "{made}");
        made["token"].as_str().unwrap().to_owned()
    }

    /// Enrolls an agent; answers its token.
    pub async fn enroll(&self, name: &str, labels: Value) -> String {
        let body = json!({ "name": name, "labels": labels, "facts": {}, "version": "test" });
        let (status, answer) = self.call_as(&self.enroll_token().await, "POST", "/v1/agent/enroll", Some(body)).await;
        assert_eq!(status, 201, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log ---");
            let text = self.log_text();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("{line}"));
            // Again after the logs, where it is looked for.
            LAST_PANIC.with_borrow(|panic| eprintln!("--- {panic} ---"));
        }
    }
}
