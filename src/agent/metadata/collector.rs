//! Runs the programs whose output is reported.

use super::reports::{Collected, Reports};
use crate::agent::config::{AgentConfig, Bounds, MetadataConfig, OutputConfig};
use crate::agent::modules::{Stop, run_bare};
use crate::agent::server_clock::ServerClock;
use crate::domain::metadata::MAX_VALUE;
use serde_json::value::{RawValue, to_raw_value};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes of standard error in an error.
const ERROR: usize = 512;

/// The running tasks. They end when this is dropped.
pub(in crate::agent) struct Collectors {
    _tasks: JoinSet<()>,
}

impl Collectors {
    /// Starts a task for each entry of the settings.
    pub(in crate::agent) fn start(config: &AgentConfig, reports: &Arc<Reports>, clock: &Arc<ServerClock>) -> Self {
        let mut tasks = JoinSet::new();
        for entry in &config.metadata {
            let (entry, config, reports, clock) = (entry.clone(), config.clone(), reports.clone(), clock.clone());
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(entry.jitter.0.mul_f64(rand::random())).await;
                    let (began, at) = (Instant::now(), clock.moment());
                    reports.put(&entry.key, collect(&entry, &config).await, at);
                    tokio::time::sleep_until(began + entry.interval.0).await;
                }
            });
        }
        Self { _tasks: tasks }
    }
}

/// Collects every value once, all at the same time.
pub(in crate::agent) async fn collect_once(config: &AgentConfig, reports: &Reports, clock: &ServerClock) {
    let collecting = config.metadata.iter().map(|entry| async move {
        let at = clock.moment();
        reports.put(&entry.key, collect(entry, config).await, at);
    });
    futures_util::future::join_all(collecting).await;
}

/// Runs a program and reads what it prints: JSON, or else a text.
async fn collect(entry: &MetadataConfig, config: &AgentConfig) -> Collected {
    let output = OutputConfig { stdout: MAX_VALUE + 1, stderr: ERROR };
    let bounds = Bounds { output, limits: config.limits };
    // Nothing but the deadline stops it; and the end of this task, which kills it.
    let (_tell, told) = watch::channel(None);
    let stop = Stop::new(told, Instant::now() + entry.timeout.0);
    let ended = run_bare(&entry.command, &config.exec.env, bounds, stop).await;
    let ended = ended.map_err(|error| format!("it could not be run: {error}"))?;
    if let Some(error) = ended.error {
        return Err(if ended.stderr.is_empty() { error } else { format!("{error}: {}", ended.stderr) });
    }
    let text = ended.stdout.trim();
    if ended.truncated || text.len() > MAX_VALUE {
        return Err(format!("it printed more than {MAX_VALUE} bytes"));
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => Ok(json.to_owned()),
        Err(_) => to_raw_value(text).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Span;

    fn entry(script: &str) -> MetadataConfig {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        MetadataConfig { key: "k".into(), command, timeout: Span::secs(60), ..MetadataConfig::default() }
    }

    async fn collected(entry: &MetadataConfig) -> Result<String, String> {
        collect(entry, &AgentConfig::default()).await.map(|value| value.get().to_owned())
    }

    #[tokio::test]
    async fn what_a_program_prints_is_json_or_a_text() {
        for (script, value) in [
            ("echo ' 1.10 '", "1.10"),
            ("echo '{\"a\": [1]}'", "{\"a\": [1]}"),
            ("echo 'up 3 days, \"load\" 1'", "\"up 3 days, \\\"load\\\" 1\""),
            ("true", "\"\""),
        ] {
            assert_eq!(collected(&entry(script)).await.as_deref(), Ok(value), "{script}");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_or_prints_too_much_is_an_error() {
        let fails = collected(&entry("echo no sensor >&2; exit 3")).await;
        assert_eq!(fails, Err("exit code 3: no sensor".into()));
        let long = collected(&entry("head -c 5000 /dev/zero | tr '\\0' x")).await;
        assert_eq!(long, Err(format!("it printed more than {MAX_VALUE} bytes")));
        let missing = MetadataConfig { command: vec!["/no/such/program".into()], ..entry("") };
        assert!(collected(&missing).await.expect_err("there is none").starts_with("it could not be run"));
        let slow = MetadataConfig { timeout: Span::millis(50), ..entry("sleep 600") };
        assert_eq!(collected(&slow).await, Err("timed out".into()));
    }
}
