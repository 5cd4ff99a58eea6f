//! Turns files of the spool into actions.
//!
//! Woken by the file system's notification *and* by a period, so that a lost notification costs `scan_interval` and
//! nothing else. Takes a bounded number of files at a time, stores their actions in one transaction, and only then moves
//! them to `done/`; tells the resolver. If the store is away, the files go back to `new/`: the pressure stays in the folder.
//! If the transaction fails, each file is tried alone. One that fails again and again while others are stored goes to
//! `failed/` with its error.
//!
//! Dies: what it had in hand lies in `cur/` and is taken back at the restart; a file that was stored but not moved is
//! stored again as the same action, since its id is derived from the file.

use super::isolation::one_by_one;
use super::messages::{Drain, Resolve};
use super::resolver::Resolver;
use super::spool::{Spool, Taken, TakenFile};
use crate::domain::action::NewAction;
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::store::{Accepted, Store, StoreResult};
use crate::supervision::Progress;
use actix::prelude::*;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A file fails for good when it has failed in so many rounds in which others were stored.
const GIVE_UP_AFTER: u32 = 8;
/// So many files are remembered that have failed in such a round.
const SUSPECTS: usize = 10_000;
/// How often `done/` and `failed/` are looked through for what is too old, and `cur/` for what was forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How many old files go at a time.
const PRUNE_AT_A_TIME: usize = 1_000;

/// What the loader needs to know.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// The folder.
    pub dir: PathBuf,
    /// The largest file, in bytes.
    pub max_body: u64,
    /// How often it looks without being told.
    pub scan_interval: Duration,
    /// How long files stay in `done/` and `failed/`.
    pub keep: Duration,
    /// Files taken per round, and stored in one transaction. Each is open until its round is over.
    pub files_per_round: usize,
}

/// See the module.
pub struct SpoolLoader {
    settings: SpoolSettings,
    store: Arc<dyn Store>,
    resolver: Addr<Resolver>,
    spool: Arc<Mutex<Spool>>,
    watcher: Option<RecommendedWatcher>,
    /// A notification is in the mailbox.
    notified: Arc<AtomicBool>,
    scanning: bool,
    /// Something came while it was scanning.
    again: bool,
    pruned: Option<Instant>,
    /// Files went back: not before this.
    resting: Option<Instant>,
    suspects: Suspects,
    progress: Progress,
    stopped: bool,
    draining: Option<oneshot::Sender<()>>,
}

impl SpoolLoader {
    /// Over the opened folder.
    pub fn new(
        settings: SpoolSettings,
        spool: Spool,
        store: Arc<dyn Store>,
        resolver: Addr<Resolver>,
        progress: Progress,
    ) -> Self {
        let spool = Arc::new(Mutex::new(spool));
        Self {
            settings,
            store,
            resolver,
            spool,
            watcher: None,
            notified: Arc::default(),
            scanning: false,
            again: false,
            pruned: None,
            resting: None,
            suspects: Suspects::new(),
            progress,
            stopped: false,
            draining: None,
        }
    }

    fn watch(&mut self, ctx: &mut Context<Self>) {
        let (loader, notified) = (ctx.address(), self.notified.clone());
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Looking into the folder is an event too: answering that one would never end.
            let looked = event.is_ok_and(|event| event.kind.is_access());
            // Ten thousand files make one message.
            if !looked && !notified.swap(true, Ordering::AcqRel) {
                loader.do_send(Scan);
            }
        })
        .and_then(|mut watcher| {
            let folder = self.settings.dir.join("new");
            watcher.watch(&folder, RecursiveMode::NonRecursive).map(|()| watcher)
        });
        match watcher {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => log::warn!(folder:? = self.settings.dir, error = error.to_string().as_str();
                "no file notification; the spool is looked at every scan_interval only"),
        }
    }

    fn scan(&mut self, ctx: &mut Context<Self>) {
        // The period comes back to it.
        if self.stopped || self.resting.is_some_and(|until| Instant::now() < until) {
            return;
        }
        if self.scanning {
            self.again = true;
            return;
        }
        crate::fault_point!("spool_loader");
        self.scanning = true;
        self.again = false;
        let prune = self.pruned.is_none_or(|last| last.elapsed() >= PRUNE_EVERY);
        if prune {
            self.pruned = Some(Instant::now());
        }
        let keep = prune.then_some(self.settings.keep);
        let (files, suspects) = (self.settings.files_per_round, std::mem::take(&mut self.suspects));
        let round = run_once(self.spool.clone(), self.store.clone(), files, keep, suspects);
        ctx.spawn(round.into_actor(self).map(|round, loader, ctx| {
            loader.scanning = false;
            loader.suspects = round.suspects;
            match &round.error {
                Some(error) => loader.progress.fails("spool_loader", error),
                None => loader.progress.works("spool_loader"),
            }
            // Giving files back is an event as well.
            loader.resting = round.must_rest.then(|| Instant::now() + loader.settings.scan_interval / 2);
            crate::fault_point!("spool_loader.stored");
            if round.stored {
                loader.resolver.try_send(Resolve).ok();
            }
            if let Some(drained) = loader.draining.take() {
                drained.send(()).ok();
            } else if (round.full || loader.again) && !round.must_rest {
                ctx.address().do_send(Scan);
            }
        }));
    }
}

/// In how many rounds a file could not be stored, and others could.
pub type Suspects = HashMap<OsString, u32>;

/// How one round went.
#[derive(Debug, Default)]
pub struct Round {
    /// Actions were stored.
    pub stored: bool,
    /// There may be more files.
    pub full: bool,
    /// Files went back, since the store is away or the disk is full.
    pub must_rest: bool,
    /// Why files went back.
    pub error: Option<String>,
    /// What is known now of files that fail.
    pub suspects: Suspects,
}

/// Takes files, stores their actions, and moves the files to where they belong.
pub async fn run_once(
    spool: Arc<Mutex<Spool>>,
    store: Arc<dyn Store>,
    files: usize,
    prune: Option<Duration>,
    suspects: Suspects,
) -> Round {
    let taken = on_disk(&spool, move |spool| {
        if let Some(keep) = prune {
            let removed = spool.prune(keep, PRUNE_AT_A_TIME)?;
            if removed > 0 {
                log::info!(files = removed; "old files removed from the spool");
            }
            // What a fall of this actor left behind while its work on the disk went on.
            let recovered = spool.recover()?;
            if recovered > 0 {
                log::warn!(files = recovered; "forgotten spool files are taken again");
            }
        }
        spool.take(files)
    })
    .await;
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            log::error!(error = error.to_string().as_str(); "the spool cannot be read");
            return Round { error: Some(error.to_string()), suspects, ..Round::default() };
        }
    };
    let mut round = Round { full: taken.len() >= files, suspects, ..Round::default() };
    let mut files = Vec::new();
    for one in taken {
        match one {
            Taken::File(file) => files.push(file),
            Taken::Failed { name, problem } => log::warn!(file:? = name, problem = problem.detail.as_str();
                "a spool entry is not an action"),
            Taken::Stuck { name, error } => {
                round.full = false;
                log::error!(file:? = name, error = error.to_string().as_str(); "a spool file cannot be taken now");
            }
        }
    }
    if files.is_empty() {
        return round;
    }
    let now = store.now();
    let (mut actions, mut sources, mut moves) = (Vec::new(), Vec::new(), Vec::new());
    for TakenFile { name, content, derived_id } in files {
        match NewAction::from_json(&content, derived_id, now) {
            Ok(mut action) => {
                action.author = Author::server("spool");
                actions.push(action);
                sources.push(name);
            }
            Err(problem) => moves.push((name, Err(problem))),
        }
    }
    let stored = store_all(&*store, actions).await;
    // What fails while others are stored may be at fault itself.
    let works = stored.iter().any(|stored| matches!(stored, Some(Ok(_))));
    let mut back = Vec::new();
    for (name, stored) in sources.into_iter().zip(stored) {
        match stored {
            Some(Ok(accepted)) => {
                round.suspects.remove(&name);
                moves.push((name, accepted.map(|()| round.stored = true)));
            }
            Some(Err(error)) if !error.is_transient() => {
                moves.push((name, Err(Problem::new(ProblemKind::InvalidDocument, error.to_string()))));
            }
            Some(Err(error)) => {
                if works && (round.suspects.len() < SUSPECTS || round.suspects.contains_key(&name)) {
                    *round.suspects.entry(name.clone()).or_default() += 1;
                }
                if round.suspects.get(&name).is_some_and(|rounds| *rounds >= GIVE_UP_AFTER) {
                    round.suspects.remove(&name);
                    moves.push((name, Err(Problem::new(ProblemKind::Internal, error.to_string()))));
                } else {
                    round.error = Some(error.to_string());
                    back.push(name);
                }
            }
            None => back.push(name),
        }
    }
    if !back.is_empty() {
        let error = round.error.clone().unwrap_or_default();
        log::warn!(files = back.len(), error = error.as_str(); "spool files wait for the store");
        round.must_rest = true;
        let back = on_disk(&spool, move |spool| back.iter().try_for_each(|name| spool.give_back(name))).await;
        if let Err(error) = back {
            log::error!(error = error.to_string().as_str(); "spool files stay in cur/ until the next start");
        }
    }
    let stuck = on_disk(&spool, move |spool| {
        let mut stuck = Vec::new();
        for (name, fate) in &moves {
            let moved = match fate {
                Ok(()) => spool.done(name),
                Err(problem) => {
                    log::warn!(file:? = name, problem = problem.detail.as_str(); "a spool file is not a valid action");
                    spool.fail(name, problem)
                }
            };
            if let Err(error) = moved {
                // It comes again: as the same action if it was stored, and with the same problem if it is none.
                let back = spool.give_back(name);
                stuck.push((name.clone(), back.err().unwrap_or(error)));
            }
        }
        Ok(stuck)
    })
    .await;
    match stuck {
        Ok(stuck) => {
            for (name, error) in stuck {
                log::error!(file:? = name, error = error.to_string().as_str(); "a spool file cannot be put away now");
                round.must_rest = true;
            }
        }
        Err(error) => log::error!(error = error.to_string().as_str(); "spool files stay in cur/ until the next start"),
    }
    round
}

/// Stores all actions in one transaction; if that fails, one by one, so that only the one at fault fails. `None` for what
/// wasn't tried, since the store seems to be away.
async fn store_all(store: &dyn Store, actions: Vec<NewAction>) -> Vec<Option<StoreResult<Result<(), Problem>>>> {
    let verdict = |accepted: Accepted, id: uuid::Uuid| match accepted {
        Accepted::Stored { .. } => Ok(()),
        // Files have no idempotency key.
        Accepted::Conflict | Accepted::KeyMismatch => {
            Err(Problem::new(ProblemKind::Conflict, format!("id: {id} is taken by an action with other content")))
        }
    };
    if actions.is_empty() {
        return Vec::new();
    }
    match store.action_insert(actions.clone()).await {
        Ok(accepted) => {
            let accepted = accepted.into_iter().zip(&actions);
            accepted.map(|(accepted, action)| Some(Ok(verdict(accepted, action.id)))).collect()
        }
        Err(error) if actions.len() == 1 => vec![Some(Err(error))],
        Err(_) => {
            one_by_one(&actions, async |action| {
                let accepted = store.action_insert(vec![action.clone()]).await?.pop();
                Ok(accepted.map_or(Ok(()), |accepted| verdict(accepted, action.id)))
            })
            .await
        }
    }
}

/// Runs what may block on a thread of its own.
async fn on_disk<T: Send + 'static>(
    spool: &Arc<Mutex<Spool>>,
    task: impl FnOnce(&mut Spool) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let spool = spool.clone();
    tokio::task::spawn_blocking(move || task(&mut spool.lock().unwrap_or_else(PoisonError::into_inner)))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl Actor for SpoolLoader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.scanning = true;
        self.watch(ctx);
        let spool = self.spool.clone();
        let recovered = async move { on_disk(&spool, Spool::recover).await };
        ctx.spawn(recovered.into_actor(self).map(|recovered, loader, ctx| {
            match recovered {
                Ok(0) => {}
                Ok(files) => log::info!(files; "spool files of an interrupted run are taken again"),
                Err(error) => log::error!(error = error.to_string().as_str(); "spool/cur cannot be recovered"),
            }
            loader.scanning = false;
            loader.scan(ctx);
        }));
        ctx.run_interval(self.settings.scan_interval, |loader, ctx| loader.scan(ctx));
    }
}

impl Supervised for SpoolLoader {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.watcher = None;
        self.notified.store(false, Ordering::Release);
        // What was in hand lies in the spool; nothing is left to be drained.
        self.draining.take().map(|drained| drained.send(()));
        self.scanning = false;
        self.again = false;
        self.pruned = None;
        self.resting = None;
        self.suspects.clear();
        match Spool::open(&self.settings.dir, self.settings.max_body) {
            // A fresh one: what the old one held is to be recovered.
            Ok(spool) => self.spool = Arc::new(Mutex::new(spool)),
            Err(error) => log::error!(error = error.to_string().as_str(); "the spool cannot be opened again"),
        }
    }
}

/// File system → spool loader: look.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Scan;

impl Handler<Scan> for SpoolLoader {
    type Result = ();

    fn handle(&mut self, _: Scan, ctx: &mut Self::Context) {
        self.notified.store(false, Ordering::Release);
        crate::fault_point!("spool_loader.notified");
        self.scan(ctx);
    }
}

impl Handler<Drain> for SpoolLoader {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.watcher = None;
        let (sender, drained) = oneshot::channel();
        self.stopped = true;
        if self.scanning {
            self.draining = Some(sender);
        } else {
            sender.send(()).ok();
        }
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
