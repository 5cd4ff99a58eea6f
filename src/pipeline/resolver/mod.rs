//! Finds the agents of each action, page by page, in key order.
//!
//! A reconciler: it reads from the store which actions are to be resolved. A few actions are resolved at a time, each by
//! a task with a few pages in flight to the command store, which answers after the commit. These credits bound memory. A
//! page that the store refuses ([`Inserted::StalePage`]) ends the work on that action, and the next round reads how far
//! it is.
//!
//! Each statement searches a part of the fleet ([`search`]), and actions take turns with them: a target that takes long
//! holds up no other. An action that fails is tried again after a pause of its own, and named in `/readyz`.
//!
//! Crash: unfinished actions are unresolved in the store, and the restart continues at their last
//! commit.

use super::command_store::PageWriter;
use super::messages::NewPage;
use crate::context::Node;
use crate::domain::action::Action;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::runtime::isolation::MISSES;
use crate::runtime::{Backoffs, Interrupted, ItemRejected, OnDrain, Pace, Reconcile, RoundFailed};
use crate::store::{CommandPage, Inserted, Resolution, StoreError, StoreResult, Unresolved};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use search::{Agents, Search};
use shared::Resolving;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinSet};

mod search;
mod shared;
#[cfg(test)]
mod tests;

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of actions resolved at a time.
const ACTIONS_AT_A_TIME: usize = 64;
/// Candidates per read, oldest first. The list includes active actions and those that pause.
const CANDIDATES: usize = 1_000;
/// Maximum number of pages of one action in flight to the store.
const PAGES_AT_A_TIME: usize = 3;

/// Why an action can't be resolved now.
#[derive(Debug, thiserror::Error)]
enum ResolveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Rejected(#[from] ItemRejected),
}

/// How far a task came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    /// The action is resolved.
    End,
    /// It has had its turn, and goes on in its next one.
    Turn,
    /// It is read again how far it is at the next poll: a page didn't join on, or it has ended otherwise.
    Nowhere,
}

/// The result of a resolving task: the action's key, and how far it came.
type Resolved = (i64, Result<Reached, ResolveError>);

/// See the module.
pub struct Resolver {
    work: Resolving,
    /// Keys of the actions being resolved.
    active: HashSet<i64>,
    /// One task per active action.
    tasks: JoinSet<Resolved>,
    /// Actions that failed.
    backoffs: Backoffs,
    /// When each unresolved action had its last turn: the number of the round.
    turns: HashMap<i64, u64>,
    round: u64,
}

impl Resolver {
    /// With no active actions.
    pub fn new(node: Arc<Node>, pages: PageWriter) -> Self {
        let work = Resolving::new(node, pages);
        let (active, tasks, backoffs) = (HashSet::new(), JoinSet::new(), Backoffs::default());
        Self { work, active, tasks, backoffs, turns: HashMap::new(), round: 0 }
    }

    /// Handles a task that has ended. True if there is room for another action now. After a refused page, the action waits
    /// for the next poll.
    fn ended(&mut self, ended: Result<Resolved, JoinError>) -> bool {
        let (no, resolved) = match ended {
            Ok(ended) => ended,
            // A panic in a task is a crash of the actor.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return false,
        };
        self.active.remove(&no);
        match resolved {
            Ok(reached) => {
                self.backoffs.done(no);
                if reached == Reached::End {
                    self.turns.remove(&no);
                    self.work.kept().remove(&no);
                }
                reached != Reached::Nowhere
            }
            Err(error) => {
                let (action, error) = (self.work.node.actions.shown(no), error.chain().to_string());
                let pause = self.backoffs.failed(no, &error, Instant::now());
                log::warn!(action, error, pause_ms = pause.as_millis(); "an action waits to be resolved");
                false
            }
        }
    }

    /// Begins with these actions, as far as there is room. Those are passed over that are active, or failed a moment ago.
    /// Returns false after several failures in a row: the store is away.
    async fn begin(&mut self, actions: &[Unresolved]) -> bool {
        let mut misses = 0;
        for unresolved in actions {
            let no = &unresolved.no;
            let is_due = !self.active.contains(no) && self.backoffs.is_due(*no, Instant::now());
            if !is_due || self.active.len() >= ACTIONS_AT_A_TIME {
                continue;
            }
            match readable(&self.work.node, *no).await {
                Ok(Readable::Action(action, target)) => {
                    let (no, work, fresh) = (*no, self.work.clone(), unresolved.fresh());
                    self.active.insert(no);
                    self.turns.insert(no, self.round);
                    self.tasks.spawn_local(async move { (no, resolve(&work, action, target, fresh).await) });
                    misses = 0;
                }
                Ok(Readable::Gone) => self.backoffs.done(*no),
                Ok(Readable::No(error)) => _ = self.backoffs.failed(*no, &error, Instant::now()),
                Err(error) => {
                    let error = error.chain().to_string();
                    log::warn!(action = self.work.node.actions.shown(*no), error; "an action waits to be resolved");
                    self.backoffs.failed(*no, &error, Instant::now());
                    misses += 1;
                    if misses >= MISSES {
                        return false;
                    }
                }
            }
        }
        true
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
        let horizon = self.work.node.store.now().plus(self.work.node.config.delay.horizon.0);
        let (mut after, mut unresolved) = ((Timestamp(i64::MIN), 0), HashSet::new());
        let now = Instant::now();
        self.round += 1;
        if self.active.len() >= ACTIONS_AT_A_TIME {
            // Others may have come since there was room.
            let limit = ACTIONS_AT_A_TIME + 1 + self.backoffs.len();
            let next = self.work.node.store.action_list_unresolved(horizon, after, limit).await?;
            unresolved.extend(next.into_iter().map(|action| action.no));
        }
        while self.active.len() < ACTIONS_AT_A_TIME {
            let mut list = self.work.node.store.action_list_unresolved(horizon, after, CANDIDATES).await?;
            after = list.last().map_or(after, Unresolved::place);
            let is_last = list.len() < CANDIDATES;
            unresolved.extend(list.iter().map(|action| action.no));
            // First those that had no turn yet, and then those whose turn was earliest.
            list.sort_by_key(|action| self.turns.get(&action.no).copied().unwrap_or_default());
            if !self.begin(&list).await {
                break;
            }
            if is_last {
                // Of what was cancelled or has expired, nothing fails any more.
                let is_left = |no: &i64| unresolved.contains(no);
                self.backoffs.retain(|no| is_left(&no));
                self.turns.retain(|no, _| is_left(no));
                self.work.kept().retain(|no, _| is_left(no));
                break;
            }
        }
        let others = unresolved.iter().filter(|no| !self.active.contains(no) && self.backoffs.is_due(**no, now));
        self.work.is_crowded.store(others.count() > 0, Ordering::Relaxed);
        Ok(Pace::Wait)
    }

    fn trouble(&self) -> Option<String> {
        self.backoffs.trouble(|no| self.work.node.actions.shown(no))
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

/// What a candidate turns out to be.
enum Readable {
    /// An action to resolve, with its target.
    Action(Arc<Action>, Target),
    /// It is gone or has expired.
    Gone,
    /// This version can't read it, for this reason.
    No(String),
}

/// Reads an action to resolve.
///
/// # Errors
/// If the store is away.
async fn readable(node: &Node, no: i64) -> StoreResult<Readable> {
    let store = &node.store;
    let action = match node.actions.get(no).await {
        Ok(Some(action)) => action,
        Ok(None) => return Ok(Readable::Gone),
        Err(error) if error.is_transient() => return Err(error),
        Err(error) => {
            let error = error.chain().to_string();
            log::error!(action = node.actions.shown(no), error; "an action is passed over");
            return Ok(Readable::No(error));
        }
    };
    if store.now() >= action.expires_at {
        store.action_expire(no).await?;
        log::info!(action:% = action.id; "an action expired before it was resolved");
        return Ok(Readable::Gone);
    }
    // The target was parsed when the action was accepted.
    match Target::parse(&action.target) {
        Ok(target) => Ok(Readable::Action(action, target)),
        Err(error) => {
            let error = error.chain().to_string();
            log::error!(action:% = action.id, error;
                "an action's target cannot be read by this version; it stays unresolved until it expires");
            Ok(Readable::No(error))
        }
    }
}

/// Resolves one action as far as possible, or for one turn. How far it is may be known, if it is `fresh`.
async fn resolve(
    work: &Resolving,
    action: Arc<Action>,
    target: Target,
    fresh: Option<Resolution>,
) -> Result<Reached, ResolveError> {
    let (no, page_size) = (action.no, work.node.config.resolver.page);
    let store = &work.node.store;
    let resolution = match fresh {
        Some(fresh) => fresh,
        None => store.action_resolution(no).await?,
    };
    if resolution.done {
        return Ok(Reached::Nowhere);
    }
    let mut search = Search::new(work.clone(), action.clone(), target);
    // Only a spread is laid out over the number of agents.
    let expected = match resolution.expected {
        Some(expected) => expected,
        None if action.spread.is_zero() => 0,
        None => match search.count().await? {
            Some(count) => store.action_expect(no, count).await?,
            None if search.has_had_its_turn() => return Ok(Reached::Turn),
            None => return Ok(Reached::Nowhere),
        },
    };
    log::debug!(action:% = action.id, expected, through = resolution.through; "resolving an action");
    crate::fault_point!("resolver.page");
    search.begin_after(resolution.through);
    let (mut after, mut position) = (resolution.through, resolution.written);
    let mut under_way = FuturesOrdered::new();
    let (mut found, mut last, mut is_over) = (None, false, false);
    loop {
        while !is_over && under_way.len() < PAGES_AT_A_TIME && (found.is_some() || !last) {
            if found.is_none() {
                log::trace!(action = no, after; "reading a page of agents");
                let next = search.next(page_size).await?;
                log::trace!(action = no, after, agents = next.agents.len(); "page of agents read");
                last = next.last;
                found = Some(next);
            }
            let credit = match work.credits.clone().try_acquire_owned() {
                Ok(credit) => credit,
                // Pages in flight return their credits when they are answered.
                Err(_) if !under_way.is_empty() => break,
                Err(_) => match work.credits.clone().acquire_owned().await {
                    Ok(credit) => credit,
                    Err(_) => return Ok(Reached::Nowhere),
                },
            };
            let Some(found) = found.take() else { break };
            let page = new_page(&action, found, after, position, expected);
            after = page.page.through;
            position += i64::try_from(page.commands.len()).unwrap_or(0);
            let answer = work.pages.put(vec![page]);
            under_way.push_back(async move {
                let answer = answer.await;
                drop(credit);
                answer
            });
            if action.is_cancelled() {
                return Ok(Reached::End);
            }
            // Finish the pages in flight. The next start, or the next turn, resolves the rest.
            is_over = search.is_over() || search.has_had_its_turn();
        }
        let Some(answer) = under_way.next().await else { break };
        match answer.map(|mut answers| answers.pop()) {
            Ok(Some(Ok(Inserted::Written))) => {}
            // Cancelled, or the command store crashed with one of our pages: read again how far the
            // action is.
            Ok(Some(Ok(Inserted::StalePage)) | None) | Err(Interrupted) => return Ok(Reached::Nowhere),
            Ok(Some(Err(error))) => {
                log::error!(action:% = action.id, error:% = error.chain(); "a page of commands was refused");
                return Err(error.into());
            }
        }
    }
    if !last || found.is_some() {
        return Ok(Reached::Turn);
    }
    log::debug!(action:% = action.id, commands = position; "an action is resolved");
    work.node.signals.action_resolved(no);
    Ok(Reached::End)
}

/// Lays out one page of commands. `position` of the `expected` commands come before it.
fn new_page(action: &Arc<Action>, found: Agents, after: i64, position: i64, expected: i64) -> NewPage {
    let Agents { agents, through, last } = found;
    let spread = !action.spread.is_zero();
    let commands: Vec<_> = agents
        .into_iter()
        .zip(position..)
        .map(|((agent, transport), position)| (agent, transport, action.due_at(position, expected)))
        .collect();
    let rows = commands.iter().map(|(agent, _, due)| (*agent, spread.then_some(*due))).collect();
    let page = CommandPage { action_no: action.no, after, through, commands: rows, last };
    NewPage { action: action.clone(), page, commands }
}
