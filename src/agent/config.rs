//! The agent's settings.

use crate::config::{ByteSize, ServiceUrl};
use crate::domain::metadata::{MAX_KEY, MAX_KEYS};
use crate::domain::protocol::DEFAULT_CAPACITY;
use crate::domain::time::Span;
use nix::sys::resource::Resource;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The agent's settings. In TOML, the keys are the names of the fields.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// The server's base URL, `http://host:port` or `https://host:port`; or the broker that the server
    /// uses: `nats://host:port` or `tls://host:port`, with further hosts of its cluster after commas, or
    /// `amqp[s]://host:port/vhost`. The URL of a broker may have a login, `user:password@`, which `Debug` masks.
    pub server: String,
    /// The agent's unique name, `[A-Za-z0-9._-]{1,128}`.
    pub name: String,
    /// Labels, which targets use as `labels.KEY`; sent at every start. Without any, those that the agent sent before
    /// stay; an empty table takes them away.
    pub labels: Option<BTreeMap<String, String>>,
    /// An enroll token, or this agent's own; needed until `state_dir` holds the agent's own token.
    pub token: Option<Secret>,
    /// A file with such a token; `token` overrides it.
    pub token_file: Option<PathBuf>,
    /// For NATS: a file with the agent's credentials (a JWT and the seed of its key).
    pub credentials_file: Option<PathBuf>,
    /// For brokers: a file with the agent's password. The user is the one in `server`, or else
    /// `name`.
    pub password_file: Option<PathBuf>,
    /// The folder for the agent's token and journal. Each agent needs its own.
    pub state_dir: PathBuf,
    /// Maximum number of running commands, and of unfinished ones that the server delivers. At most
    /// 10,000.
    pub capacity: u32,
    /// The programs that `exec` may run.
    pub exec: ExecConfig,
    /// A folder of executables, each of which is a module; none by default.
    pub modules_dir: Option<PathBuf>,
    /// For https, tls and amqps: a file with the authorities to trust (PEM), instead of the system's; for
    /// amqps beside them.
    pub ca_file: Option<PathBuf>,
    /// Maximum sizes of output.
    pub output: OutputConfig,
    /// Limits of each program.
    pub limits: LimitsConfig,
    /// The waits between attempts to connect.
    pub backoff: BackoffConfig,
    /// What the agent reports of itself all the time.
    pub metadata: Vec<MetadataConfig>,
}

/// A secret text that is never logged.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            server: "http://127.0.0.1:7401".into(),
            name: String::new(),
            labels: None,
            token: None,
            token_file: None,
            credentials_file: None,
            password_file: None,
            state_dir: "odoshi-agent".into(),
            capacity: DEFAULT_CAPACITY,
            exec: ExecConfig::default(),
            modules_dir: None,
            ca_file: None,
            output: OutputConfig::default(),
            limits: LimitsConfig::default(),
            backoff: BackoffConfig::default(),
            metadata: Vec::new(),
        }
    }
}

impl std::fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { server, name, labels, token, token_file, credentials_file, password_file, state_dir, .. } = self;
        let Self { capacity, exec, modules_dir, ca_file, output, limits, backoff, metadata, .. } = self;
        f.debug_struct("AgentConfig")
            .field("server", &ServiceUrl::new(server))
            .field("name", name)
            .field("labels", labels)
            .field("token", token)
            .field("token_file", token_file)
            .field("credentials_file", credentials_file)
            .field("password_file", password_file)
            .field("state_dir", state_dir)
            .field("capacity", capacity)
            .field("exec", exec)
            .field("modules_dir", modules_dir)
            .field("ca_file", ca_file)
            .field("output", output)
            .field("limits", limits)
            .field("backoff", backoff)
            .field("metadata", metadata)
            .finish()
    }
}

/// The way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uplink {
    /// A stream, or check-ins.
    Http,
    /// Messages over NATS.
    Nats,
    /// Messages over RabbitMQ.
    Amqp,
}

/// The programs that `exec` may run. An empty list allows nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecConfig {
    /// Absolute paths, bare names (found in the agent's own `PATH`), or `"*"` for everything, which also lifts the
    /// restrictions by `env` and `cwd`.
    pub allow: Vec<String>,
    /// Names of the variables that an action may set. If the agent has them itself, they are passed
    /// to its programs, including modules in a folder. Apart from these, programs get only the
    /// agent's `PATH`, `HOME`, `USER`, `LOGNAME`, `LANG`, `LANGUAGE`, `LC_…`, `TZ`, `TMPDIR` and
    /// `ODOSHI_RUN` and `ODOSHI_SCHEDULED_FOR`.
    pub env: Vec<String>,
    /// Absolute paths of the folders in which, or below which, an action may start a program. A
    /// program without a given folder starts in the agent's.
    pub cwd: Vec<PathBuf>,
}

impl ExecConfig {
    fn validate(&self) -> Result<(), String> {
        for name in &self.env {
            let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !is_name {
                return Err(format!("exec.env: \"{}\" is not a variable's name", name.escape_debug()));
            }
            if ["ODOSHI_RUN", "ODOSHI_SCHEDULED_FOR", "ODOSHI_TOKEN"].contains(&name.as_str()) {
                return Err(format!("exec.env: {name} is the agent's own"));
            }
        }
        match self.cwd.iter().find(|folder| !folder.is_absolute()) {
            Some(folder) => Err(format!("exec.cwd: \"{}\" is not an absolute path", folder.display())),
            None => Ok(()),
        }
    }
}

/// Maximum sizes of output. The rest is read and dropped, and the result says `truncated`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// Bytes kept of a process's standard output.
    pub stdout: usize,
    /// Bytes kept of its standard error.
    pub stderr: usize,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { stdout: 256 * 1024, stderr: 256 * 1024 }
    }
}

/// Limits of each process of a program (`setrlimit`); `None`: the same as the agent's.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Address space.
    pub memory: Option<ByteSize>,
    /// Processor time, in whole seconds; beyond it the process is killed.
    pub cpu_time: Option<Span>,
    /// Open files.
    pub open_files: Option<u64>,
    /// The largest file that it may write.
    pub file_size: Option<ByteSize>,
}

impl LimitsConfig {
    /// The resources and their limits for the kernel.
    pub(super) fn resources(&self) -> Vec<(Resource, u64)> {
        [
            (Resource::RLIMIT_AS, self.memory.map(|size| size.0)),
            (Resource::RLIMIT_CPU, self.cpu_time.map(|span| span.0.as_secs())),
            (Resource::RLIMIT_NOFILE, self.open_files),
            (Resource::RLIMIT_FSIZE, self.file_size.map(|size| size.0)),
        ]
        .into_iter()
        .filter_map(|(resource, limit)| Some((resource, limit?)))
        .collect()
    }

    fn validate(&self) -> Result<(), String> {
        if self.memory.is_some_and(|size| size < ByteSize::mib(1)) {
            return Err("limits.memory: must be at least 1MiB".into());
        }
        if self.cpu_time.is_some_and(|span| span < Span::secs(1)) {
            return Err("limits.cpu_time: must be at least 1s".into());
        }
        if self.open_files.is_some_and(|files| files < 8) {
            return Err("limits.open_files: must be at least 8".into());
        }
        Ok(())
    }
}

/// The limits of a program that the agent runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Maximum sizes of its output.
    pub output: OutputConfig,
    /// Its resource limits.
    pub limits: LimitsConfig,
}

/// Capped exponential backoff with full jitter: a random time before attempt n, up to `min`·2ⁿ, at
/// most `max`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffConfig {
    /// Maximum of the first wait.
    pub min: Span,
    /// Maximum of every wait. After a refusal by the server, the wait is up to twice as long.
    pub max: Span,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { min: Span::millis(500), max: Span::secs(30) }
    }
}

/// A key whose value a program prints.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataConfig {
    /// The key, unique among the agent's.
    pub key: String,
    /// The program with its arguments; no shell. It prints the value, as JSON or else as text, at most 4 KiB.
    pub command: Vec<String>,
    /// From one start to the next.
    pub interval: Span,
    /// After this time the program is killed, and an error is reported.
    pub timeout: Span,
    /// A random time up to this one passes before each start, so that a fleet doesn't start at the same moment.
    pub jitter: Span,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            key: String::new(),
            command: Vec::new(),
            interval: Span::secs(30),
            timeout: Span::secs(10),
            jitter: Span::secs(1),
        }
    }
}

fn validate_metadata(entries: &[MetadataConfig]) -> Result<(), String> {
    if entries.len() > MAX_KEYS {
        return Err(format!("metadata: more than {MAX_KEYS} keys"));
    }
    for (at, entry) in entries.iter().enumerate() {
        let wrong = |key: &str, what: &str| Err(format!("metadata[{at}].{key}: {what}"));
        if entry.key.is_empty() || entry.key.len() > MAX_KEY || entry.key.contains(char::is_control) {
            return wrong("key", &format!("must have 1 to {MAX_KEY} bytes and no control characters"));
        }
        if entries[..at].iter().any(|other| other.key == entry.key) {
            return wrong("key", &format!("\"{}\" is there twice", entry.key));
        }
        if entry.command.first().is_none_or(String::is_empty) {
            return wrong("command", "must name a program");
        }
        if entry.interval < Span::secs(1) {
            return wrong("interval", "must be at least 1s");
        }
        if entry.timeout.0.is_zero() {
            return wrong("timeout", "must be above zero");
        }
    }
    Ok(())
}

/// More runs at a time would need another kind of agent.
const MAX_CAPACITY: u32 = 10_000;
/// An output cap above what a frame can hold would only cost memory.
const MAX_OUTPUT: usize = crate::domain::protocol::MAX_FRAME;

impl AgentConfig {
    /// The limits of the programs that the agent runs.
    pub fn bounds(&self) -> Bounds {
        Bounds { output: self.output, limits: self.limits }
    }

    /// Which way leads to the server.
    pub(super) fn uplink(&self) -> Uplink {
        match ServiceUrl::new(&self.server).scheme() {
            "nats" | "tls" => Uplink::Nats,
            "amqp" | "amqps" => Uplink::Amqp,
            _ => Uplink::Http,
        }
    }

    fn validate_server(&self) -> Result<(), String> {
        let shown = ServiceUrl::new(&self.server);
        let http_only = [("token", self.token.is_some()), ("token_file", self.token_file.is_some())];
        let broker_only =
            [("password_file", self.password_file.is_some()), ("credentials_file", self.credentials_file.is_some())];
        let wrong = match self.uplink() {
            Uplink::Http => {
                match reqwest::Url::parse(&self.server) {
                    Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => {}
                    _ => {
                        return Err(format!(
                            "server: \"{shown}\" is not http[s]://host:port, nats://host:port or amqp://host:port"
                        ));
                    }
                }
                broker_only.into_iter().find(|(_, is_set)| *is_set)
            }
            #[cfg(feature = "nats")]
            Uplink::Nats => {
                crate::nats_client::NatsAccess::new(&self.server).map_err(|error| format!("server: {error}"))?;
                http_only.into_iter().find(|(_, is_set)| *is_set)
            }
            #[cfg(not(feature = "nats"))]
            Uplink::Nats => return Err(format!("server: \"{shown}\": this program was built without NATS")),
            #[cfg(feature = "amqp")]
            Uplink::Amqp => {
                crate::amqp_client::AmqpAccess::new(&self.server).map_err(|error| format!("server: {error}"))?;
                let nats_only = ("credentials_file", self.credentials_file.is_some());
                http_only.into_iter().chain([nats_only]).find(|(_, is_set)| *is_set)
            }
            #[cfg(not(feature = "amqp"))]
            Uplink::Amqp => return Err(format!("server: \"{shown}\": this program was built without AMQP")),
        };
        match wrong {
            Some((key, _)) => Err(format!("{key}: not for the server \"{shown}\"")),
            None => Ok(()),
        }
    }

    /// Checks the settings. The error names the key.
    pub fn validate(&self) -> Result<(), String> {
        if !is_agent_name(&self.name) {
            return Err(format!("name: \"{}\" is not 1 to 128 of A-Z a-z 0-9 . _ -", self.name));
        }
        self.validate_server()?;
        if self.state_dir.as_os_str().is_empty() {
            return Err("state_dir: must not be empty".into());
        }
        if self.capacity == 0 || self.capacity > MAX_CAPACITY {
            return Err(format!("capacity: {} is not between 1 and {MAX_CAPACITY}", self.capacity));
        }
        for (key, value) in [("output.stdout", self.output.stdout), ("output.stderr", self.output.stderr)] {
            if value > MAX_OUTPUT {
                return Err(format!("{key}: {value} is more than {MAX_OUTPUT} bytes"));
            }
        }
        self.exec.validate()?;
        self.limits.validate()?;
        if self.backoff.min.0.is_zero() || self.backoff.min > self.backoff.max {
            return Err("backoff: min must be above zero and not above max".into());
        }
        validate_metadata(&self.metadata)
    }
}

fn is_agent_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named_by_its_key() {
        let good = AgentConfig { name: "web-1".into(), ..AgentConfig::default() };
        assert_eq!(good.validate(), Ok(()));
        let secret = AgentConfig { token: Some("very private".to_owned().into()), ..good.clone() };
        assert!(!format!("{secret:?}").contains("private"));
        let none = LimitsConfig::default();
        let exec = |env: &[&str], cwd: &[&str]| {
            let env = env.iter().map(ToString::to_string).collect();
            let exec = ExecConfig { env, cwd: cwd.iter().map(Into::into).collect(), ..ExecConfig::default() };
            AgentConfig { exec, ..good.clone() }
        };
        let metadata = |entries: &[(&str, &str, u64)]| {
            let entry = |(key, program, secs): &(&str, &str, u64)| MetadataConfig {
                key: (*key).into(),
                command: vec![(*program).into()],
                interval: Span::secs(*secs),
                ..MetadataConfig::default()
            };
            AgentConfig { metadata: entries.iter().map(entry).collect(), ..good.clone() }
        };
        let wrong = [
            ("metadata[0].key", metadata(&[("", "uptime", 10)])),
            ("metadata[1].key", metadata(&[("a", "uptime", 10), ("a", "date", 10)])),
            ("metadata[0].command", metadata(&[("a", "", 10)])),
            ("metadata[0].interval", metadata(&[("a", "uptime", 0)])),
            ("name", AgentConfig { name: "a b".into(), ..good.clone() }),
            ("server", AgentConfig { server: "ftp://host".into(), ..good.clone() }),
            ("server", AgentConfig { server: "host:7401".into(), ..good.clone() }),
            (
                "limits.memory",
                AgentConfig { limits: LimitsConfig { memory: Some(ByteSize::kib(1)), ..none }, ..good.clone() },
            ),
            (
                "limits.cpu_time",
                AgentConfig { limits: LimitsConfig { cpu_time: Some(Span::millis(5)), ..none }, ..good.clone() },
            ),
            ("limits.open_files", AgentConfig { limits: LimitsConfig { open_files: Some(2), ..none }, ..good.clone() }),
            ("exec.env", exec(&["A=B"], &[])),
            ("exec.env", exec(&["*"], &[])),
            ("exec.env", exec(&["ODOSHI_TOKEN"], &[])),
            ("exec.cwd", exec(&["LESS"], &["srv"])),
            ("capacity", AgentConfig { capacity: 0, ..good.clone() }),
            ("output.stderr", AgentConfig { output: OutputConfig { stdout: 0, stderr: usize::MAX }, ..good.clone() }),
            (
                "backoff",
                AgentConfig { backoff: BackoffConfig { min: Span::secs(60), max: Span::secs(1) }, ..good.clone() },
            ),
        ];
        for (key, config) in wrong {
            let error = config.validate().expect_err(key);
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn the_sample_file_holds_the_defaults() {
        let sample: AgentConfig = toml::from_str(include_str!("../../config/agent.toml")).expect("a valid file");
        assert_eq!(format!("{sample:?}"), format!("{:?}", AgentConfig::default()));
    }

    #[test]
    fn it_reads_toml_and_refuses_unknown_keys() {
        let config: AgentConfig = toml::from_str(
            "name = \"a\"\nlabels = {role = \"web\"}\n[exec]\nallow = [\"uptime\"]\n[backoff]\nmin = \"1s\"",
        )
        .expect("a valid file");
        assert_eq!(config.exec.allow, ["uptime"]);
        assert_eq!(config.backoff.min, Span::secs(1));
        let error = toml::from_str::<AgentConfig>("[exec]\nalow = []").expect_err("a typing error");
        assert!(error.to_string().contains("alow"), "{error}");
    }
}
