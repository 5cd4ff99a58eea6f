//! Gets and stores the agent's own token, and collects the facts about the machine.

use super::config::{AgentConfig, Secret};
use super::error::AgentError;
use super::journal::sync_dir;
use crate::domain::agent::Enrollment;
use crate::domain::fit::cut_text;
use crate::domain::json::JsonObject;
use crate::unreached::why;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use uuid::Uuid;

/// The version that agents report.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Timeout of the server's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of an error's text.
const MAX_DETAIL: usize = 1024;

/// How often the facts are reported while the agent is connected: a host may be renamed, and its uptime grows.
pub(super) const FACTS_FOR: Duration = Duration::from_secs(60 * 60);

/// The file of the agent's own token, in its state folder.
pub(super) const TOKEN_FILE: &str = "token";
/// The file of the nonce for enrolling. It is kept until the server has seen the token that it led
/// to.
const NONCE_FILE: &str = "enroll.nonce";

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrollError {
    /// A later attempt may succeed.
    #[error("{0}")]
    NotNow(String),
    /// The server refuses this token.
    #[error("the server refuses the token: {detail}")]
    Refused {
        /// Why.
        detail: String,
        /// It doesn't know the token: it was revoked, with its agent or without, or never was one.
        is_unknown: bool,
    },
    /// TLS can't be set up.
    #[error("{0}")]
    Tls(String),
    /// Another agent has the name.
    #[error("the name is taken: {0}")]
    NameTaken(String),
    /// The server considers the request invalid.
    #[error("the server answered {status}: {detail}")]
    Answer { status: u16, detail: String },
}

#[derive(Deserialize)]
struct Enrolled {
    #[serde(default)]
    token: Option<String>,
}

/// The agent's credentials: its own token, or until it has one, the token for enrolling.
pub(super) struct Credentials {
    pub(super) token: String,
    pub(super) is_own: bool,
    /// The token for enrolling once more. Kept until the server has accepted the agent's own token.
    /// Until then, an overtaken repetition of the call may have revoked that token; or the agent was removed, and its
    /// operator starts it again with a token for enrolling.
    given: Option<String>,
}

impl Credentials {
    /// Reads tokens from the disk and the settings. Blocks.
    pub(super) fn read(
        dir: &Path,
        token: Option<Secret>,
        token_file: Option<PathBuf>,
    ) -> Result<Option<Self>, AgentError> {
        let read = |path: PathBuf| token_read(&path).map_err(|source| AgentError::Token { path, source });
        let own = read(dir.join(TOKEN_FILE))?;
        let given = match (token, token_file) {
            (Some(Secret(token)), _) => Some(token),
            // With a token of its own, the agent may not need the file, or not be able to read it any more.
            (None, Some(path)) if own.is_some() => read(path).ok().flatten(),
            (None, Some(path)) => match read(path.clone())? {
                None => return Err(AgentError::Token { path, source: io::ErrorKind::NotFound.into() }),
                given => given,
            },
            (None, None) => None,
        };
        Ok(match (own, given) {
            (Some(token), given) => {
                let given = given.filter(|given| *given != token);
                Some(Self { token, is_own: true, given })
            }
            (None, Some(token)) => Some(Self { token, is_own: false, given: None }),
            (None, None) => None,
        })
    }

    /// Gets and stores the agent's own token; or, with that token, refreshes the agent's labels and
    /// facts on the server.
    ///
    /// # Errors
    /// The outer one: the token or the nonce can't be stored.
    pub(super) async fn enroll(&mut self, config: &AgentConfig) -> Result<Result<(), EnrollError>, AgentError> {
        let dir = &config.state_dir;
        loop {
            let nonce = if self.is_own { None } else { Some(nonce_keep(dir).await?) };
            match enroll(config, &self.token, nonce.as_deref()).await {
                Ok(token) if self.is_own && token == self.token => {
                    self.used(dir).await?;
                    return Ok(Ok(()));
                }
                Ok(token) => {
                    token_keep(dir, &token).await?;
                    if !self.is_own {
                        self.given = Some(std::mem::take(&mut self.token));
                    }
                    (self.token, self.is_own) = (token, true);
                    return Ok(Ok(()));
                }
                Err(EnrollError::Refused { is_unknown: true, .. }) if self.is_own && self.given.is_some() => {
                    log::info!(agent = config.name.as_str(); "the server does not know this agent's token: it enrolls anew");
                    (self.token, self.is_own) = (self.given.take().unwrap_or_default(), false);
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Whether the server may have revoked the agent's token, and would issue another one.
    pub(super) fn may_be_replaced(&self) -> bool {
        self.given.is_some()
    }

    /// The server has accepted the agent's token. Enrolling can't be repeated, so the nonce is no
    /// longer needed.
    pub(super) async fn used(&mut self, dir: &Path) -> Result<(), AgentError> {
        if self.given.take().is_none() {
            return Ok(());
        }
        let path = dir.join(NONCE_FILE);
        match tokio::fs::remove_file(&path).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AgentError::Token { path, source }),
            _ => Ok(()),
        }
    }
}

/// Enrolls with an enroll token, or refreshes labels and facts with the agent's own. Returns the
/// agent's own token.
async fn enroll(config: &AgentConfig, token: &str, nonce: Option<&str>) -> Result<String, EnrollError> {
    let not_now = |error: reqwest::Error| EnrollError::NotNow(why(&error));
    let client = client(config)?;
    let url = format!("{}/v1/agent/enroll", config.server.trim_end_matches('/'));
    let body = Enrollment {
        name: config.name.clone(),
        labels: config.labels.clone(),
        facts: Some(facts()),
        version: VERSION.to_owned(),
    };
    let mut call = client.post(url).bearer_auth(token).json(&body);
    if let Some(nonce) = nonce {
        call = call.header("Idempotency-Key", nonce);
    }
    let answer = call.send().await.map_err(not_now)?;
    let status = answer.status();
    if status.is_success() {
        let enrolled: Enrolled = answer.json().await.map_err(not_now)?;
        return match (status.as_u16(), enrolled.token) {
            (_, Some(token)) => Ok(token),
            // It was the agent's own token, so only labels and facts were stored.
            (200, None) => Ok(token.to_owned()),
            (status, None) => Err(EnrollError::Answer { status, detail: "no token in the answer".into() }),
        };
    }
    let detail = detail(&answer.text().await.unwrap_or_default());
    Err(match status.as_u16() {
        401 | 403 => EnrollError::Refused { detail, is_unknown: status == 401 },
        409 => EnrollError::NameTaken(detail),
        408 | 425 | 429 | 500.. => EnrollError::NotNow(format!("the server answered {status}: {detail}")),
        status => EnrollError::Answer { status, detail },
    })
}

/// Reports labels and facts with the agent's own token every hour, for ever.
pub(super) async fn keep_facts(config: &AgentConfig, token: &str) {
    loop {
        // Agents that were started together don't report together.
        tokio::time::sleep(FACTS_FOR.mul_f64(1.0 + rand::random::<f64>() / 4.0)).await;
        if let Err(error) = enroll(config, token, None).await {
            log::info!(agent = config.name.as_str(), error:%; "facts are reported again later");
        }
    }
}

/// A client for a few calls, dropped after them: an agent keeps no idle connection beside its
/// stream.
pub(super) fn client(config: &AgentConfig) -> Result<reqwest::Client, EnrollError> {
    let tls = crate::tls::client_config(&config.server, "ca_file", config.ca_file.as_deref());
    let client = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_backend_preconfigured(tls.map_err(EnrollError::Tls)?)
        .build();
    client.map_err(|error| EnrollError::NotNow(why(&error)))
}

/// The detail of a problem document, or the beginning of any other body.
pub(super) fn detail(body: &str) -> String {
    #[derive(Deserialize)]
    struct Problem {
        title: Option<String>,
        detail: Option<String>,
    }
    let text = match serde_json::from_str::<Problem>(body) {
        Ok(Problem { detail: Some(text), .. } | Problem { title: Some(text), .. }) => text,
        _ => body.to_owned(),
    };
    cut_text(text, MAX_DETAIL)
}

/// Reads a token file; `None` when there is none.
pub(super) fn token_read(path: &Path) -> io::Result<Option<String>> {
    match crate::text_file::read(path) {
        Ok(text) if text.trim().is_empty() => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the file holds no token"))
        }
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Stores the agent's own token for its next start.
async fn token_keep(dir: &Path, token: &str) -> Result<(), AgentError> {
    let token = token.to_owned();
    on_disk(dir, TOKEN_FILE, move |folder| secret_write(folder, TOKEN_FILE, &token)).await
}

/// The nonce under which the agent enrolls. It is on disk before the first call, so that the same
/// nonce is used again after a crash.
async fn nonce_keep(dir: &Path) -> Result<String, AgentError> {
    on_disk(dir, NONCE_FILE, |folder| match token_read(&folder.join(NONCE_FILE))? {
        Some(nonce) => Ok(nonce),
        None => {
            let nonce = Uuid::new_v4().to_string();
            secret_write(folder, NONCE_FILE, &nonce)?;
            Ok(nonce)
        }
    })
    .await
}

async fn on_disk<T: Send + 'static>(
    dir: &Path,
    file: &str,
    act: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, AgentError> {
    let folder = dir.to_path_buf();
    tokio::task::spawn_blocking(move || act(&folder))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|source| AgentError::Token { path: dir.join(file), source })
}

/// Writes a file atomically, readable only by its owner.
fn secret_write(dir: &Path, file: &str, secret: &str) -> io::Result<()> {
    let (path, new) = (dir.join(file), dir.join(format!("{file}.new")));
    // A leftover file may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(secret.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    sync_dir(dir).map_err(io::Error::other)
}

/// Facts about the machine, as of the agent's start. Collected once: thousands of agents may live
/// in one process.
///
/// `os`, `arch`, `kernel`, `hostname`, `ident` (the system's own name for itself), `cpus`, `memory`
/// (bytes), `uptime` (seconds).
pub(super) fn facts() -> JsonObject {
    static FACTS: Mutex<Option<(Instant, JsonObject)>> = Mutex::new(None);
    // The map is replaced in one step.
    let mut known = FACTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((gathered, facts)) = &*known
        && gathered.elapsed() < FACTS_FOR / 2
    {
        return facts.clone();
    }
    let facts = {
        let memory = System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()));
        let cpus = std::thread::available_parallelism().ok();
        let facts: [(&str, Option<Value>); 8] = [
            ("os", Some(std::env::consts::OS.into())),
            ("arch", Some(std::env::consts::ARCH.into())),
            ("kernel", System::kernel_version().map(Value::from)),
            ("hostname", System::host_name().map(Value::from)),
            ("ident", System::long_os_version().map(Value::from)),
            ("cpus", cpus.map(|cpus| cpus.get().into())),
            ("memory", Some(memory.total_memory().into())),
            ("uptime", Some(System::uptime().into())),
        ];
        let facts: Map<String, Value> =
            facts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        JsonObject::from(&facts)
    };
    *known = Some((Instant::now(), facts.clone()));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_token_is_kept_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(token_read(&dir.path().join(TOKEN_FILE)).expect("no file is no error"), None);
        fs::write(dir.path().join("token.new"), "torn").expect("a leftover of a crash");
        for token in ["first", "second"] {
            secret_write(dir.path(), TOKEN_FILE, token).expect("written");
            let path = dir.path().join(TOKEN_FILE);
            assert_eq!(token_read(&path).expect("read").as_deref(), Some(token));
            assert_eq!(path.metadata().expect("its mode").permissions().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn the_nonce_is_made_once_and_kept_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let nonce = nonce_keep(dir.path()).await.expect("kept");
        assert_eq!(nonce_keep(dir.path()).await.expect("kept"), nonce);
        let mode = dir.path().join(NONCE_FILE).metadata().expect("its mode").permissions().mode();
        assert_eq!((mode & 0o777, nonce.len()), (0o600, 36));
    }

    #[test]
    fn the_facts_name_the_machine() {
        for key in ["os", "arch", "kernel", "hostname", "ident", "cpus", "memory", "uptime"] {
            assert!(facts().text_at(&[key.to_owned()]).is_some(), "{key}");
        }
    }
}
