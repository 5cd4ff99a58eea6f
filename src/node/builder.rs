//! Builds a server from settings and senders.

use super::error::{AppError, io_error};
use super::extension::{ActorContext, Additions};
use super::open_files::OpenFiles;
use super::running::Running;
use super::startup;
use super::wiring::Wiring;
use crate::config::{Config, ConfigError};
use crate::domain::agent::STREAM;
use crate::error_chain::ErrorChain;
use crate::http::{self, Listening};
use crate::pipeline::spool::Spool;
use crate::senders::{Cancelled, Deliver, Drain, HookClient, HookSet, HookTarget, SenderContext};
use crate::signals::RecordedOutcome;
use crate::store::{self, Store};
use actix::prelude::*;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Checks the settings as far as possible without the files that they name, the address and the store.
///
/// # Errors
/// The first failure, with the same error as a start with these settings.
pub fn check_settings(config: &Config) -> Result<(), AppError> {
    config.validate()?;
    super::transports::check(config)?;
    check_hook_urls(config)
}

/// Checks the settings as far as possible without touching the store: whether the address can be
/// listened on, the certificate, the passwords and hooks' secrets can be read, the transports are
/// known, and the limit of open files is high enough.
///
/// # Errors
/// The first failure, with the same error as a start with these settings.
pub fn check(config: &Config) -> Result<(), AppError> {
    check_settings(config)?;
    super::transports::open(config, &[])?;
    hook_set(config, None)?;
    OpenFiles::plan(config)?;
    Listening::open(&config.http).map_err(AppError::Listen)?;
    Ok(store::check(config)?)
}

/// The server.
pub struct Odoshi;

impl Odoshi {
    /// A server with these settings. Add senders of your own with [`Builder::sender`], then [`run`](Builder::run) it.
    pub fn builder(config: Config) -> Builder {
        Builder { config, additions: Additions::default(), fault: None, hook_client: None }
    }
}

/// A server that is being built. See [`Odoshi::builder`].
pub struct Builder {
    config: Config,
    additions: Additions,
    /// Settings of a sender that can't be read.
    fault: Option<ConfigError>,
    hook_client: Option<Arc<dyn HookClient>>,
}

impl Builder {
    /// Adds a sender: commands of agents with this transport go to the actor that `make` returns.
    /// It is supervised, receives cancels, and is drained like Odoshi's own senders. It has a thread
    /// of its own: if it blocks, its own commands wait. See [`senders`](crate::senders) for its duties.
    #[must_use]
    pub fn sender<A>(mut self, transport: &'static str, make: impl FnOnce(SenderContext) -> A + Send + 'static) -> Self
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin,
        A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    {
        self.additions.add_sender(transport, make);
        self
    }

    /// The same for a sender with settings of its own: `[sender.NAME]` of the configuration file,
    /// read as `S`. A wrong key or value is an error of [`start`](Self::start) that names the key.
    #[must_use]
    pub fn sender_with_settings<A, S>(
        mut self,
        transport: &'static str,
        make: impl FnOnce(SenderContext, S) -> A + Send + 'static,
    ) -> Self
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin,
        A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
        S: DeserializeOwned + Send + 'static,
    {
        match self.config.sender.custom.read(transport) {
            Ok(settings) => self.sender(transport, |context| make(context, settings)),
            Err(error) => {
                self.fault.get_or_insert(error);
                self
            }
        }
    }

    /// Adds an actor of any kind: a source of actions, or a bridge to another system. It is
    /// supervised, shown at `/readyz`, and drained before everything else. It has a thread of its own.
    #[must_use]
    pub fn actor<A>(mut self, name: &'static str, make: impl FnOnce(ActorContext) -> A + Send + 'static) -> Self
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin + Handler<Drain>,
    {
        self.additions.add_actor(name, make);
        self
    }

    /// Calls `listen` for results that were recorded at this node, in batches, after the commit, on a
    /// thread of its own. Results may be missed in a crash, and when `listen` is too slow for their
    /// number; a hook is at least once.
    #[must_use]
    pub fn on_outcome(mut self, listen: impl FnMut(&[RecordedOutcome]) + Unpin + Send + 'static) -> Self {
        self.additions.add_listener(listen);
        self
    }

    /// Sends events to hooks by this client.
    #[must_use]
    pub fn hook_client(mut self, client: impl HookClient) -> Self {
        self.hook_client = Some(Arc::new(client));
        self
    }

    /// Starts the server and serves until SIGTERM, SIGINT, or an actor over its restart budget.
    /// Then drains it.
    ///
    /// # Errors
    /// If it can't start, an actor crashed too often, or draining took too long.
    pub async fn run(self) -> Result<(), AppError> {
        let running = self.start().await?;
        running.run().await
    }

    /// Starts the server. While the store is away, it serves already and waits for the store: see
    /// [`Running::ready`].
    ///
    /// # Errors
    /// If the store, the spool or the address can't be used.
    pub async fn start(self) -> Result<Running, AppError> {
        let Self { config, additions, fault, hook_client } = self;
        if let Some(fault) = fault {
            return Err(fault.into());
        }
        config.validate()?;
        let hooks = hook_set(&config, hook_client)?;
        // Steps that can fail without touching the store come first, so that nothing has to be
        // undone.
        let own = super::transports::open(&config, &additions.transports())?;
        let open_files = OpenFiles::plan(&config)?;
        startup::make_private_folder(&config.data_dir)?;
        // The lock before the address: a process that is about to end releases both, and only the
        // lock is waited for.
        let lock = startup::lock_store(&config).await?;
        let listening = Listening::open(&config.http).map_err(AppError::Listen)?;
        let spool = Spool::open(config.spool_dir(), config.http.max_body.as_usize() as u64)
            .map_err(io_error(format!("the spool {}", config.spool_dir().display())))?;
        let store = store::open(&config).await?;
        let mut extensions = additions.register()?;
        extensions.senders.splice(0..0, own);
        let serves_stream = config.sender.enabled.iter().any(|name| name == STREAM);
        let own = extensions.senders.iter().map(|sender| sender.transport);
        let transports: Vec<String> =
            serves_stream.then_some(STREAM).into_iter().chain(own).map(str::to_owned).collect();
        let preparing = prepare(&store, &config, transports).await?;

        let wiring = Wiring::new(store.clone(), config.clone(), serves_stream, extensions);
        let wired = wiring.start(spool, open_files.spool, hooks);
        let address = listening.address();
        let api = http::Api::new(wired.sessions, wired.supervision.clone(), serves_stream, open_files.connections);
        let server = http::serve(api, listening, open_files.connections, open_files.refusals)
            .map_err(io_error(format!("http.listen {address}")))?;
        let http = server.handle();
        actix_rt::spawn(server);
        if open_files.connections < config.http.max_connections {
            log::info!(connections = open_files.connections; "the limit of open files bounds the connections");
        }
        log::info!(address:% = address, store:% = config.store_url(), spool:% = config.spool_dir().display(); "the server is up");
        let (node, supervision, stages) = (wired.node, wired.supervision, wired.stages);
        Ok(Running { node, address, preparing, supervision, stages, http, _lock: lock })
    }
}

/// The hooks in the settings; `None` if there are none.
fn hook_set(config: &Config, client: Option<Arc<dyn HookClient>>) -> Result<Option<HookSet>, AppError> {
    let targets: Vec<Arc<HookTarget>> = HookTarget::all(config)?.into_iter().map(Arc::new).collect();
    match client {
        _ if targets.is_empty() => Ok(None),
        Some(client) => Ok(Some(HookSet { targets, client })),
        None => {
            check_hook_urls(config)?;
            Ok(Some(HookSet { targets, client: own_hook_client(config)? }))
        }
    }
}

#[cfg(feature = "webhook")]
fn own_hook_client(config: &Config) -> Result<Arc<dyn HookClient>, AppError> {
    use crate::senders::webhook::{WebhookHooks, client};
    Ok(Arc::new(WebhookHooks::new(client(&config.sender.webhook).map_err(AppError::Sender)?)))
}

#[cfg(not(feature = "webhook"))]
fn own_hook_client(_: &Config) -> Result<Arc<dyn HookClient>, AppError> {
    Err(AppError::NoHookClient)
}

/// Whether Odoshi's own client may call the hooks, whatever their names resolve to.
#[cfg(feature = "webhook")]
fn check_hook_urls(config: &Config) -> Result<(), AppError> {
    use crate::config::Fault;
    use crate::senders::webhook::check_url;
    let refused = config.hook.iter().enumerate().filter_map(|(index, hook)| {
        let error = check_url(&config.sender.webhook, hook.url.as_ref()?.expose()).err()?;
        Some(Fault { key: format!("hook[{index}].url"), origin: None, message: format!("is never called: {error}") })
    });
    let faults: Vec<Fault> = refused.collect();
    if faults.is_empty() { Ok(()) } else { Err(ConfigError { faults }.into()) }
}

#[cfg(not(feature = "webhook"))]
fn check_hook_urls(config: &Config) -> Result<(), AppError> {
    if config.hook.is_empty() { Ok(()) } else { Err(AppError::NoHookClient) }
}

/// Prepares the store. If it is away, the returned task waits for it.
async fn prepare(
    store: &Arc<dyn Store>,
    config: &Config,
    transports: Vec<String>,
) -> Result<Option<JoinHandle<Result<(), AppError>>>, AppError> {
    match startup::prepare(&**store, config, &transports).await {
        Ok(()) => Ok(None),
        Err(error) if error.may_pass() => {
            log::warn!(error:% = error.chain(); "the server waits for its store");
            Ok(Some(actix_rt::spawn(startup::prepare_patiently(store.clone(), config.clone(), transports))))
        }
        Err(error) => Err(error),
    }
}
