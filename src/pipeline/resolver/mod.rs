//! Finds the agents of each action, page by page, in key order.
//!
//! A reconciler: it reads from the store which actions are to be resolved, and how far each is. A
//! few actions are resolved at a time, each with a few pages in flight to the command store, which
//! answers after the commit. These credits bound memory. A page that the store refuses
//! ([`Inserted::StalePage`]) ends the work on that action, and the next round reads how far it is.
//!
//! Crash: unfinished actions are unresolved in the store, and the restart continues at their last
//! commit.

use super::command_store::PageWriter;
use super::messages::NewPage;
use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::target::Target;
use crate::error_chain::ErrorChain;
use crate::runtime::isolation::{MISSES, one_by_one};
use crate::runtime::{Interrupted, OnDrain, Pace, Reconcile, RoundFailed};
use crate::store::{CommandPage, Inserted, Resolution, StoreError, StoreResult};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

#[cfg(test)]
mod tests;

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of actions resolved at a time.
const ACTIONS_AT_A_TIME: usize = 64;
/// Number of actions whose agents are counted in one call.
const COUNTED_AT_A_TIME: usize = 8;
/// Candidates fetched per round, oldest first. Larger than [`ACTIONS_AT_A_TIME`], because the list
/// includes active actions and unreadable ones.
const CANDIDATES: usize = 1_000;
/// Maximum number of pages of one action in flight to the store.
const PAGES_AT_A_TIME: usize = 3;
/// Maximum number of pages of all actions in flight to the store.
const PAGES_IN_MEMORY: usize = 16;

/// What the resolving tasks share.
#[derive(Clone)]
pub struct Resolving {
    node: Arc<Node>,
    /// Receives the pages.
    pages: PageWriter,
    /// One permit per page in memory.
    credits: Arc<Semaphore>,
    /// Set when the process drains.
    stopping: Arc<AtomicBool>,
}

impl Resolving {
    /// With no pages in memory.
    pub fn new(node: Arc<Node>, pages: PageWriter) -> Self {
        Self { node, pages, credits: Arc::new(Semaphore::new(PAGES_IN_MEMORY)), stopping: Arc::default() }
    }
}

/// The result of a resolving task: the action's key, and whether the action is resolved.
type Resolved = (i64, StoreResult<bool>);

/// See the module.
pub struct Resolver {
    work: Resolving,
    /// Keys of the actions being resolved.
    active: HashSet<i64>,
    /// One task per active action.
    tasks: JoinSet<Resolved>,
}

impl Resolver {
    /// With no active actions.
    pub fn new(node: Arc<Node>, pages: PageWriter) -> Self {
        Self { work: Resolving::new(node, pages), active: HashSet::new(), tasks: JoinSet::new() }
    }

    /// Handles a task that has ended. True if its action is resolved, which makes room for another
    /// one. After a refused page or a store failure, the action waits for the next poll.
    fn ended(&mut self, ended: Result<Resolved, JoinError>) -> bool {
        let (no, resolved) = match ended {
            Ok(ended) => ended,
            // A panic in a task is a crash of the actor.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return false,
        };
        self.active.remove(&no);
        resolved.unwrap_or_else(|error| {
            log::warn!(action = self.work.node.actions.shown(no), error:% = error.chain(); "an action waits to be resolved");
            false
        })
    }
}

impl Reconcile for Resolver {
    const NAME: &'static str = "resolver";
    const ON_DRAIN: OnDrain = OnDrain::Finish;

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        while let Some(ended) = self.tasks.try_join_next() {
            self.ended(ended);
        }
        if self.active.len() >= ACTIONS_AT_A_TIME {
            return Ok(Pace::Wait);
        }
        let (begun, waits) = begin(&self.work, &self.active).await?;
        for begun in begun {
            let no = begun.action.no;
            let work = self.work.clone();
            self.active.insert(no);
            self.tasks.spawn_local(async move { (no, resolve(&work, begun).await) });
        }
        waits.map_or(Ok(Pace::Wait), |error| Err(error.into()))
    }

    async fn in_flight(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if self.ended(ended) {
                return;
            }
        }
        if !self.work.stopping.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    fn stop(&mut self) {
        self.work.stopping.store(true, Ordering::Relaxed);
    }
}

/// An action to resolve, and how far it is.
struct Begun {
    action: Arc<Action>,
    target: Target,
    resolution: Resolution,
}

/// Finds the actions to resolve besides the `active` ones, and how far each is, in one transaction
/// for several actions. An action that fails doesn't stop the others. The last error that may be
/// transient is returned beside the result.
async fn begin(work: &Resolving, active: &HashSet<i64>) -> StoreResult<(Vec<Begun>, Option<StoreError>)> {
    let store = &work.node.store;
    let horizon = store.now().plus(work.node.config.delay.horizon.0);
    let list = store.action_list_unresolved(horizon, CANDIDATES).await?;
    let mut actions = Vec::new();
    let (mut misses, mut waits) = (0, None);
    for no in list.into_iter().filter(|no| !active.contains(no)) {
        if active.len() + actions.len() >= ACTIONS_AT_A_TIME || misses >= MISSES {
            break;
        }
        misses = match readable(&work.node, no).await {
            Ok(action) => {
                actions.extend(action);
                0
            }
            Err(error) if error.is_transient() => {
                waits = Some(error);
                misses + 1
            }
            Err(error) => {
                log::error!(action = work.node.actions.shown(no), error:% = error.chain(); "an action is passed over");
                0
            }
        };
    }
    let mut begun = Vec::with_capacity(actions.len());
    // Counting the agents of a large fleet takes a while. In small groups, finished counts are
    // kept.
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
                    log::warn!(action:% = action.id, error:% = error.chain(); "an action waits to be resolved");
                    waits = Some(error);
                }
            }
        }
    }
    Ok((begun, waits))
}

/// An action to resolve, with its target. `None` if it is gone, has expired, or can't be read by
/// this version.
async fn readable(node: &Node, no: i64) -> StoreResult<Option<(Arc<Action>, Target)>> {
    let store = &node.store;
    let Some(action) = node.actions.get(no).await? else { return Ok(None) };
    if store.now() >= action.expires_at {
        store.action_expire(no).await?;
        log::info!(action:% = action.id; "an action expired before it was resolved");
        return Ok(None);
    }
    // The target was parsed when the action was accepted.
    match Target::parse(&action.target) {
        Ok(target) => Ok(Some((action, target))),
        Err(error) => {
            log::error!(action:% = action.id, error:% = error.chain();
                "an action's target cannot be read by this version; it stays unresolved until it expires");
            Ok(None)
        }
    }
}

/// Resolves one action as far as possible. True if it is resolved now.
async fn resolve(work: &Resolving, begun: Begun) -> StoreResult<bool> {
    let Begun { action, target, resolution } = begun;
    let (no, page_size) = (action.no, work.node.config.resolver.page);
    log::debug!(action:% = action.id, expected = resolution.expected, through = resolution.through; "resolving an action");
    crate::fault_point!("resolver.page");
    let (mut after, mut position) = (resolution.through, resolution.written);
    let mut under_way = FuturesOrdered::new();
    let mut last = false;
    loop {
        while !last && under_way.len() < PAGES_AT_A_TIME {
            let credit = match work.credits.clone().try_acquire_owned() {
                Ok(credit) => credit,
                // Pages in flight return their credits when they are answered.
                Err(_) if !under_way.is_empty() => break,
                Err(_) => match work.credits.clone().acquire_owned().await {
                    Ok(credit) => credit,
                    Err(_) => return Ok(false),
                },
            };
            log::trace!(action = no, after; "reading a page of agents");
            let agents = work.node.store.agent_match(&target, after, page_size).await?;
            log::trace!(action = no, after, agents = agents.len(); "page of agents read");
            last = agents.len() < page_size;
            let page = new_page(&action, agents, after, position, resolution.expected, last);
            after = page.page.through;
            position += i64::try_from(page.commands.len()).unwrap_or(0);
            let answer = work.pages.put(vec![page]);
            under_way.push_back(async move {
                let answer = answer.await;
                drop(credit);
                answer
            });
            if action.is_cancelled() {
                return Ok(true);
            }
            // Finish the pages in flight. The next start resolves the rest.
            last |= work.stopping.load(Ordering::Relaxed);
        }
        let Some(answer) = under_way.next().await else { break };
        match answer.map(|mut answers| answers.pop()) {
            Ok(Some(Ok(Inserted::Written))) => {}
            // Cancelled, or the command store crashed with one of our pages: read again how far the
            // action is.
            Ok(Some(Ok(Inserted::StalePage)) | None) | Err(Interrupted) => return Ok(false),
            Ok(Some(Err(error))) => {
                log::error!(action:% = action.id, error:% = error.chain(); "a page of commands was refused");
                return Ok(false);
            }
        }
    }
    if work.stopping.load(Ordering::Relaxed) {
        return Ok(false);
    }
    log::debug!(action:% = action.id, commands = position; "an action is resolved");
    work.node.signals.action_resolved(no);
    Ok(true)
}

/// Lays out one page of commands. `position` of the `expected` commands come before it.
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
