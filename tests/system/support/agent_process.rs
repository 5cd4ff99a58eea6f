//! `odoshi agent` as a process; stopped when dropped.

use super::server::program;
use super::wait::eventually;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The reference agent in a process of its own. It keeps its state folder over restarts.
pub struct AgentProcess {
    command: Box<dyn Fn() -> Command + Send>,
    child: Option<Child>,
    is_subreaper: bool,
}

impl AgentProcess {
    /// Starts an agent that may run anything; `token` enrolls it the first time.
    pub fn start(server: &str, name: &str, labels: &[(&str, &str)], folder: &Path, token: &str) -> Self {
        Self::start_with(server, name, labels, folder, token, "")
    }

    /// Starts it again as a process that inherits orphans, like PID 1 of a container.
    pub fn restart_as_subreaper(&mut self) {
        self.kill();
        self.is_subreaper = true;
        self.restart();
    }

    /// An agent with more at the top of its settings.
    pub fn start_with(
        server: &str,
        name: &str,
        labels: &[(&str, &str)],
        folder: &Path,
        token: &str,
        settings: &str,
    ) -> Self {
        Self::start_labelled(server, name, labels, folder, token, settings, Vec::new())
    }

    /// The same without labels, and with more in its environment.
    pub fn start_in(
        server: &str,
        name: &str,
        folder: &Path,
        token: &str,
        settings: &str,
        environment: Vec<(String, String)>,
    ) -> Self {
        Self::start_labelled(server, name, &[], folder, token, settings, environment)
    }

    fn start_labelled(
        server: &str,
        name: &str,
        labels: &[(&str, &str)],
        folder: &Path,
        token: &str,
        settings: &str,
        environment: Vec<(String, String)>,
    ) -> Self {
        let state = folder.join(name);
        std::fs::create_dir_all(&state).unwrap();
        let (token_file, config) = (state.join("enroll"), state.join("agent.toml"));
        std::fs::write(&token_file, token).unwrap();
        let exec = "[exec]\nallow = [\"*\"]\nenv = [\"AGENT_FOLDER\"]\n";
        let settings = format!("{settings}{exec}[backoff]\nmin = \"20ms\"\nmax = \"500ms\"\n");
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
                .envs(environment.iter().cloned())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .process_group(0);
            command
        };
        let mut agent = Self { command: Box::new(command), child: None, is_subreaper: false };
        agent.restart();
        agent
    }

    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = (self.command)();
        if self.is_subreaper {
            become_subreaper(&mut command);
        }
        self.child = Some(command.spawn().unwrap());
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self) -> ExitStatus {
        let status = eventually("the agent to end", || {
            let status = self.child.as_mut().unwrap().try_wait().unwrap();
            async move { status }
        })
        .await;
        self.child = None;
        status
    }

    /// `kill -9`; its programs die with it, what those have started is killed at its next start.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[allow(unsafe_code, reason = "there is no other way to call prctl in the new process")]
fn become_subreaper(command: &mut Command) {
    // SAFETY: prctl is a system call that may be made between fork and exec; the attribute isn't inherited.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_child_subreaper(true)?)) };
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
