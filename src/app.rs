//! The composition root: puts the actors together, and takes them apart in order.
//!
//! ```text
//!  spool/new ─▶ SpoolLoader ─┐
//!  POST /v1/actions ─────────┴▶ Resolver ─▶ CommandStore ─▶ DelayScheduler ─▶ SenderRouter ─▶ senders ─▶ agents
//!                                  │              ▲ pages        ▲ ▲ due again                    │
//!                                  ▼ touched      │ committed    │ └──────────── Outcomes ◀───────┘ what happened
//!  enrolled, labels, facts ─▶ Membership: due again ┘
//!                             Housekeeper ────────┴──────────────┘ closes        ▲   │
//!                                  └─────────────────────────────────────────────┘   └▶ Housekeeper: touched
//! ```
//!
//! Actors are started sink first, so that everybody finds whom it sends to. They are drained source first: intake stops,
//! then each stage finishes what it has, the outcomes last; what isn't done by the deadline is still in the store.
//! The pipeline lives on one arbiter: a message to another thread costs a wake-up.

mod open_files;
mod running;
mod service;
mod startup;

pub use running::Running;
pub use startup::reset_admin_token;

use crate::config::{Config, ConfigError};
use crate::domain::agent::STREAM;
use crate::domain::batch::Limits;
use crate::http::{self, Api, Connections, Listening};
use crate::metrics::Metrics;
use crate::pipeline::action_book::ActionBook;
use crate::pipeline::batcher::Batcher;
use crate::pipeline::command_store::CommandSink;
use crate::pipeline::delay_scheduler::{DelayScheduler, SchedulerParts};
use crate::pipeline::hints::{HintParts, Hints};
use crate::pipeline::housekeeper::{Housekeeper, HousekeeperParts};
use crate::pipeline::membership::{Membership, MembershipParts};
use crate::pipeline::messages::Deliver;
use crate::pipeline::notifier::Notifier;
use crate::pipeline::outcomes::{OutcomeSink, Upstream};
use crate::pipeline::presence::Presence;
use crate::pipeline::resolver::{Resolver, ResolverParts, pages_in_memory};
use crate::pipeline::sender_router::{Route, SenderRouter};
use crate::pipeline::spool::Spool;
use crate::pipeline::spool_loader::{SpoolLoader, SpoolSettings};
use crate::pipeline::waiters::Waiters;
use crate::senders::SenderContext;
use crate::senders::stream::StreamSender;
use crate::senders::stream::connection::SessionParts;
use crate::senders::stream::sessions::{Opening, SessionSink};
use crate::store::{self, StoreError};
use crate::supervision::{Supervision, supervise};
use actix::prelude::*;
use open_files::OpenFiles;
use running::Stages;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Messages that wait in an actor's mailbox. Senders that await replies have their own bounds; this one is for hints.
const MAILBOX: usize = 4_096;
/// Bytes of results that all sessions together have in memory.
const RESULTS_IN_MEMORY: usize = 256 * 1024 * 1024;

/// Commands are read ahead at least so far: a read takes time, and comes every few seconds.
const LEAST_HORIZON: Duration = Duration::from_secs(5);

/// Why a server could not be started, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address can't be listened on, or its certificate can't be used.
    #[error("{0}")]
    Listen(String),
    /// The process may open too few files.
    #[error(
        "this process may open {limit} files, and a server needs at least {needed}: \
         raise the limit (ulimit -n, or LimitNOFILE= in the unit)"
    )]
    OpenFiles {
        /// How many it may open.
        limit: u64,
        /// How many it needs.
        needed: usize,
    },
    /// A file, a folder or an address can't be used.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Another process uses the store.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// Another node has taken over from this one.
    #[error("another node has taken over from this one, which was silent for too long; it is to be started anew")]
    TakenOver,
    /// An actor fell so often that restarting doesn't help.
    #[error("the actor {0} fell too often; the server has stopped so that it can be started anew")]
    Exhausted(&'static str),
    /// The deadline came before everything was finished; what wasn't is in the store.
    #[error("shutdown_timeout passed before everything was finished; what was not is taken up at the next start")]
    Deadline,
    /// A second signal came before everything was finished; what wasn't is in the store.
    #[error("a second signal came before everything was finished; what was not is taken up at the next start")]
    Interrupted,
}

impl AppError {
    /// Whether trying again later can help.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

fn io_error(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> AppError {
    move |source| AppError::Io { what: what.to_string(), source }
}

type SenderFactory = Box<dyn FnOnce(SenderContext, &Supervision) -> Route>;

/// Checks what can be checked of the settings without touching the store: that the address can be listened on, that the
/// certificate and the password can be read, and that the limit of open files is enough.
///
/// # Errors
/// The first that fails, as a start with these settings would say it.
pub fn check(config: &Config) -> Result<(), AppError> {
    config.validate()?;
    OpenFiles::plan(config)?;
    Listening::open(&config.http).map_err(AppError::Listen)?;
    Ok(store::check(config)?)
}

/// A server that is being put together. See [`Odoshi::builder`].
pub struct Builder {
    config: Config,
    senders: Vec<(&'static str, SenderFactory)>,
}

/// The server.
pub struct Odoshi;

impl Odoshi {
    /// A server with these settings. Add senders of your own with [`Builder::sender`], then [`run`](Builder::run) it.
    pub fn builder(config: Config) -> Builder {
        Builder { config, senders: Vec::new() }
    }
}

impl Builder {
    /// Adds a sender: commands of agents with this transport go to the actor that `make` makes.
    #[must_use]
    pub fn sender<A>(mut self, transport: &'static str, make: impl FnOnce(SenderContext) -> A + 'static) -> Self
    where
        A: Actor<Context = Context<A>> + Supervised + Handler<Deliver> + Unpin,
    {
        let factory: SenderFactory = Box::new(move |context, supervision| {
            let sender = supervise(transport, make(context), MAILBOX, supervision);
            Route { deliver: sender.recipient(), cancelled: None }
        });
        self.senders.push((transport, factory));
        self
    }

    /// Starts the server and serves until SIGTERM, SIGINT, or an actor that can't be kept alive; then drains it.
    ///
    /// # Errors
    /// When it can't start, when an actor fell too often, or when draining took too long.
    pub async fn run(self) -> Result<(), AppError> {
        let running = self.start().await?;
        running.run().await
    }

    /// Starts the server. A store that is away is waited for while it serves already, see [`Running::ready`].
    ///
    /// # Errors
    /// When the store, the spool or the address can't be used.
    pub async fn start(self) -> Result<Running, AppError> {
        let Self { config, senders } = self;
        config.validate()?;
        // What can fail without touching the store comes first: nothing has to be taken back then.
        let open_files = OpenFiles::plan(&config)?;
        startup::make_private_folder(&config.data_dir)?;
        // Before the address: a process that is about to end frees both, and the lock is waited for.
        let lock = startup::lock_store(&config).await?;
        let listening = Listening::open(&config.http).map_err(AppError::Listen)?;
        let spool = Spool::open(config.spool_dir(), config.http.max_body.as_usize() as u64)
            .map_err(io_error(format!("the spool {}", config.spool_dir().display())))?;
        let store = store::open(&config).await?;
        let serves_stream = config.sender.enabled.iter().any(|name| name == STREAM);
        let own = senders.iter().map(|(transport, _)| *transport);
        let transports: Vec<String> =
            serves_stream.then_some(STREAM).into_iter().chain(own).map(str::to_owned).collect();
        let preparing = match startup::prepare(&*store, &config, &transports).await {
            Err(error) if error.may_pass() => {
                log::warn!(error = error.to_string().as_str(); "the server waits for its store");
                Some(actix_rt::spawn(startup::prepare_patiently(store.clone(), config.clone(), transports)))
            }
            prepared => {
                prepared?;
                None
            }
        };

        let supervision = Supervision::new(config.supervision.clone());
        let (book, presence, upstream) = (ActionBook::new(store.clone()), Presence::default(), Upstream::default());
        let batch = &config.store.batch;
        let limits = Limits { max_items: batch.max_items, max_wait: batch.max_wait.0, idle: batch.idle.0 };

        // Sink first.
        let (notifier, waiters, metrics) = (Notifier::default(), Waiters::default(), Metrics::default());
        let sink = OutcomeSink {
            store: store.clone(),
            upstream: upstream.clone(),
            notifier: notifier.clone(),
            waiters: waiters.clone(),
            metrics: metrics.clone(),
        };
        let outcomes = supervise("outcomes", Batcher::new(sink, limits), MAILBOX, &supervision);
        let (of_sessions, opening) = (metrics.clone(), Opening::default());
        let sink = SessionSink { store: store.clone(), upstream: upstream.clone(), metrics: of_sessions, opening };
        let sessions = supervise("sessions", Batcher::new(sink, limits), MAILBOX, &supervision);
        let context = SenderContext::new(store.clone(), outcomes.clone());
        let stream = StreamSender::new(context.clone(), presence.clone(), sessions.clone());
        let stream = supervise("stream_sender", stream, MAILBOX, &supervision);
        let mut routes = HashMap::new();
        if serves_stream {
            let (deliver, cancelled) = (stream.clone().recipient(), Some(stream.clone().recipient()));
            routes.insert(STREAM.to_owned(), Route { deliver, cancelled });
        }
        for (transport, make) in senders {
            routes.insert(transport.to_owned(), make(context.clone(), &supervision));
        }
        let router = supervise(
            "sender_router",
            SenderRouter::new(store.clone(), routes, outcomes.clone(), upstream.clone()),
            MAILBOX,
            &supervision,
        );
        let parts = SchedulerParts {
            store: store.clone(),
            book: book.clone(),
            presence: presence.clone(),
            router,
            outcomes: outcomes.clone(),
            horizon: config.delay.horizon.0.max(LEAST_HORIZON),
            capacity: config.delay.capacity,
            metrics: metrics.clone(),
        };
        let scheduler = supervise("delay_scheduler", DelayScheduler::new(parts), MAILBOX, &supervision);
        upstream.set_scheduler(scheduler.clone());
        let parts = HintParts {
            store: store.clone(),
            book: book.clone(),
            scheduler: scheduler.clone(),
            stream: stream.clone(),
            notifier: notifier.clone(),
            waiters: waiters.clone(),
            metrics: metrics.clone(),
        };
        let hints = supervise("hints", Hints::new(parts), MAILBOX, &supervision);
        upstream.set_hints(hints.clone());
        let sink = CommandSink {
            store: store.clone(),
            scheduler: scheduler.clone(),
            hints: hints.clone(),
            notifier: notifier.clone(),
            metrics: metrics.clone(),
        };
        let commands = supervise("command_store", Batcher::new(sink, limits), MAILBOX, &supervision);
        let parts = HousekeeperParts {
            store: store.clone(),
            book: book.clone(),
            outcomes: outcomes.clone(),
            upstream: upstream.clone(),
            keep: config.retention.actions.0,
            keep_audit: config.retention.audit.0,
            notifier: notifier.clone(),
            progress: metrics.progress().clone(),
        };
        let housekeeper = supervise("housekeeper", Housekeeper::new(parts), MAILBOX, &supervision);
        upstream.set_housekeeper(housekeeper.clone());
        let parts = MembershipParts {
            store: store.clone(),
            book: book.clone(),
            scheduler: scheduler.clone(),
            hints: hints.clone(),
            notifier: notifier.clone(),
            waiters: waiters.clone(),
            metrics: metrics.clone(),
        };
        let membership = supervise("membership", Membership::new(parts), MAILBOX, &supervision);
        let parts = ResolverParts {
            store: store.clone(),
            book: book.clone(),
            commands: commands.clone(),
            housekeeper: housekeeper.clone(),
            page: config.resolver.page,
            horizon: config.delay.horizon.0,
            credits: pages_in_memory(),
            stopping: Arc::default(),
            progress: metrics.progress().clone(),
        };
        let resolver = supervise("resolver", Resolver::new(parts), MAILBOX, &supervision);
        let settings = SpoolSettings {
            dir: config.spool_dir(),
            max_body: config.http.max_body.as_usize() as u64,
            scan_interval: config.spool.scan_interval.0,
            keep: config.retention.spool_done.0,
            files_per_round: open_files.spool,
        };
        let progress = metrics.progress().clone();
        let loader = SpoolLoader::new(settings, spool, store.clone(), resolver.clone(), progress);
        let loader = supervise("spool_loader", loader, MAILBOX, &supervision);
        let api = Api {
            store: store.clone(),
            book: book.clone(),
            resolver: resolver.clone(),
            scheduler: scheduler.clone(),
            housekeeper: housekeeper.clone(),
            hints: hints.clone(),
            notifier,
            waiters,
            connections: Connections::new(open_files.connections, metrics.clone()),
            metrics,
            presence: presence.clone(),
            public_metrics: config.http.public_metrics,
            limits: http::Limits::new(config.http.token_rate, config.http.token_streams),
            sessions: SessionParts {
                store: store.clone(),
                book,
                context,
                sender: stream.clone(),
                scheduler: scheduler.clone(),
                membership: membership.clone(),
                hints: hints.clone(),
                budget: Arc::new(Semaphore::new(RESULTS_IN_MEMORY)),
                horizon: config.delay.horizon.0,
            },
            serves_stream,
            unserved: Arc::default(),
            supervision: supervision.clone(),
            max_body: config.http.max_body.as_usize(),
        };
        let address = listening.address();
        let server = http::serve(api, listening, open_files.connections, open_files.refusals)
            .map_err(io_error(format!("http.listen {address}")))?;
        let http = server.handle();
        actix_rt::spawn(server);
        if open_files.connections < config.http.max_connections {
            log::info!(connections = open_files.connections; "the limit of open files bounds the connections");
        }
        log::info!(address:% = address, store:% = config.store_url(), spool:? = config.spool_dir(); "the server is up");
        let stages = Stages {
            loader,
            resolver,
            membership,
            hints,
            commands,
            scheduler,
            stream,
            housekeeper,
            outcomes,
            sessions,
        };
        Ok(Running { config, address, store, preparing, supervision, presence, stages, http, _lock: lock })
    }
}
