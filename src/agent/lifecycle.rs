//! An agent from start to stop: connects the parts here, and stops them in order.

#[cfg(feature = "amqp")]
use super::broker::AmqpBroker;
#[cfg(feature = "nats")]
use super::broker::NatsBroker;
#[cfg(any(feature = "nats", feature = "amqp"))]
use super::broker::{Broker, BrokerConnection};
use super::config::{AgentConfig, Uplink};
use super::connection::Connection;
use super::enroll::Credentials;
use super::error::AgentError;
use super::journal::{Journal, JournalError, Recovered, SharedJournal};
use super::metadata::Collectors;
use super::modules::{Module, Modules};
use super::once;
use super::outbox::Outbox;
use super::runner::{Input, Runner};
use super::server_clock::ServerClock;
use super::session::SessionDeps;
use crate::domain::time::Timestamp;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// Frames that may wait for the runner. Each is already a batch.
const INPUTS: usize = 2;

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

    /// Adds a module, or replaces the one with that name.
    #[must_use]
    pub fn with_module(mut self, name: &str, module: impl Module + 'static) -> Self {
        self.modules = self.modules.with(name, module);
        self
    }

    /// Works until `shutdown` completes. Then the runs are killed and reported as `interrupted`; waiting commands stay in
    /// the journal for the next start.
    ///
    /// # Errors
    /// Only errors that a person has to fix: an unusable state folder, a token or a name that the
    /// server refuses.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Parts { config, runner, inbox, deps, way } = self.open().await?;
        let name = config.name.clone();
        let _collectors = Collectors::start(&config, &deps.reports, &deps.clock);

        // The runner stops first, so that the session can still report how the runs ended; then the session stops.
        let (stop_runs, runs_stop) = watch::channel(false);
        let (stop_session, session_stop) = watch::channel(false);
        let mut runner = Box::pin(runner.run(inbox, runs_stop));
        let mut connection = way.run(config, deps, session_stop);
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
                    // The agent was stopped, or the server refuses it. Runs don't outlive the
                    // connection.
                    stop_runs.send_replace(true);
                    if running {
                        runner.await;
                    }
                    log::info!(agent = name.as_str(); "the agent has stopped");
                    return ended;
                }
            }
        }
    }

    /// Checks in over plain HTTP: reports results of earlier runs, fetches the commands that are due, runs them and
    /// reports their results, until no command is due. Returns how many results the server has stored. For agents that a
    /// timer starts.
    ///
    /// # Errors
    /// As [`run`](Self::run), and network errors, because nothing is retried, and the completion of
    /// `shutdown` before the end. In the last case the runs are killed. The journal has all
    /// commands that were fetched, and the next check-in reports them.
    pub async fn run_once(self, shutdown: impl Future<Output = ()>) -> Result<usize, AgentError> {
        if self.config.uplink() != Uplink::Http {
            return Err(AgentError::Config("server: a single check-in needs http:// or https://".into()));
        }
        let Parts { config, runner, inbox, deps, way } = self.open().await?;
        let Way::Http(credentials) = way else {
            return Err(AgentError::Config("server: a single check-in needs http:// or https://".into()));
        };
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

    /// Opens the files of the agent and connects its parts.
    async fn open(self) -> Result<Parts, AgentError> {
        let Self { config, modules } = self;
        let settings = config.clone();
        let (journal, recovered, way) = tokio::task::spawn_blocking(move || open(&settings))
            .await
            .unwrap_or(Err(AgentError::Journal(JournalError::ShuttingDown)))?;
        let (waiting, interrupted) = (recovered.waiting.len(), recovered.interrupted);
        log::info!(agent = config.name.as_str(), waiting, interrupted; "the agent starts");

        let (outbox, clock) = (Arc::new(Outbox::default()), Arc::new(ServerClock::default()));
        let journal = SharedJournal::new(journal);
        let (inputs, inbox) = mpsc::channel(INPUTS);
        let runner = Runner::new(config.capacity, modules, journal.clone(), recovered, outbox.clone(), clock.clone());
        let reports = Arc::default();
        let deps = SessionDeps {
            capacity: config.capacity,
            instance: Uuid::new_v4(),
            journal,
            outbox,
            clock,
            inputs,
            reports,
        };
        Ok(Parts { config, runner, inbox, deps, way })
    }
}

/// The parts of an agent, connected with each other.
struct Parts {
    config: AgentConfig,
    runner: Runner,
    inbox: mpsc::Receiver<Input>,
    deps: SessionDeps,
    way: Way,
}

/// The way to the server, with what opens it.
enum Way {
    Http(Credentials),
    #[cfg(feature = "nats")]
    Nats(NatsBroker),
    #[cfg(feature = "amqp")]
    Amqp(AmqpBroker),
}

impl Way {
    /// Keeps a connection until `stop` is true.
    fn run(
        self,
        config: AgentConfig,
        deps: SessionDeps,
        stop: watch::Receiver<bool>,
    ) -> BoxFuture<'static, Result<(), AgentError>> {
        match self {
            Self::Http(credentials) => Box::pin(Connection::new(config, deps, credentials).run(stop)),
            #[cfg(feature = "nats")]
            Self::Nats(broker) => over(broker, &config, deps, stop),
            #[cfg(feature = "amqp")]
            Self::Amqp(broker) => over(broker, &config, deps, stop),
        }
    }
}

/// Keeps a connection to a broker until `stop` is true.
#[cfg(any(feature = "nats", feature = "amqp"))]
fn over<B: Broker + 'static>(
    broker: B,
    config: &AgentConfig,
    deps: SessionDeps,
    stop: watch::Receiver<bool>,
) -> BoxFuture<'static, Result<(), AgentError>> {
    if config.labels.is_some() {
        log::warn!(agent = config.name.as_str(); "labels of an agent at a broker are those that it was added with");
    }
    let connection = BrokerConnection::new(config, deps, broker);
    Box::pin(async move {
        connection.run(stop).await;
        Ok(())
    })
}

/// Opens the journal, which locks the folder, and reads what opens the way to the server. Blocks.
fn open(config: &AgentConfig) -> Result<(Journal, Recovered, Way), AgentError> {
    let (journal, recovered) = Journal::open(&config.state_dir, Timestamp::of_this_machine())?;
    let way = match config.uplink() {
        #[cfg(feature = "nats")]
        Uplink::Nats => Way::Nats(NatsBroker::new(config).map_err(AgentError::Config)?),
        #[cfg(feature = "amqp")]
        Uplink::Amqp => Way::Amqp(AmqpBroker::new(config).map_err(AgentError::Config)?),
        _ => {
            let credentials = Credentials::read(&config.state_dir, config.token.clone(), config.token_file.clone())?;
            let missing = || AgentError::Config("token: needed to enroll, as state_dir holds no token yet".into());
            Way::Http(credentials.ok_or_else(missing)?)
        }
    };
    Ok((journal, recovered, way))
}
