//! `odoshi agent` as a process; stopped when dropped.

use super::server::program;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The reference agent in a process of its own. It keeps its state folder over restarts.
pub struct AgentProcess {
    command: Box<dyn Fn() -> Command + Send>,
    child: Option<Child>,
}

impl AgentProcess {
    /// Starts an agent that may run anything; `token` enrolls it the first time.
    pub fn start(server: &str, name: &str, labels: &[(&str, &str)], folder: &Path, token: &str) -> Self {
        Self::start_with(server, name, labels, folder, token, "")
    }

    /// The same, with more at the top of its settings.
    pub fn start_with(
        server: &str,
        name: &str,
        labels: &[(&str, &str)],
        folder: &Path,
        token: &str,
        settings: &str,
    ) -> Self {
        let state = folder.join(name);
        std::fs::create_dir_all(&state).unwrap();
        let (token_file, config) = (state.join("enroll"), state.join("agent.toml"));
        std::fs::write(&token_file, token).unwrap();
        let settings = format!("{settings}[exec]\nallow = [\"*\"]\n[backoff]\nmin = \"20ms\"\nmax = \"500ms\"\n");
        std::fs::write(&config, settings).unwrap();
        let log = state.join("agent.log");
        let arguments: Vec<String> = [
            ["agent", "--server", server, "--name", name].map(str::to_owned).to_vec(),
            labels.iter().flat_map(|(key, value)| ["--label".to_owned(), format!("{key}={value}")]).collect(),
        ]
        .concat();
        let command = move || {
            let log = File::options().create(true).append(true).open(&log).unwrap();
            let mut command = Command::new(program());
            command
                .args(&arguments)
                .arg("--token-file")
                .arg(&token_file)
                .arg("--config")
                .arg(&config)
                .arg("--state-dir")
                .arg(state.join("state"))
                // For what it runs, to leave traces in.
                .env("AGENT_FOLDER", &state)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .process_group(0);
            command
        };
        let mut agent = Self { command: Box::new(command), child: None };
        agent.restart();
        agent
    }

    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some((self.command)().spawn().unwrap());
    }

    /// `kill -9`; what it runs goes on until it ends by itself.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
