//! Finds the agents of each action, page by page, in the order of their keys.
//!
//! Woken by [`Resolve`] and by a period; reads from the store which actions are to be resolved, and how far each is. A few
//! actions are resolved at a time, each with a few pages on their way to the command store, which answers after the
//! commit: these credits bound what is in memory. A page that the store refuses ([`Inserted::Moved`]) ends the round for
//! that action; the next one reads where it is.
//!
//! Dies: the actions in hand are unresolved in the store, and the restart takes them up where their last commit was.

use super::action_book::ActionBook;
use super::batcher::Put;
use super::command_store::{CommandSink, CommandStore};
use super::housekeeper::Housekeeper;
use super::isolation::{MISSES, one_by_one};
use super::messages::{Drain, NewPage, Resolve, Touched};
use crate::domain::action::Action;
use crate::domain::target::Target;
use crate::store::{CommandPage, Inserted, Resolution, Store, StoreError};
use crate::supervision::Progress;
use actix::prelude::*;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// How often it looks without being told.
const PERIOD: Duration = Duration::from_secs(1);
/// Actions resolved at a time.
const ACTIONS_AT_A_TIME: usize = 64;
/// Of how many actions the agents are counted in one call.
const COUNTED_AT_A_TIME: usize = 8;
/// Actions looked at, oldest first, to find those: more, since those in hand and any that can't be read are among them.
const LOOK_AT: usize = 1_000;
/// Pages of one action on their way to the store.
const PAGES_AT_A_TIME: usize = 3;
/// Pages of all actions on their way to the store.
const PAGES_IN_MEMORY: usize = 16;

/// What the resolver needs.
#[derive(Clone)]
pub struct ResolverParts {
    /// Where agents are found.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub book: ActionBook,
    /// Where pages go.
    pub commands: Addr<CommandStore>,
    /// Who ends actions without agents at once.
    pub housekeeper: Addr<Housekeeper>,
    /// Agents per page.
    pub page: usize,
    /// How long before `valid_from` an action is resolved.
    pub horizon: Duration,
    /// Pages that may be in memory, see [`pages_in_memory`].
    pub credits: Arc<Semaphore>,
    /// Set on the way out.
    pub stopping: Arc<AtomicBool>,
    /// Where it says whether it gets anything done.
    pub progress: Progress,
}

/// The credits of a resolver.
pub fn pages_in_memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(PAGES_IN_MEMORY))
}

/// See the module.
pub struct Resolver {
    parts: ResolverParts,
    /// Keys of the actions in hand.
    active: HashSet<i64>,
    /// A read of the list of actions is under way.
    looking: bool,
    /// Something came meanwhile.
    again: bool,
    stopped: bool,
    draining: Option<oneshot::Sender<()>>,
}

impl Resolver {
    /// With nothing in hand.
    pub fn new(parts: ResolverParts) -> Self {
        Self { parts, active: HashSet::new(), looking: false, again: false, stopped: false, draining: None }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.stopped || self.active.len() >= ACTIONS_AT_A_TIME {
            return;
        }
        if self.looking {
            self.again = true;
            return;
        }
        crate::fault_point!("resolver");
        self.looking = true;
        self.again = false;
        let parts = self.parts.clone();
        let active = self.active.clone();
        let begin = async move { begin(&parts, &active).await };
        ctx.spawn(begin.into_actor(self).map(|begun, resolver, ctx| {
            resolver.looking = false;
            match begun {
                Ok(begun) if !resolver.stopped => begun.into_iter().for_each(|begun| resolver.take(begun, ctx)),
                Ok(_) => {}
                Err(error) => {
                    resolver.parts.progress.fails("resolver", &error.to_string());
                    log::warn!(error = error.to_string().as_str(); "actions wait to be resolved");
                }
            }
            if resolver.again {
                resolver.look(ctx);
            }
        }));
    }

    fn take(&mut self, begun: Begun, ctx: &mut Context<Self>) {
        let no = begun.action.no;
        self.active.insert(no);
        let parts = self.parts.clone();
        let resolved = async move { run_once(&parts, begun).await };
        ctx.spawn(resolved.into_actor(self).map(move |resolved, resolver, ctx| {
            resolver.active.remove(&no);
            match resolved {
                // A turned-away page or a store that is away: the period tries again, with nothing lost.
                Ok(true) => resolver.look(ctx),
                Ok(false) => {}
                Err(error) => {
                    log::warn!(action = no, error = error.to_string().as_str(); "an action waits to be resolved");
                }
            }
            resolver.finish_drain();
        }));
    }

    fn finish_drain(&mut self) {
        if self.active.is_empty()
            && let Some(drained) = self.draining.take()
        {
            drained.send(()).ok();
        }
    }
}

/// An action that is to be resolved, and how far it is.
pub struct Begun {
    action: Arc<Action>,
    target: Target,
    resolution: Resolution,
}

/// Finds what is to be resolved besides the `active` ones, and how far each is, in one transaction for all. An action that
/// fails stops no other.
pub async fn begin(parts: &ResolverParts, active: &HashSet<i64>) -> Result<Vec<Begun>, StoreError> {
    let store = &parts.store;
    let horizon = store.now().plus(parts.horizon);
    let list = store.action_list_unresolved(horizon, LOOK_AT).await?;
    let mut actions = Vec::new();
    let (mut misses, mut waits) = (0, None);
    for no in list.into_iter().filter(|no| !active.contains(no)) {
        if active.len() + actions.len() >= ACTIONS_AT_A_TIME || misses >= MISSES {
            break;
        }
        misses = match readable(parts, no).await {
            Ok(action) => {
                actions.extend(action);
                0
            }
            Err(error) if error.is_transient() => {
                waits = Some(error);
                misses + 1
            }
            Err(error) => {
                log::error!(action = no, error = error.to_string().as_str(); "an action is passed over");
                0
            }
        };
    }
    let mut begun = Vec::with_capacity(actions.len());
    // Counting the agents of a large fleet takes a while: what has been counted is kept.
    for some in actions.chunks(COUNTED_AT_A_TIME) {
        let ask = |some: &[(Arc<Action>, Target)]| {
            let asked = some.iter().map(|(action, target)| (action.no, target.clone())).collect();
            store.action_resolution(asked)
        };
        let resolutions = match ask(some).await {
            Ok(resolutions) => resolutions.into_iter().map(|resolution| Some(Ok(vec![resolution]))).collect(),
            Err(error) if some.len() <= 1 => vec![Some(Err(error))],
            Err(_) => one_by_one(some, async |one| ask(std::slice::from_ref(one)).await).await,
        };
        for ((action, target), resolution) in some.iter().zip(resolutions) {
            match resolution.transpose() {
                Ok(resolutions) => begun.extend(
                    resolutions.into_iter().flatten().filter(|found| !found.done).map(|resolution| Begun {
                        action: action.clone(),
                        target: target.clone(),
                        resolution,
                    }),
                ),
                Err(error) => {
                    log::warn!(action:% = action.id, error = error.to_string().as_str(); "an action waits to be resolved");
                    waits = Some(error);
                }
            }
        }
    }
    match waits {
        None => parts.progress.works("resolver"),
        Some(error) if begun.is_empty() => return Err(error),
        Some(error) => parts.progress.fails("resolver", &error.to_string()),
    }
    Ok(begun)
}

/// An action that is to be resolved, with its target; none if it is gone, has expired or means nothing to this version.
async fn readable(parts: &ResolverParts, no: i64) -> Result<Option<(Arc<Action>, Target)>, StoreError> {
    let store = &parts.store;
    let Some(action) = parts.book.get(no).await? else { return Ok(None) };
    if store.now() >= action.expires_at {
        store.action_expire(no).await?;
        log::info!(action:% = action.id; "an action expired before it was resolved");
        return Ok(None);
    }
    // It was parsed when it was accepted.
    match Target::parse(&action.target) {
        Ok(target) => Ok(Some((action, target))),
        Err(error) => {
            log::error!(action:% = action.id, error = error.to_string().as_str();
                "an action's target cannot be read by this version; it stays unresolved until it expires");
            Ok(None)
        }
    }
}

/// Resolves one action as far as it goes; true when it is resolved now.
pub async fn run_once(parts: &ResolverParts, begun: Begun) -> Result<bool, StoreError> {
    let Begun { action, target, resolution } = begun;
    let no = action.no;
    log::debug!(action:% = action.id, expected = resolution.expected, through = resolution.through; "resolving an action");
    crate::fault_point!("resolver.page");
    let (mut after, mut position) = (resolution.through, resolution.written);
    let mut under_way = FuturesOrdered::new();
    let mut last = false;
    loop {
        while !last && under_way.len() < PAGES_AT_A_TIME {
            let credit = match parts.credits.clone().try_acquire_owned() {
                Ok(credit) => credit,
                // Those under way give theirs back when they are answered.
                Err(_) if !under_way.is_empty() => break,
                Err(_) => match parts.credits.clone().acquire_owned().await {
                    Ok(credit) => credit,
                    Err(_) => return Ok(false),
                },
            };
            log::trace!(action = no, after; "reading a page of agents");
            let agents = parts.store.agent_match(&target, after, parts.page).await?;
            log::trace!(action = no, after, agents = agents.len(); "page of agents read");
            last = agents.len() < parts.page;
            let page = new_page(&action, agents, after, position, resolution.expected, last);
            after = page.page.through;
            position += i64::try_from(page.commands.len()).unwrap_or(0);
            let answer = parts.commands.send(Put::<CommandSink>(vec![page]));
            under_way.push_back(async move {
                let answer = answer.await;
                drop(credit);
                answer
            });
            if action.is_cancelled() {
                return Ok(true);
            }
            // What is under way is finished; the rest is for the next start.
            last |= parts.stopping.load(Ordering::Relaxed);
        }
        let Some(answer) = under_way.next().await else { break };
        match answer.ok().flatten().and_then(|mut answers| answers.pop()) {
            Some(Ok(Inserted::Written)) => {}
            // Cancelled, or the command store fell with a page of ours: read where the action is.
            Some(Ok(Inserted::Moved)) | None => return Ok(false),
            Some(Err(error)) => {
                log::error!(action:% = action.id, error = error.to_string().as_str(); "a page of commands was refused");
                return Ok(false);
            }
        }
    }
    if parts.stopping.load(Ordering::Relaxed) {
        return Ok(false);
    }
    log::debug!(action:% = action.id, commands = position; "an action is resolved");
    parts.housekeeper.try_send(Touched(vec![no])).ok();
    Ok(true)
}

/// Lays out one page of commands: `position` commands of `expected` come before it.
fn new_page(
    action: &Arc<Action>,
    agents: Vec<(i64, Arc<str>)>,
    after: i64,
    position: i64,
    expected: i64,
    last: bool,
) -> NewPage {
    let spread = !action.spread.is_zero();
    let commands: Vec<_> = agents
        .into_iter()
        .zip(position..)
        .map(|((agent, transport), position)| (agent, transport, action.due_at(position, expected)))
        .collect();
    let through = commands.last().map_or(after, |(agent, ..)| *agent);
    let rows = commands.iter().map(|(agent, _, due)| (*agent, spread.then_some(*due))).collect();
    let page = CommandPage { action_no: action.no, after, through, commands: rows, last };
    NewPage { action: action.clone(), page, commands }
}

impl Actor for Resolver {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look(ctx);
        ctx.run_interval(PERIOD, |resolver, ctx| resolver.look(ctx));
    }
}

impl Supervised for Resolver {
    fn restarting(&mut self, _: &mut Self::Context) {
        // What was in hand is in the store; nothing is left to be drained.
        self.draining.take().map(|drained| drained.send(()));
        self.parts.credits = pages_in_memory();
        *self = Self { stopped: self.stopped, ..Self::new(self.parts.clone()) };
    }
}

impl Handler<Resolve> for Resolver {
    type Result = ();

    fn handle(&mut self, _: Resolve, ctx: &mut Self::Context) {
        self.look(ctx);
    }
}

impl Handler<Drain> for Resolver {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.stopped = true;
        self.parts.stopping.store(true, Ordering::Relaxed);
        let (sender, drained) = oneshot::channel();
        self.draining = Some(sender);
        self.finish_drain();
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
