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
use super::messages::{Drain, NewPage, Resolve, Touched};
use crate::domain::action::Action;
use crate::domain::target::Target;
use crate::store::{CommandPage, Inserted, Store, StoreError};
use actix::prelude::*;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often it looks without being told.
const PERIOD: Duration = Duration::from_secs(1);
/// Actions resolved at a time.
const ACTIONS_AT_A_TIME: usize = 16;
/// Pages of one action on their way to the store.
const PAGES_AT_A_TIME: usize = 3;

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
    draining: Option<oneshot::Sender<()>>,
}

impl Resolver {
    /// With nothing in hand.
    pub fn new(parts: ResolverParts) -> Self {
        Self { parts, active: HashSet::new(), looking: false, again: false, draining: None }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.draining.is_some() || self.active.len() >= ACTIONS_AT_A_TIME {
            return;
        }
        if self.looking {
            self.again = true;
            return;
        }
        crate::fault_point!("resolver");
        self.looking = true;
        self.again = false;
        let store = self.parts.store.clone();
        let horizon = store.now().plus(self.parts.horizon);
        // Those in hand may be among the oldest.
        let limit = 2 * ACTIONS_AT_A_TIME;
        let list = async move { store.action_list_unresolved(horizon, limit).await };
        ctx.spawn(list.into_actor(self).map(|list, resolver, ctx| {
            resolver.looking = false;
            match list {
                Ok(list) => list.into_iter().for_each(|no| resolver.take(no, ctx)),
                Err(error) => log::warn!(error = error.to_string().as_str(); "actions wait to be resolved"),
            }
            if resolver.again {
                resolver.look(ctx);
            }
        }));
    }

    fn take(&mut self, no: i64, ctx: &mut Context<Self>) {
        if self.active.len() >= ACTIONS_AT_A_TIME || !self.active.insert(no) {
            return;
        }
        let parts = self.parts.clone();
        let resolved = async move { run_once(&parts, no).await };
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

/// Resolves one action as far as it goes; true when it is resolved now.
pub async fn run_once(parts: &ResolverParts, no: i64) -> Result<bool, StoreError> {
    let Some(action) = parts.book.get(no).await? else { return Ok(false) };
    if parts.store.now() >= action.expires_at {
        parts.store.action_expire(no).await?;
        log::info!(action:% = action.id; "an action expired before it was resolved");
        return Ok(true);
    }
    // It was parsed when it was accepted.
    let target = Target::parse(&action.target).map_err(|error| {
        StoreError::Corrupt(format!("action {} with the target {:?}: {error}", action.id, action.target))
    })?;
    let resolution = parts.store.action_resolution(no, &target).await?;
    if resolution.done {
        return Ok(true);
    }
    log::debug!(action:% = action.id, expected = resolution.expected, through = resolution.through; "resolving an action");
    crate::fault_point!("resolver.page");
    let (mut after, mut position) = (resolution.through, resolution.written);
    let mut under_way = FuturesOrdered::new();
    let mut last = false;
    loop {
        while !last && under_way.len() < PAGES_AT_A_TIME {
            log::trace!(action = no, after; "reading a page of agents");
            let agents = parts.store.agent_match(&target, after, parts.page).await?;
            log::trace!(action = no, after, agents = agents.len(); "page of agents read");
            last = agents.len() < parts.page;
            let page = new_page(&action, agents, after, position, resolution.expected, last);
            after = page.page.through;
            position += i64::try_from(page.commands.len()).unwrap_or(0);
            under_way.push_back(parts.commands.send(Put::<CommandSink>(vec![page])));
            if action.is_cancelled() {
                return Ok(true);
            }
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
        *self = Self { draining: self.draining.take(), ..Self::new(self.parts.clone()) };
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
        let (sender, drained) = oneshot::channel();
        self.draining = Some(sender);
        self.finish_drain();
        Box::pin(async move {
            drained.await.ok();
        })
    }
}
