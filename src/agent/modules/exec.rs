//! `exec`: runs a program without a shell.
//!
//! Which programs is the agent's own decision (`exec.allow`), not the server's: an absolute path allows just that path,
//! a bare name is looked up in the *agent's* `PATH`. Relative paths, and variables that would slip other code into an
//! allowed program, are refused unless everything is allowed. What an allowed program does with its arguments isn't
//! looked at: allowing `sh` allows everything.

use super::{Call, Module, Outcome, process};
use crate::agent::config::{Bounds, ExecConfig};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Runs programs.
#[derive(Clone, Debug)]
pub struct Exec {
    allow: Vec<String>,
    bounds: Bounds,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    argv: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<PathBuf>,
    stdin: Option<String>,
}

#[derive(Serialize)]
struct Output {
    exit_code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Exec {
    /// Runs what `config` allows and keeps as much output as `bounds` say.
    pub fn new(config: ExecConfig, bounds: Bounds) -> Self {
        Self { allow: config.allow, bounds }
    }

    fn command(&self, parameters: &Parameters) -> Result<Command, String> {
        let name = parameters.argv.first().ok_or("argv must not be empty")?;
        let everything = self.allow.iter().any(|allowed| allowed == "*");
        if !everything && !self.allow.contains(name) {
            return Err(format!("\"{name}\" is not allowed by this agent's exec.allow"));
        }
        let program = match (name.contains('/'), everything) {
            (false, _) => in_path(name).ok_or_else(|| format!("\"{name}\" is not in this agent's PATH"))?,
            (true, false) if !Path::new(name).is_absolute() => {
                return Err(format!("\"{name}\" must be an absolute path or a bare name"));
            }
            (true, _) => PathBuf::from(name),
        };
        let mut command = Command::new(program);
        command.arg0(name).args(&parameters.argv[1..]);
        for (key, value) in &parameters.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(format!("env: \"{}\" is not a variable's name", key.escape_debug()));
            }
            let loads_code = key == "PATH" || key.starts_with("LD_") || key.starts_with("DYLD_");
            if loads_code && !everything {
                return Err(format!("env: {key} may only be set where exec.allow is [\"*\"]"));
            }
            command.env(key, value);
        }
        if let Some(cwd) = &parameters.cwd {
            command.current_dir(cwd);
        }
        Ok(command)
    }
}

/// Looks a bare name up as a shell would.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|file| {
        file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

#[async_trait]
impl Module for Exec {
    async fn call(&self, mut call: Call) -> Outcome {
        let parameters = call.parameters.as_ref().map_or("null", |parameters| parameters.get());
        let mut parameters: Parameters = match serde_json::from_str(parameters) {
            Ok(parameters) => parameters,
            Err(error) => return Outcome::failed(format!("parameters: {error}")),
        };
        let command = match self.command(&parameters) {
            Ok(command) => command,
            Err(error) => return Outcome::failed(error),
        };
        let input = parameters.stdin.take().map(String::into_bytes);
        match process::run(command, input, self.bounds, &call.trace, &mut call.stop).await {
            Ok(ended) => {
                let error = ended.error();
                let output = Output {
                    exit_code: ended.status.and_then(|status| status.code()),
                    stdout: ended.stdout.text(),
                    stderr: ended.stderr.text(),
                };
                Outcome {
                    ok: error.is_none(),
                    error,
                    truncated: ended.stdout.truncated || ended.stderr.truncated,
                    stopped: ended.stopped,
                    output: None,
                }
                .output(&output)
            }
            Err(error) => Outcome::failed(format!("\"{}\" could not be run: {error}", parameters.argv[0])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::{LimitsConfig, OutputConfig};
    use crate::agent::modules::{StopReason, testing};
    use crate::config::ByteSize;
    use serde_json::{Value, json};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    fn exec(allow: &[&str]) -> Exec {
        let allow = allow.iter().map(ToString::to_string).collect();
        let output = OutputConfig { stdout: 1000, stderr: 1000 };
        Exec::new(ExecConfig { allow }, Bounds { output, ..Bounds::default() })
    }

    async fn run(allow: &[&str], parameters: Value) -> Outcome {
        let (call, _tell) = testing::call(&parameters.to_string(), LONG);
        exec(allow).call(call).await
    }

    #[tokio::test]
    async fn it_gives_the_exit_code_and_both_outputs() {
        let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]})).await;
        assert!(!outcome.ok);
        assert_eq!(outcome.error.as_deref(), Some("exit code 3"));
        assert_eq!(testing::output(&outcome), json!({"exit_code": 3, "stdout": "out\n", "stderr": "err\n"}));

        let outcome = run(&["true"], json!({"argv": ["true"]})).await;
        assert!(outcome.ok && outcome.error.is_none());
        assert_eq!(testing::output(&outcome)["exit_code"], 0);
    }

    #[tokio::test]
    async fn it_passes_environment_folder_and_input_and_no_shell_comes_between() {
        let script = "read line; echo \"$line $X $PWD $1\"";
        let parameters = json!({"argv": ["sh", "-c", script, "sh", "$HOME; *"],
            "env": {"X": "x"}, "cwd": "/", "stdin": "in\nput"});
        let outcome = run(&["*"], parameters).await;
        assert_eq!(testing::output(&outcome)["stdout"], "in x / $HOME; *\n");

        let outcome = run(&["cat"], json!({"argv": ["cat"]})).await;
        assert_eq!(testing::output(&outcome)["stdout"], "", "without stdin there is nothing to read");
    }

    #[tokio::test]
    async fn a_program_that_is_not_allowed_does_not_run() {
        for (allow, parameters, error) in [
            (&[][..], json!({"argv": ["true"]}), "not allowed"),
            (&["true"], json!({"argv": ["/bin/true"]}), "not allowed"),
            (&["/bin/true"], json!({"argv": ["true"]}), "not allowed"),
            (&["./true"], json!({"argv": ["./true"], "cwd": "/bin"}), "absolute path"),
            (&["true"], json!({"argv": ["true"], "env": {"LD_PRELOAD": "/tmp/x.so"}}), "LD_PRELOAD"),
            (&["true"], json!({"argv": ["true"], "env": {"PATH": "/tmp"}}), "PATH"),
            (&["*"], json!({"argv": ["no-such-program-anywhere"]}), "PATH"),
            (&["*"], json!({"argv": ["/no/such/program"]}), "could not be run"),
            (&["*"], json!({"argv": []}), "argv"),
            (&["*"], json!({"argv": ["true"], "shell": true}), "shell"),
            (&["*"], json!(null), "parameters"),
        ] {
            let outcome = run(allow, parameters.clone()).await;
            let said = outcome.error.expect("an error");
            assert!(!outcome.ok && outcome.output.is_none(), "{parameters}");
            assert!(said.contains(error), "{parameters}: {said}");
        }
    }

    #[tokio::test]
    async fn a_program_gets_no_more_than_its_limits() {
        let limits = LimitsConfig {
            memory: Some(ByteSize::mib(64)),
            cpu_time: Some(crate::domain::time::Span::secs(1)),
            open_files: Some(16),
            file_size: Some(ByteSize::kib(1)),
        };
        let bounds = Bounds { limits, ..Bounds::default() };
        let exec = Exec::new(ExecConfig { allow: vec!["sh".into()] }, bounds);
        let run = async |script: &str| {
            let (call, _tell) = testing::call(&json!({"argv": ["sh", "-c", script]}).to_string(), LONG);
            exec.call(call).await
        };
        let outcome = run("ulimit -v; ulimit -t; ulimit -n; ulimit -f").await;
        // In kilobytes, seconds, files, and blocks of 512 bytes.
        assert_eq!(testing::output(&outcome)["stdout"], "65536\n1\n16\n2\n");
        let spinning = run("while :; do :; done").await;
        assert_eq!(spinning.error.as_deref(), Some("killed by SIGKILL"));
    }

    #[tokio::test]
    async fn a_signal_is_named() {
        let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "kill -SEGV $$"]})).await;
        assert!(!outcome.ok);
        assert_eq!(outcome.error.as_deref(), Some("killed by SIGSEGV"));
        assert_eq!(testing::output(&outcome)["exit_code"], Value::Null);
    }

    #[tokio::test]
    async fn output_beyond_the_cap_is_read_and_dropped() {
        let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "yes | head -c 1000000; echo end >&2"]})).await;
        assert!(outcome.ok && outcome.truncated);
        let output = testing::output(&outcome);
        assert_eq!(output["stdout"].as_str().map(str::len), Some(1000));
        assert_eq!(output["stderr"], "end\n");
    }

    /// Runs a script that starts a grandchild, waits until both live, does `stop`, and sees them dead.
    async fn all_die(timeout: Duration, stop: impl FnOnce(tokio::sync::watch::Sender<Option<StopReason>>)) -> Outcome {
        let dir = tempfile::tempdir().expect("a folder");
        let fifo = dir.path().join("alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe");
        // Both processes hold the pipe open for writing: it ends when both are dead, and not before.
        let script = format!("exec 3>{}; echo up >&3; echo partial; sleep 1000 & sleep 1000", fifo.display());
        let parameters = json!({"argv": ["sh", "-c", script]}).to_string();
        let (call, tell) = testing::call(&parameters, timeout);
        let exec = exec(&["sh"]);
        let running = tokio::spawn(async move { exec.call(call).await });
        let mut alive = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).expect("the named pipe");
        let mut said = Vec::new();
        let mut byte = [0; 3];
        loop {
            // Until the script opens it, the pipe has no writer and reads as ended.
            alive.readable().await.expect("readable");
            match alive.try_read(&mut byte) {
                Ok(0) => {
                    assert!(!running.is_finished(), "it ended before it began");
                    tokio::task::yield_now().await;
                }
                Ok(read) => {
                    said.extend_from_slice(&byte[..read]);
                    break;
                }
                Err(_) => {}
            }
        }
        stop(tell);
        let outcome = running.await.expect("no panic");
        tokio::io::AsyncReadExt::read_to_end(&mut alive, &mut said).await.expect("the end of both");
        assert_eq!(said, b"up\n");
        outcome
    }

    #[tokio::test]
    async fn the_timeout_kills_grandchildren_too_and_keeps_what_was_written() {
        let mut kept = None;
        let outcome = all_die(Duration::from_secs(5), |tell| kept = Some(tell)).await;
        assert_eq!(outcome.stopped, Some(StopReason::TimedOut));
        assert_eq!(outcome.error.as_deref(), Some("timed out"));
        assert_eq!(testing::output(&outcome), json!({"exit_code": null, "stdout": "partial\n", "stderr": ""}));
    }

    #[tokio::test]
    async fn a_cancel_kills_the_group_at_once() {
        let outcome = all_die(LONG, |tell| {
            tell.send_replace(Some(StopReason::Cancelled));
        })
        .await;
        assert_eq!(outcome.error.as_deref(), Some("cancelled"));
    }

    #[tokio::test]
    async fn what_a_program_leaves_in_the_background_does_not_hold_up_its_run() {
        let outcome = run(&["sh"], json!({"argv": ["sh", "-c", "sleep 1000 & echo done"]})).await;
        assert!(outcome.ok);
        assert_eq!(testing::output(&outcome)["stdout"], "done\n");
    }
}
