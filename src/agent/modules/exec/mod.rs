//! `exec`: runs a program without a shell.
//!
//! The agent decides what may run, not the server:
//!
//! - `exec.allow` names the programs. An absolute path allows just that path, a bare name is looked
//!   up in the *agent's* `PATH`. The arguments of an allowed program are not checked: allowing `sh`
//!   allows everything.
//! - `exec.env` names the variables that an action may set. Without it an action could make an allowed program run
//!   other code (see `environment`).
//! - `exec.cwd` names the folders in which a program may be started, since programs read settings and code from there.
//!
//! With `exec.allow = ["*"]` none of these restricts an action.

use super::environment::{self, SCHEDULED_FOR};
use super::{Call, Module, Outcome, explain, process};
use crate::agent::config::{Bounds, ExecConfig};
use crate::agent::processes::MARK;
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// The module that runs programs.
#[derive(Clone, Debug)]
pub struct Exec {
    config: ExecConfig,
    bounds: Bounds,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    argv: Vec<String>,
    #[serde(default, deserialize_with = "each_once")]
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
    /// Runs what `config` allows, within `bounds`.
    pub fn new(config: ExecConfig, bounds: Bounds) -> Self {
        Self { config, bounds }
    }

    fn command(&self, parameters: &Parameters, scheduled_for: Option<Timestamp>) -> Result<(Command, PathBuf), String> {
        let name = parameters.argv.first().ok_or("argv must not be empty")?;
        let everything = self.config.allow.iter().any(|allowed| allowed == "*");
        if !everything && !self.config.allow.contains(name) {
            return Err(format!("\"{name}\" is not allowed by this agent's exec.allow"));
        }
        let program = match (name.contains('/'), everything) {
            (false, _) => in_path(name).ok_or_else(|| format!("\"{name}\" is not in this agent's PATH"))?,
            (true, false) if !Path::new(name).is_absolute() => {
                return Err(format!("\"{name}\" must be an absolute path or a bare name"));
            }
            (true, _) => PathBuf::from(name),
        };
        let mut command = Command::new(&program);
        command.arg0(name).args(&parameters.argv[1..]);
        environment::minimal(&mut command, &self.config.env, scheduled_for);
        for (key, value) in &parameters.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(format!("env: \"{}\" is not a variable's name", key.escape_debug()));
            }
            if value.contains('\0') {
                return Err(format!("env: the value of {} contains NUL", key.escape_debug()));
            }
            if [MARK, SCHEDULED_FOR].contains(&key.as_str()) {
                return Err(format!("env: {key} is set by the agent"));
            }
            if !everything && !self.config.env.contains(key) {
                return Err(format!("env: {} is not allowed by this agent's exec.env", key.escape_debug()));
            }
            command.env(key, value);
        }
        if let Some(cwd) = &parameters.cwd {
            let folder = if everything { cwd.clone() } else { self.folder(cwd)? };
            explain::check_folder(&folder)?;
            command.current_dir(folder);
        }
        Ok((command, program))
    }

    /// The real path of a folder that an action names, if it is in an allowed folder.
    fn folder(&self, cwd: &Path) -> Result<PathBuf, String> {
        let refused = || format!("cwd: \"{}\" is not in a folder of this agent's exec.cwd", cwd.display());
        if self.config.cwd.is_empty() {
            return Err(refused());
        }
        // Links and `..` are resolved before the comparison.
        let folder = cwd.canonicalize().map_err(|error| format!("cwd: \"{}\": {error}", cwd.display()))?;
        let is_in = |allowed: &PathBuf| allowed.canonicalize().is_ok_and(|allowed| folder.starts_with(allowed));
        if self.config.cwd.iter().any(is_in) { Ok(folder) } else { Err(refused()) }
    }
}

/// Reads a map and rejects duplicate keys: which value counts must not depend on the reader.
fn each_once<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct EachOnce;
    impl<'de> Visitor<'de> for EachOnce {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if all.contains_key(&key) {
                    return Err(A::Error::custom(format_args!("env: {} is there twice", key.escape_debug())));
                }
                all.insert(key, value);
            }
            Ok(all)
        }
    }
    from.deserialize_map(EachOnce)
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
        let mut parameters: Parameters = match crate::domain::json::parameters(parameters) {
            Ok(parameters) => parameters,
            Err(error) => return Outcome::failed(format!("parameters: {error}")),
        };
        let (command, program) = match self.command(&parameters, call.scheduled_for) {
            Ok(command) => command,
            Err(error) => return Outcome::failed(error),
        };
        let input = parameters.stdin.take().map(String::into_bytes);
        match process::run(command, input, self.bounds, &call.trace, &mut call.stop).await {
            Ok(ended) => {
                let error = ended.error();
                let ((stdout, lost), (stderr, also_lost)) = (ended.stdout.text(), ended.stderr.text());
                let exit_code = ended.status.and_then(|status| status.code());
                let output = Output { exit_code, stdout, stderr };
                Outcome {
                    ok: error.is_none(),
                    error,
                    truncated: ended.stdout.truncated || ended.stderr.truncated,
                    lossy: lost || also_lost,
                    stopped: ended.stopped,
                    output: None,
                }
                .output(&output)
            }
            Err(error) => {
                let why = explain::not_started(&program, &error);
                Outcome::failed(format!("\"{}\" could not be run: {why}", parameters.argv[0]))
            }
        }
    }
}

#[cfg(test)]
mod tests;
