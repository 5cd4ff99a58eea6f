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

mod service;
mod startup;

use crate::config::{Config, ConfigError};
use crate::domain::agent::STREAM;
use crate::domain::batch::Limits;
use crate::http::{self, Api};
use crate::metrics::Metrics;
use crate::pipeline::action_book::ActionBook;
use crate::pipeline::batcher::Batcher;
use crate::pipeline::command_store::{CommandSink, CommandStore};
use crate::pipeline::delay_scheduler::{DelayScheduler, SchedulerParts};
use crate::pipeline::hints::{HintParts, Hints};
use crate::pipeline::housekeeper::{Housekeeper, HousekeeperParts};
use crate::pipeline::membership::{Membership, MembershipParts};
use crate::pipeline::messages::{Deliver, Drain};
use crate::pipeline::notifier::Notifier;
use crate::pipeline::outcomes::{OutcomeSink, Outcomes, Upstream};
use crate::pipeline::presence::Presence;
use crate::pipeline::resolver::{Resolver, ResolverParts, pages_in_memory};
use crate::pipeline::sender_router::{Route, SenderRouter};
use crate::pipeline::spool_loader::{SpoolLoader, SpoolSettings};
use crate::pipeline::waiters::Waiters;
use crate::senders::SenderContext;
use crate::senders::stream::StreamSender;
use crate::senders::stream::connection::SessionParts;
use crate::senders::stream::sessions::{SessionSink, Sessions};
use crate::store::{Store, StoreError};
use crate::supervision::{Supervision, supervise};
use actix::prelude::*;
use actix_web::dev::ServerHandle;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Messages that wait in an actor's mailbox. Senders that await replies have their own bounds; this one is for hints.
const MAILBOX: usize = 4_096;
/// Bytes of results that all sessions together have in memory.
const RESULTS_IN_MEMORY: usize = 256 * 1024 * 1024;

/// Commands are read ahead at least so far: a read takes time, and comes every few seconds.
const LEAST_HORIZON: Duration = Duration::from_secs(5);

/// How long a node that was taken over may take to send its agents away.
const FENCED_WITHIN: Duration = Duration::from_secs(2);
/// How long the store may take to be told goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// Why a server could not be started, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
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
        startup::make_private_folder(&config.data_dir)?;
        let (store, lock) = startup::open_store(&config).await?;
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
        let sink = SessionSink { store: store.clone(), upstream: upstream.clone(), metrics: metrics.clone() };
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
            SenderRouter::new(routes, outcomes.clone(), upstream.clone()),
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
        };
        let resolver = supervise("resolver", Resolver::new(parts), MAILBOX, &supervision);
        let settings = SpoolSettings {
            dir: config.spool_dir(),
            max_body: config.http.max_body.as_usize() as u64,
            scan_interval: config.spool.scan_interval.0,
            keep: config.retention.spool_done.0,
        };
        let loader = SpoolLoader::new(settings, store.clone(), resolver.clone())
            .map_err(io_error(format!("the spool {}", config.spool_dir().display())))?;
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
        let listen = config.http.listen;
        let (address, server) = http::serve(api, &config.http).map_err(io_error(format!("http.listen {listen}")))?;
        let http = server.handle();
        actix_rt::spawn(server);
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

/// The actors that are drained, source first.
struct Stages {
    loader: Addr<SpoolLoader>,
    resolver: Addr<Resolver>,
    membership: Addr<Membership>,
    hints: Addr<Hints>,
    commands: Addr<CommandStore>,
    scheduler: Addr<DelayScheduler>,
    stream: Addr<StreamSender>,
    housekeeper: Addr<Housekeeper>,
    outcomes: Addr<Outcomes>,
    sessions: Addr<Sessions>,
}

/// A server that serves.
pub struct Running {
    config: Config,
    address: SocketAddr,
    store: Arc<dyn Store>,
    /// The store is away, and waited for.
    preparing: Option<JoinHandle<Result<(), AppError>>>,
    supervision: Supervision,
    presence: Presence,
    stages: Stages,
    http: ServerHandle,
    _lock: Option<File>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it stores in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Who is connected.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Whom to tell of actions that were put into the store directly.
    pub fn resolver(&self) -> &Addr<Resolver> {
        &self.stages.resolver
    }

    /// How its actors are.
    pub fn supervision(&self) -> &Supervision {
        &self.supervision
    }

    /// Waits until the store is there.
    ///
    /// # Errors
    /// When it turns out that it can't be used.
    pub async fn ready(&mut self) -> Result<(), AppError> {
        let Some(preparing) = &mut self.preparing else { return Ok(()) };
        let prepared =
            preparing.await.unwrap_or_else(|error| Err(AppError::Store(StoreError::Unusable(error.to_string()))));
        self.preparing = None;
        prepared
    }

    /// Serves until a signal or a fault, then drains.
    ///
    /// # Errors
    /// When the store can't be used, another node took over, an actor fell too often, or draining took too long.
    pub async fn run(mut self) -> Result<(), AppError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(io_error("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("SIGINT"))?;
        let (store, supervision) = (self.store.clone(), self.supervision.clone());
        let alive = service::keep_alive();
        let serving = async {
            match self.ready().await {
                Ok(()) => {
                    service::ready();
                    std::future::pending().await
                }
                Err(error) => error,
            }
        };
        let fault = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            actor = supervision.escalated() => Some(AppError::Exhausted(actor)),
            () = store.node_lost() => Some(AppError::TakenOver),
            error = serving => Some(error),
        };
        match &fault {
            Some(fault) => log::error!(error = fault.to_string().as_str(); "the server drains and stops"),
            None => log::info!("the server drains and stops; a second signal stops it at once"),
        }
        service::stopping();
        // Whose place is taken can finish nothing: its agents are to be elsewhere, soon.
        let is_fenced = matches!(fault, Some(AppError::TakenOver));
        let drained = tokio::select! {
            drained = self.drain_within(if is_fenced { FENCED_WITHIN } else { Duration::MAX }) => drained,
            _ = terminate.recv() => Err(AppError::Interrupted),
            _ = interrupt.recv() => Err(AppError::Interrupted),
        };
        if let Some(alive) = alive {
            alive.abort();
        }
        fault.map_or(drained, Err)
    }

    /// Stops intake and finishes what is under way, source first, within `shutdown_timeout`.
    ///
    /// # Errors
    /// When the time was over before; nothing is lost by that.
    pub async fn drain(self) -> Result<(), AppError> {
        self.drain_within(Duration::MAX).await
    }

    async fn drain_within(self, limit: Duration) -> Result<(), AppError> {
        let Self { config, store, preparing, supervision, stages, http, .. } = self;
        supervision.set_draining();
        if let Some(preparing) = preparing {
            preparing.abort();
        }
        let Stages {
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
        } = stages;
        let drain = async {
            // An actor that is gone has nothing left to drain.
            if limit < Duration::MAX {
                stream.send(Drain).await.ok();
            }
            loader.send(Drain).await.ok();
            resolver.send(Drain).await.ok();
            membership.send(Drain).await.ok();
            commands.send(Drain).await.ok();
            hints.send(Drain).await.ok();
            scheduler.send(Drain).await.ok();
            stream.send(Drain).await.ok();
            housekeeper.send(Drain).await.ok();
            outcomes.send(Drain).await.ok();
            sessions.send(Drain).await.ok();
            http.stop(true).await;
        };
        let drained = tokio::time::timeout(config.shutdown_timeout.0.min(limit), drain).await;
        if drained.is_err() {
            http.stop(false).await;
        }
        match tokio::time::timeout(GOODBYE_WITHIN, store.node_stop()).await {
            Ok(Ok(())) => {}
            // The others find out by themselves.
            _ => log::info!("the store could not be told that this node stops"),
        }
        log::info!(complete = drained.is_ok(); "the server has stopped");
        drained.map_err(|_| AppError::Deadline)
    }
}
