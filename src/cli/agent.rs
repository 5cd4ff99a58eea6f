//! `odoshi agent`.

use super::outcome::Outcome;
use crate::agent::processes::{cgroup, orphans};
use crate::agent::{Agent, AgentConfig};
use crate::os_signals::StopSignals;
use crate::text_file;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The server's URL, http[s]://HOST:PORT, or its broker's, nats://HOST:PORT or amqp://HOST:PORT
    #[arg(long, value_name = "URL", env = "ODOSHI_SERVER")]
    server: Option<String>,
    /// This agent's name, unique in the fleet; the host's name by default
    #[arg(long)]
    name: Option<String>,
    /// A label for targets; may be repeated
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A file with an enroll token, or with this agent's own
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// For a NATS server: a file with this agent's credentials
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// For a broker: a file with this agent's password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where the agent keeps its token and its journal
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// For an https server: a file with the authorities to trust (PEM), instead of the system's
    #[arg(long, value_name = "FILE", env = "ODOSHI_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Settings file (TOML); flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check in over plain HTTP, run what is due, report, and exit
    #[arg(long)]
    once: bool,
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    if key.is_empty() {
        return Err(format!("{text:?} has no key"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn run(args: Args) -> Outcome {
    let mut config = match &args.config {
        Some(path) => {
            let text = text_file::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            toml::from_str::<AgentConfig>(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => AgentConfig::default(),
    };
    if let Some(server) = args.server {
        config.server = server;
    }
    if let Some(name) = args.name {
        config.name = name;
    }
    if config.name.is_empty() {
        config.name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    }
    if let Some(state_dir) = args.state_dir {
        config.state_dir = state_dir;
    }
    if args.token_file.is_some() {
        config.token_file = args.token_file;
    }
    if args.credentials_file.is_some() {
        config.credentials_file = args.credentials_file;
    }
    if args.password_file.is_some() {
        config.password_file = args.password_file;
    }
    if args.ca_file.is_some() {
        config.ca_file = args.ca_file;
    }
    if !args.labels.is_empty() {
        config.labels.get_or_insert_default().extend(args.labels);
    }
    let agent = Agent::new(config)?;
    actix_rt::System::new().block_on(async {
        let mut signals = StopSignals::listen()?;
        cgroup::sweep();
        let reaping = actix_rt::spawn(orphans::reap());
        let stop = async move { signals.next().await };
        let ended = if args.once {
            agent.run_once(stop).await.map(|results| say!("{results} results were stored"))
        } else {
            agent.run(stop).await
        };
        reaping.abort();
        ended?;
        Ok(ExitCode::SUCCESS)
    })
}
