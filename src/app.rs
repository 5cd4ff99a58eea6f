//! The composition root: puts the actors together, and takes them apart in order.
//!
//! ```text
//!  spool/new ─▶ SpoolLoader ─┐
//!  POST /v1/actions ─────────┴▶ Resolver ─▶ CommandStore ─▶ DelayScheduler ─▶ SenderRouter ─▶ senders ─▶ agents
//!                                  │              ▲ pages        ▲ ▲ due again                    │
//!                                  ▼ touched      │ committed    │ └──────────── Outcomes ◀───────┘ what happened
//!                             Housekeeper ────────┴──────────────┘ closes        ▲   │
//!                                  └─────────────────────────────────────────────┘   └▶ Housekeeper: touched
//! ```
//!
//! Actors are started sink first, so that everybody finds whom it sends to. They are drained source first: intake stops,
//! then each stage finishes what it has, the outcomes last; what isn't done by the deadline is still in the store.
//! The pipeline lives on one arbiter: a message to another thread costs a wake-up.

use crate::config::{Config, ConfigError};
use crate::domain::agent::{Role, STREAM, Secret, Token};
use crate::domain::batch::Limits;
use crate::http::{self, Api};
use crate::pipeline::action_book::ActionBook;
use crate::pipeline::batcher::Batcher;
use crate::pipeline::command_store::{CommandSink, CommandStore};
use crate::pipeline::delay_scheduler::{DelayScheduler, SchedulerParts};
use crate::pipeline::housekeeper::{Housekeeper, HousekeeperParts};
use crate::pipeline::messages::{Deliver, Drain};
use crate::pipeline::outcomes::{OutcomeSink, Outcomes, Upstream};
use crate::pipeline::presence::Presence;
use crate::pipeline::resolver::{Resolver, ResolverParts, pages_in_memory};
use crate::pipeline::sender_router::{Route, SenderRouter};
use crate::pipeline::spool_loader::{SpoolLoader, SpoolSettings};
use crate::senders::SenderContext;
use crate::senders::stream::StreamSender;
use crate::senders::stream::session::SessionParts;
use crate::senders::stream::sessions::{SessionSink, Sessions};
use crate::store::{self, Store, StoreError};
use crate::supervision::{Supervision, supervise};
use actix::prelude::*;
use actix_web::dev::ServerHandle;
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Messages that wait in an actor's mailbox. Senders that await replies have their own bounds; this one is for hints.
const MAILBOX: usize = 4_096;
/// Bytes of results that all sessions together have in memory.
const RESULTS_IN_MEMORY: usize = 256 * 1024 * 1024;

/// How long a start waits for another process to let go of the SQLite file.
const LOCK_WITHIN: Duration = Duration::from_secs(5);

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
    /// An actor fell so often that restarting doesn't help.
    #[error("the actor {0} fell too often; the server has stopped so that it can be started anew")]
    Exhausted(&'static str),
    /// The deadline came before everything was finished; what wasn't is in the store.
    #[error("shutdown_timeout passed before everything was finished; what was not is taken up at the next start")]
    Deadline,
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

    /// Starts the server.
    ///
    /// # Errors
    /// When the store, the spool or the address can't be used.
    pub async fn start(self) -> Result<Running, AppError> {
        let Self { config, senders } = self;
        config.validate()?;
        make_private_folder(&config.data_dir)?;
        let (store, lock) = open_store(&config).await?;
        store.node_start(&config.node_name()).await?;
        make_admin_token(&*store, &config.data_dir).await?;

        let supervision = Supervision::new(config.supervision.clone());
        let (book, presence, upstream) = (ActionBook::new(store.clone()), Presence::default(), Upstream::default());
        let batch = &config.store.batch;
        let limits = Limits { max_items: batch.max_items, max_wait: batch.max_wait.0, idle: batch.idle.0 };

        // Sink first.
        let sink = OutcomeSink { store: store.clone(), upstream: upstream.clone() };
        let outcomes = supervise("outcomes", Batcher::new(sink, limits), MAILBOX, &supervision);
        let sink = SessionSink { store: store.clone() };
        let sessions = supervise("sessions", Batcher::new(sink, limits), MAILBOX, &supervision);
        let context = SenderContext::new(store.clone(), outcomes.clone());
        let stream = StreamSender::new(context.clone(), presence.clone(), sessions.clone());
        let stream = supervise("stream_sender", stream, MAILBOX, &supervision);
        let mut routes = HashMap::new();
        if config.sender.enabled.iter().any(|name| name == STREAM) {
            let (deliver, cancelled) = (stream.clone().recipient(), Some(stream.clone().recipient()));
            routes.insert(STREAM.to_owned(), Route { deliver, cancelled });
        }
        for (transport, make) in senders {
            routes.insert(transport.to_owned(), make(context.clone(), &supervision));
        }
        let router = supervise("sender_router", SenderRouter::new(routes, outcomes.clone()), MAILBOX, &supervision);
        let parts = SchedulerParts {
            store: store.clone(),
            book: book.clone(),
            presence: presence.clone(),
            router,
            outcomes: outcomes.clone(),
            horizon: config.delay.horizon.0,
            capacity: config.delay.capacity,
        };
        let scheduler = supervise("delay_scheduler", DelayScheduler::new(parts), MAILBOX, &supervision);
        upstream.set_scheduler(scheduler.clone());
        let sink = CommandSink { store: store.clone(), scheduler: scheduler.clone() };
        let commands = supervise("command_store", Batcher::new(sink, limits), MAILBOX, &supervision);
        let parts = HousekeeperParts { store: store.clone(), book: book.clone(), outcomes: outcomes.clone() };
        let housekeeper = supervise("housekeeper", Housekeeper::new(parts), MAILBOX, &supervision);
        upstream.set_housekeeper(housekeeper.clone());
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
            sessions: SessionParts {
                store: store.clone(),
                book,
                context,
                sender: stream.clone(),
                scheduler: scheduler.clone(),
                budget: Arc::new(Semaphore::new(RESULTS_IN_MEMORY)),
                horizon: config.delay.horizon.0,
            },
            supervision: supervision.clone(),
            max_body: config.http.max_body.as_usize(),
        };
        let listen = config.http.listen;
        let (address, server) = http::serve(api, listen).map_err(io_error(format!("http.listen {listen}")))?;
        let http = server.handle();
        actix_rt::spawn(server);
        log::info!(address:% = address, store:% = config.store_url(), spool:? = config.spool_dir(); "the server is up");
        let stages = Stages { loader, resolver, commands, scheduler, stream, housekeeper, outcomes, sessions };
        Ok(Running { config, address, store, supervision, presence, stages, http, _lock: lock })
    }
}

/// The actors that are drained, source first.
struct Stages {
    loader: Addr<SpoolLoader>,
    resolver: Addr<Resolver>,
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

    /// Serves until a signal or a fault, then drains.
    ///
    /// # Errors
    /// When an actor fell too often, or draining took too long.
    pub async fn run(self) -> Result<(), AppError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(io_error("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("SIGINT"))?;
        let exhausted = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            actor = self.supervision.escalated() => Some(actor),
        };
        if let Some(actor) = exhausted {
            log::error!(actor; "an actor fell too often; the server drains and stops");
        } else {
            log::info!("the server drains and stops; a second signal stops it at once");
        }
        let drained = tokio::select! {
            drained = self.drain() => drained,
            _ = terminate.recv() => Err(AppError::Deadline),
            _ = interrupt.recv() => Err(AppError::Deadline),
        };
        match exhausted {
            Some(actor) => Err(AppError::Exhausted(actor)),
            None => drained,
        }
    }

    /// Stops intake and finishes what is under way, source first, within `shutdown_timeout`.
    ///
    /// # Errors
    /// When the time was over before; nothing is lost by that.
    pub async fn drain(self) -> Result<(), AppError> {
        let Self { config, supervision, stages, http, .. } = self;
        supervision.set_draining();
        let Stages { loader, resolver, commands, scheduler, stream, housekeeper, outcomes, sessions } = stages;
        let drain = async {
            // An actor that is gone has nothing left to drain.
            loader.send(Drain).await.ok();
            resolver.send(Drain).await.ok();
            commands.send(Drain).await.ok();
            scheduler.send(Drain).await.ok();
            stream.send(Drain).await.ok();
            housekeeper.send(Drain).await.ok();
            outcomes.send(Drain).await.ok();
            sessions.send(Drain).await.ok();
            http.stop(true).await;
        };
        let drained = tokio::time::timeout(config.shutdown_timeout.0, drain).await;
        if drained.is_err() {
            http.stop(false).await;
        }
        log::info!(complete = drained.is_ok(); "the server has stopped");
        drained.map_err(|_| AppError::Deadline)
    }
}

fn make_private_folder(folder: &Path) -> Result<(), AppError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(io_error(format!("data_dir {}", folder.display())))
}

/// Opens the store that the settings name; a SQLite file also gets locked, for it is for one process.
async fn open_store(config: &Config) -> Result<(Arc<dyn Store>, Option<File>), AppError> {
    let url = config.store_url();
    let lock = match store::sqlite_path(url.expose()) {
        Some(path) => Some(lock_beside(&path).await?),
        None => None,
    };
    Ok((store::open(url.expose(), config.store.pool_size).await?, lock))
}

async fn lock_beside(database: &Path) -> Result<File, AppError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        make_private_folder(folder)?;
    }
    let what = format!("the lock {}", path.display());
    let file =
        File::options().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(io_error(&what))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A process that was just killed may not be quite gone.
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WITHIN => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(AppError::InUse(database.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io_error(what)(error)),
        }
    }
}

/// A store without any admin token gets one, which is written to `admin.token` for its owner alone to read.
async fn make_admin_token(store: &dyn Store, data_dir: &Path) -> Result<(), AppError> {
    if store.token_any_admin().await? {
        return Ok(());
    }
    let secret = Secret::random();
    let path = data_dir.join("admin.token");
    let write = || -> io::Result<()> {
        // The file first: a token that nobody has would lock everybody out.
        let mut file = tempfile::Builder::new().prefix(".admin").tempfile_in(data_dir)?;
        writeln!(file, "{}", secret.reveal())?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(data_dir)?.sync_all()
    };
    write().map_err(io_error(path.display()))?;
    let token = Token {
        id: Uuid::now_v7(),
        role: Role::Admin,
        name: "the first admin".into(),
        agent_no: None,
        created_at: store.now(),
        expires_at: None,
        revoked_at: None,
    };
    store.token_insert(&token, secret.hash()).await?;
    log::info!(file:? = path; "an admin token was made");
    Ok(())
}
