//! What sends events to hooks.
//!
//! The reconciler of hooks decides what is sent when, and records how it went. A [`HookClient`] makes
//! the request.

use crate::config::{Config, ConfigError, Fault, HookUrl};
use crate::domain::agent::SigningSecret;
use actix_web::web::Bytes;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The largest secret file that is read, in bytes: more secrets than anybody rotates at a time.
const MAX_SECRET_FILE: u64 = 16 * 1024;

/// Where a hook's events go.
#[derive(Clone, Debug)]
pub struct HookTarget {
    /// The hook's name.
    pub name: String,
    /// Where requests are sent.
    pub url: HookUrl,
    /// The secrets that sign the requests (Standard Webhooks); several while they rotate, none to
    /// send unsigned.
    pub secrets: Vec<SigningSecret>,
    /// Timeout of one request.
    pub timeout: Duration,
}

/// Why an event was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFailure {
    /// The reason, for people. It may hold what the receiver answered, but never a secret.
    pub error: String,
    /// How long the receiver asked to be left alone. Longer than 4 h counts as 4 h.
    pub retry_after: Option<Duration>,
    /// Whether trying again can't help.
    pub permanent: bool,
}

/// Sends events to hooks.
#[async_trait]
pub trait HookClient: Send + Sync + 'static {
    /// Sends one event by `POST`. `id` is the `webhook-id`, the same for every attempt. The caller
    /// stops waiting after the hook's timeout and drops the future.
    ///
    /// # Errors
    /// When the receiver has not accepted the event, or this is not known.
    async fn post(&self, hook: &HookTarget, id: &str, body: Bytes) -> Result<(), HookFailure>;
}

/// The hooks of this node, and what sends to them.
#[derive(Clone)]
pub struct HookSet {
    /// All of the hooks, at least one.
    pub targets: Vec<Arc<HookTarget>>,
    /// Sends the events.
    pub client: Arc<dyn HookClient>,
}

impl HookTarget {
    /// The hooks in the settings, with the secrets from their files.
    ///
    /// # Errors
    /// When a file can't be read or holds something else. Names the key and never the content.
    pub fn all(config: &Config) -> Result<Vec<Self>, ConfigError> {
        let (mut targets, mut faults) = (Vec::new(), Vec::new());
        for (index, hook) in config.hook.iter().enumerate() {
            let mut fault = |name: &str, message| {
                faults.push(Fault { key: format!("hook[{index}].{name}"), origin: None, message });
                Vec::new()
            };
            let secrets = match hook.secret_file.as_deref().map(read_secrets) {
                None => Vec::new(),
                Some(Ok(secrets)) => secrets,
                Some(Err(message)) => fault("secret_file", message),
            };
            match &hook.url {
                Some(url) => {
                    let (name, url) = (hook.name_at(index), url.clone());
                    targets.push(Self { name, url, secrets, timeout: hook.timeout.0 });
                }
                None => drop(fault("url", "is needed".into())),
            }
        }
        if faults.is_empty() { Ok(targets) } else { Err(ConfigError { faults }) }
    }
}

/// Reads one secret a line.
fn read_secrets(path: &Path) -> Result<Vec<SigningSecret>, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{shown} cannot be read: {error}"))?.len();
    if size > MAX_SECRET_FILE {
        return Err(format!("{shown} has {size} bytes, and a file of secrets has at most {MAX_SECRET_FILE}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let mut secrets = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if line.is_empty() {
            continue;
        }
        let key = line.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
        // Standard Webhooks asks for 24 to 64 bytes.
        if !key.is_some_and(|key| (24..=64).contains(&key.len())) {
            return Err(format!("{shown} holds no secret in line {number}: whsec_ and 24 to 64 bytes as base64"));
        }
        secrets.push(SigningSecret::stored(line.to_owned()));
    }
    if secrets.is_empty() { Err(format!("{shown} is empty")) } else { Ok(secrets) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Hook;

    fn targets(content: Option<&str>) -> Result<Vec<HookTarget>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        if let Some(content) = content {
            std::fs::write(&path, content).expect("written");
        }
        let hook = Hook { url: Some(HookUrl::new("https://h")), secret_file: Some(path), ..Hook::default() };
        let config = Config { hook: vec![hook], ..Config::default() };
        HookTarget::all(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn secrets_are_read_one_a_line() {
        let (one, two) = (SigningSecret::random(), SigningSecret::random());
        let targets = targets(Some(&format!("{}\n\n {}\n", one.reveal(), two.reveal()))).expect("valid");
        let read: Vec<&str> = targets[0].secrets.iter().map(SigningSecret::reveal).collect();
        assert_eq!(read, [one.reveal(), two.reveal()]);
        assert_eq!((targets[0].name.as_str(), targets[0].timeout), ("h-0", Duration::from_secs(30)));
        assert!(!format!("{targets:?}").contains(one.reveal()));
    }

    #[test]
    fn a_file_without_secrets_is_an_error_that_names_the_key_and_not_the_content() {
        let short = format!("whsec_{}", STANDARD.encode([1; 8]));
        for content in [None, Some(""), Some("hunter2"), Some("whsec_hunter2"), Some(short.as_str())] {
            let error = targets(content).expect_err("no secret");
            assert!(error.starts_with("hook[0].secret_file ") && !error.contains("hunter2"), "{error}");
        }
        let large = targets(Some(&"\n".repeat(20_000))).expect_err("too large");
        assert!(large.contains("20000 bytes"), "{large}");
    }
}
