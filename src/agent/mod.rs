//! The reference agent: takes commands over one WebSocket, runs each at most once, and reports what came of it until
//! the server has it.
//!
//! # One command through the agent
//!
//! 1. `connection` has enrolled (`enroll` keeps the token) and opened a socket; its `session` said `hello` with
//!    the runs that the agent still has, and learned the server's clock from `welcome`.
//! 2. A `commands` frame comes. The session hands it to the `runner` over a short channel; while that is full the
//!    session reads no further, and the server feels it.
//! 3. The runner looks each command up in the `journal`. A repeat is answered from there. A new one gets a place in
//!    the queue; an older run of the same command is killed.
//! 4. The runner's next turn writes `received` for all that came, and `started` for those that there is room for, as
//!    one group with one sync. Only then do the names go into the `outbox`, and the session sends `received`.
//! 5. A task runs the operations in order (`run`), each by its [module](modules); outputs are cut (`fit`) to what a
//!    frame can hold. At the timeout, on cancel, or when the agent stops, the module is told and its processes killed.
//! 6. The runner's next turn writes the `result`; its name goes into the outbox; the session reads it back from the
//!    journal and sends it. Memory holds no result for longer than that.
//! 7. The server answers `stored` (or `rejected`); the runner notes it. Until then every new connection sends the
//!    result again; afterwards the journal still answers repeats, until a day after the command's expiry.
//!
//! ```text
//!   server ──▶ session ──Input──▶ runner ──▶ run ──▶ module
//!     ▲           ▲                │  ▲        │
//!     └───────────┴── outbox ◀─────┤  └────────┘
//!                       journal ◀──┘
//! ```
//!
//! Nobody waits in a circle: the session waits for the runner, the runner for the journal and nothing else.
//!
//! An agent holds three file descriptors (socket, journal, lock) and a few kilobytes, so that thousands can live in
//! one process. Everything runs inside the future of [`Agent::run`], but for runs and disk work, which are tasks of
//! the tokio runtime that it is polled on; a current-thread runtime will do. Dropping the future kills what runs.

mod config;
mod connection;
mod enroll;
mod fit;
mod journal;
pub mod modules;
mod once;
mod outbox;
pub(crate) mod processes;
mod run;
mod runner;
mod session;
#[cfg(test)]
mod tests;

pub use config::{AgentConfig, BackoffConfig, Bounds, ExecConfig, LimitsConfig, OutputConfig, Secret};
pub use journal::JournalError;
pub use modules::{Module, Modules};

use crate::domain::time::Timestamp;
use connection::Connection;
use enroll::Credentials;
use journal::{Journal, Recovered};
use outbox::{Outbox, ServerClock, SharedJournal};
use runner::{Input, Runner};
use session::SessionDeps;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// The version that agents report.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Frames that wait for the runner. Each is a batch already.
const INPUTS: usize = 2;

/// Why an agent can't work. What the network does is none of these: an agent tries again for ever.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is wrong; the text begins with its key.
    #[error("{0}")]
    Config(String),
    /// The journal can't be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A token can't be read or kept.
    #[error("the token in {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A check-in that is not repeated ([`Agent::run_once`]) failed.
    #[error("check-in: {0}")]
    CheckIn(String),
    /// The server doesn't take the agent in: the name is taken, or the enroll token is no good.
    #[error("agent \"{name}\" can't enroll: {reason}")]
    Enroll {
        /// The agent's name.
        name: String,
        /// The server's words.
        reason: String,
    },
}

/// An agent that is set up but not started.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    modules: Modules,
}

impl Agent {
    /// Checks the configuration. Touches neither disk nor network.
    pub fn new(config: AgentConfig) -> Result<Self, AgentError> {
        config.validate().map_err(AgentError::Config)?;
        let modules = Modules::new(&config);
        Ok(Self { config, modules })
    }

    /// Adds a module of one's own, or replaces the one of that name.
    #[must_use]
    pub fn with_module(mut self, name: &str, module: impl Module + 'static) -> Self {
        self.modules = self.modules.with(name, module);
        self
    }

    /// Works until `shutdown` completes. Then what runs is killed and reported as `interrupted`, and what waits stays
    /// in the journal for the next start.
    ///
    /// # Errors
    /// Only what people have to mend: a state folder that can't be used, a token or name that the server refuses.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Parts { config, runner, inbox, deps, credentials } = self.open().await?;
        let name = config.name.clone();

        // First the runner stops, so that the session can still tell what became of the runs; then the session.
        let (stop_runs, runs_stop) = watch::channel(false);
        let (stop_session, session_stop) = watch::channel(false);
        let mut runner = Box::pin(runner.run(inbox, runs_stop));
        let mut connection = Box::pin(Connection::new(config, deps, credentials).run(session_stop));
        let mut shutdown = std::pin::pin!(shutdown);
        let mut stopping = false;
        let mut running = true;
        loop {
            tokio::select! {
                () = &mut shutdown, if !stopping => {
                    stopping = true;
                    stop_runs.send_replace(true);
                }
                () = &mut runner, if running => {
                    running = false;
                    stop_session.send_replace(true);
                }
                ended = &mut connection => {
                    // Either told to, or the server refuses the agent; runs don't outlive it.
                    stop_runs.send_replace(true);
                    if running {
                        runner.await;
                    }
                    log::debug!(agent = name.as_str(); "the agent has stopped");
                    return ended;
                }
            }
        }
    }

    /// Checks in over plain HTTP: reports what an earlier run left, takes what is due, runs it, reports it, and returns
    /// how many results the server took once nothing more is due. For agents that are started by a timer.
    ///
    /// # Errors
    /// Also what the network does, since nothing is tried again; and when `shutdown` completes before the end. What was
    /// taken is in the journal by then, what ran is killed, and the next check-in reports it.
    pub async fn run_once(self, shutdown: impl Future<Output = ()>) -> Result<usize, AgentError> {
        let Parts { config, runner, inbox, deps, credentials } = self.open().await?;
        let (stop_runs, runs_stop) = watch::channel(false);
        let mut runner = Box::pin(runner.run(inbox, runs_stop));
        let stopped = tokio::select! {
            done = Box::pin(once::check_in(&config, &deps, credentials)) => return done,
            () = &mut runner => return Err(AgentError::CheckIn("the agent stopped".into())),
            () = shutdown => AgentError::CheckIn("stopped by a signal before it was done".into()),
        };
        stop_runs.send_replace(true);
        runner.await;
        Err(stopped)
    }

    /// Opens what is on disk and puts the parts together.
    async fn open(self) -> Result<Parts, AgentError> {
        let Self { config, modules } = self;
        let (dir, source) = (config.state_dir.clone(), (config.token.clone(), config.token_file.clone()));
        let (journal, recovered, credentials) = tokio::task::spawn_blocking(move || open(&dir, source.0, source.1))
            .await
            .unwrap_or(Err(AgentError::Journal(JournalError::ShuttingDown)))?;
        let (waiting, interrupted) = (recovered.waiting.len(), recovered.interrupted);
        log::debug!(agent = config.name.as_str(), waiting, interrupted; "the agent starts");

        let (outbox, clock) = (Arc::new(Outbox::default()), Arc::new(ServerClock::default()));
        let journal = SharedJournal::new(journal);
        let (inputs, inbox) = mpsc::channel(INPUTS);
        let runner = Runner::new(config.capacity, modules, journal.clone(), recovered, outbox.clone(), clock.clone());
        let deps = SessionDeps { capacity: config.capacity, journal, outbox, clock, inputs };
        Ok(Parts { config, runner, inbox, deps, credentials })
    }
}

/// An agent's parts, put together.
struct Parts {
    config: AgentConfig,
    runner: Runner,
    inbox: mpsc::Receiver<Input>,
    deps: SessionDeps,
    credentials: Credentials,
}

/// Waits until a part of the agent is told to stop. A teller that is gone means the same.
async fn told_to(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Opens what is on disk: the journal (which locks the folder) and the token.
fn open(
    dir: &std::path::Path,
    token: Option<Secret>,
    token_file: Option<PathBuf>,
) -> Result<(Journal, Recovered, Credentials), AgentError> {
    let (journal, recovered) = Journal::open(dir, Timestamp::of_this_machine())?;
    match Credentials::read(dir, token, token_file)? {
        Some(credentials) => Ok((journal, recovered, credentials)),
        None => Err(AgentError::Config("token: needed to enroll, as state_dir holds no token yet".into())),
    }
}
