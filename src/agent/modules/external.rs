//! Modules that are executables in a folder: parameters as JSON on standard input, the output as
//! JSON on standard output, exit code 0 on success. Standard error is for people: its end becomes
//! part of the error.

use super::{Call, Module, Outcome, environment, explain, process};
use crate::agent::config::Bounds;
use async_trait::async_trait;
use serde_json::value::RawValue;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Bytes of standard error in the error message. The end says most.
const ERROR_TAIL: usize = 2 * 1024;

/// One executable.
#[derive(Clone, Debug)]
pub struct External {
    program: PathBuf,
    bounds: Bounds,
    env: Vec<String>,
}

impl External {
    /// The module for `program`. From the agent's environment it gets the basic variables and those
    /// named in `env`.
    pub fn new(program: PathBuf, bounds: Bounds, env: Vec<String>) -> Self {
        Self { program, bounds, env }
    }
}

/// Finds the executable with that name, which must not contain `/` or dots. Called for every
/// operation, so modules can be added to a running agent. A link is followed only within the
/// folder.
pub fn find(folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let folder = folder.canonicalize()?;
    let file = match folder.join(name).canonicalize() {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.starts_with(&folder) {
        return refuse("it is a link out of the modules folder");
    }
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return refuse("it is not an executable file");
    }
    Ok(Some(file))
}

#[async_trait]
impl Module for External {
    async fn call(&self, mut call: Call) -> Outcome {
        let parameters = call.parameters.take().map_or_else(|| "null".to_owned(), |json| json.get().to_owned());
        let mut command = Command::new(&self.program);
        environment::minimal(&mut command, &self.env, call.scheduled_for);
        let (input, trace) = (Some(parameters.into_bytes()), &call.trace);
        let ended = match process::run(command, input, self.bounds, trace, &mut call.stop).await {
            Ok(ended) => ended,
            Err(error) => {
                let why = explain::not_started(&self.program, &error);
                return Outcome::failed(format!("it could not be run: {why}"));
            }
        };
        let mut outcome =
            Outcome { ok: true, truncated: ended.stdout.truncated, stopped: ended.stopped, ..Outcome::default() };
        let (text, lossy) = ended.stdout.text();
        outcome.lossy = lossy;
        if !text.trim().is_empty() {
            // Not `Value`, which would round large numbers.
            match serde_json::from_str::<&RawValue>(&text) {
                Ok(json) => outcome.output = Some(json.to_owned()),
                Err(_) if ended.stdout.truncated => {
                    outcome.error = Some(format!("it wrote more than {} bytes", self.bounds.output.stdout));
                }
                Err(error) => outcome.error = Some(format!("what it wrote is not JSON: {error}")),
            }
        }
        if let Some(error) = ended.error() {
            let (stderr, _) = ended.stderr.text();
            outcome.error = Some(match tail(stderr.trim()) {
                "" => error,
                said => format!("{error}: {said}"),
            });
        }
        outcome.ok = outcome.error.is_none();
        outcome
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(ERROR_TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::{AgentConfig, ExecConfig};
    use crate::agent::modules::{Modules, testing};
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    fn script(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    fn modules(dir: &Path) -> Modules {
        Modules::new(&AgentConfig { modules_dir: Some(dir.to_path_buf()), ..AgentConfig::default() })
    }

    async fn run(dir: &Path, name: &str, parameters: &str) -> Outcome {
        let (call, _tell) = testing::call(parameters, Duration::from_secs(60));
        modules(dir).find(name).expect("the module").call(call).await
    }

    #[tokio::test]
    async fn parameters_go_in_and_json_comes_out() {
        let dir = tempfile::tempdir().expect("a folder");
        script(dir.path(), "echo", "printf '{\"got\":'; cat; echo '}'");
        let outcome = run(dir.path(), "echo", "[1,2]").await;
        assert!(outcome.ok, "{outcome:?}");
        assert_eq!(testing::output(&outcome), serde_json::json!({"got": [1, 2]}));

        script(dir.path(), "broken", "echo '{'; echo why >&2");
        let outcome = run(dir.path(), "broken", "null").await;
        assert!(!outcome.ok && outcome.error.expect("an error").contains("not JSON"));

        script(dir.path(), "fails", "echo '{\"step\":2}'; echo why >&2; exit 4");
        let outcome = run(dir.path(), "fails", "null").await;
        assert_eq!(outcome.error.as_deref(), Some("exit code 4: why"));
        assert_eq!(testing::output(&outcome)["step"], 2);
    }

    #[tokio::test]
    async fn a_module_gets_of_the_agents_environment_what_is_named_and_no_more() {
        let dir = tempfile::tempdir().expect("a folder");
        script(dir.path(), "env", "echo \"[\\\"$CARGO_MANIFEST_DIR\\\",\\\"$CARGO_PKG_NAME\\\"]\"");
        // Cargo sets both variables for tests.
        let named = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
        let exec = ExecConfig { env: vec!["CARGO_PKG_NAME".into()], ..ExecConfig::default() };
        let config = AgentConfig { modules_dir: Some(dir.path().to_path_buf()), exec, ..AgentConfig::default() };
        let (call, _tell) = testing::call("null", Duration::from_secs(60));
        let outcome = Modules::new(&config).find("env").expect("the module").call(call).await;
        assert_eq!(testing::output(&outcome), serde_json::json!(["", named]));
    }

    #[test]
    fn only_executables_of_the_folder_itself_are_modules() {
        let dir = tempfile::tempdir().expect("a folder");
        script(dir.path(), "good", "true");
        symlink("good", dir.path().join("alias")).expect("a link");
        symlink("/bin/sh", dir.path().join("out")).expect("a link");
        std::fs::write(dir.path().join("plain"), "").expect("a file");
        std::fs::create_dir(dir.path().join("sub")).expect("a folder");
        let modules = modules(dir.path());
        assert!(modules.find("good").is_ok() && modules.find("alias").is_ok() && modules.find("ping").is_ok());
        for (name, why) in [
            ("out", "link out"),
            ("plain", "not an executable"),
            ("sub", "not an executable"),
            ("missing", "no module"),
            ("../good", "name"),
            ("", "name"),
        ] {
            let error = modules.find(name).err().expect(name);
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
