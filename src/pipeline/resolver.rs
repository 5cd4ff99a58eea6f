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
            log::warn!(action = no, error:% = error.chain(); "an action waits to be resolved");
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
                log::error!(action = no, error:% = error.chain(); "an action is passed over");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::runtime::batcher::Verdict;
    use crate::runtime::{Sink, Writer};
    use crate::testing::{REFUSED, TestNode, batcher, me, new_action, next, until};
    use serde_json::json;
    use std::sync::Mutex;
    use tokio::sync::{Notify, mpsc};

    /// (action, the key after which the page begins, agents, whether it is the last).
    type Seen = (i64, i64, usize, bool);

    /// Writes pages, and says which.
    #[derive(Clone)]
    struct Pages {
        node: Arc<Node>,
        seen: mpsc::UnboundedSender<Seen>,
        gate: Option<Arc<Notify>>,
        /// So many pages are lost in a crash.
        crashes: Arc<Mutex<u32>>,
    }

    impl Sink for Pages {
        type Item = NewPage;
        type Answer = Inserted;

        const NAME: &'static str = "pages";

        fn metrics(&self) -> &Metrics {
            &self.node.metrics
        }

        async fn write(&self, pages: &[NewPage]) -> StoreResult<Vec<Inserted>> {
            for NewPage { page, .. } in pages {
                self.seen.send((page.action_no, page.after, page.commands.len(), page.last)).ok();
            }
            if let Some(gate) = &self.gate {
                gate.notified().await;
            }
            let is_crash = {
                let mut left = self.crashes.lock().expect("not poisoned");
                let is_crash = *left > 0;
                *left = left.saturating_sub(1);
                is_crash
            };
            assert!(!is_crash, "a crash with a page");
            self.node.store.command_insert(pages.iter().map(|page| page.page.clone()).collect()).await
        }

        async fn written(&self, _: Vec<NewPage>, _: &[Verdict<Inserted>]) {}
    }

    struct Fixture {
        node: TestNode,
        resolver: Resolver,
        seen: mpsc::UnboundedReceiver<Seen>,
        pages: PageWriter,
    }

    /// Reads pages of three agents.
    async fn fixture(gate: Option<Arc<Notify>>, crashes: u32) -> Fixture {
        let mut config = Config::default();
        config.resolver.page = 3;
        let node = TestNode::with(config).await;
        let (sender, seen) = mpsc::unbounded_channel();
        let crashes = Arc::new(Mutex::new(crashes));
        let pages = Writer::new(batcher(Pages { node: node.node.clone(), seen: sender, gate, crashes }));
        Fixture { resolver: Resolver::new(node.node.clone(), pages.clone()), node, seen, pages }
    }

    impl Fixture {
        async fn begin(&mut self) {
            assert_eq!(self.resolver.run_once().await.unwrap(), Pace::Wait);
        }

        /// Waits for all tasks; answers whether each has resolved its action.
        async fn ends(&mut self) -> Vec<bool> {
            let mut resolved = Vec::new();
            while let Some(ended) = self.resolver.tasks.join_next().await {
                resolved.push(self.resolver.ended(ended));
            }
            resolved
        }

        fn seen(&mut self) -> Vec<Seen> {
            std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
        }

        async fn is_resolved(&self, action: &Action) -> bool {
            self.node.open(action).await.expect("it is open").resolved
        }
    }

    #[actix_rt::test]
    async fn an_action_is_resolved_page_by_page_in_key_order() {
        let mut fixture = fixture(None, 0).await;
        let agents = fixture.node.agents(7).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
        let no = action.no;
        assert_eq!(fixture.seen(), [(no, 0, 3, false), (no, agents[2], 3, false), (no, agents[5], 1, true)]);
        assert!(fixture.is_resolved(&action).await);
        assert_eq!(fixture.node.states(&action).await.len(), 7);
        assert!(fixture.node.has_heard("complete: wake").await);
        fixture.begin().await;
        assert!(fixture.resolver.is_idle(), "nothing is left");
    }

    #[actix_rt::test]
    async fn a_full_last_page_is_followed_by_an_empty_one() {
        let mut fixture = fixture(None, 0).await;
        let agents = fixture.node.agents(3).await;
        let (action, none) =
            (fixture.node.submit(json!({})).await, fixture.node.submit(json!({"target": "name = 'nobody'"})).await);
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true, true]);
        let mut seen = fixture.seen();
        seen.sort_unstable();
        assert_eq!(seen, [(action.no, 0, 3, false), (action.no, agents[2], 0, true), (none.no, 0, 0, true)]);
    }

    #[actix_rt::test]
    async fn a_spread_is_laid_out_over_all_pages() {
        let mut fixture = fixture(None, 0).await;
        fixture.node.agents(5).await;
        let action = fixture.node.submit(json!({"spread": "500s"})).await;
        fixture.begin().await;
        fixture.ends().await;
        let commands = fixture.node.store.command_undispatched(action.no, 0, 9).await.unwrap().commands;
        let offsets = commands.iter().map(|(.., due_at)| due_at.since(action.valid_from).as_secs());
        assert_eq!(offsets.collect::<Vec<_>>(), [0, 100, 200, 300, 400]);
    }

    #[actix_rt::test]
    async fn few_pages_of_an_action_are_under_way_and_their_credits_come_back() {
        let gate = Arc::new(Notify::new());
        let mut fixture = fixture(Some(gate.clone()), 0).await;
        fixture.node.agents(20).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.begin().await;
        let credits = fixture.resolver.work.credits.clone();
        until("its credits are taken", async || credits.available_permits() == PAGES_IN_MEMORY - PAGES_AT_A_TIME).await;
        next(&mut fixture.seen).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(credits.available_permits(), PAGES_IN_MEMORY - PAGES_AT_A_TIME, "and no more");
        let open = actix_rt::spawn(async move {
            loop {
                gate.notify_one();
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(fixture.ends().await, [true]);
        open.abort();
        assert_eq!(credits.available_permits(), PAGES_IN_MEMORY);
        assert_eq!(fixture.node.states(&action).await.len(), 20);
    }

    #[actix_rt::test]
    async fn a_restart_continues_at_the_last_commit() {
        let mut fixture = fixture(None, 0).await;
        let agents = fixture.node.agents(5).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.node.commands(&action, 0, &agents[..2], false).await;
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
        assert_eq!(fixture.seen(), [(action.no, agents[1], 3, false), (action.no, agents[4], 0, true)]);
        assert_eq!(fixture.node.states(&action).await.len(), 5);
    }

    #[actix_rt::test]
    async fn a_page_that_has_moved_waits_for_the_poll_and_is_read_anew() {
        let gate = Arc::new(Notify::new());
        let mut fixture = fixture(Some(gate.clone()), 0).await;
        let agents = fixture.node.agents(2).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.begin().await;
        next(&mut fixture.seen).await;
        // Another one, as a resolver of before has left it.
        fixture.node.commands(&action, 0, &agents[..1], false).await;
        gate.notify_one();
        assert_eq!(fixture.ends().await, [false]);
        assert!(!fixture.is_resolved(&action).await);
        fixture.begin().await;
        gate.notify_one();
        assert_eq!(fixture.ends().await, [true]);
        assert_eq!(fixture.seen(), [(action.no, agents[0], 1, true)]);
    }

    #[actix_rt::test]
    async fn a_page_that_is_lost_in_a_crash_is_written_by_the_next_round() {
        let mut fixture = fixture(None, 1).await;
        fixture.node.agents(2).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [false]);
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
        assert_eq!(fixture.node.states(&action).await.len(), 2);
    }

    #[actix_rt::test]
    async fn a_page_that_the_store_refuses_waits_for_the_poll_and_stops_no_other_action() {
        let mut fixture = fixture(None, 0).await;
        fixture.node.agents(2).await;
        let (bad, good) = (fixture.node.submit(json!({})).await, fixture.node.submit(json!({})).await);
        fixture.node.break_inserts("commands", &format!("NEW.action_no = {}", bad.no), REFUSED);
        fixture.begin().await;
        let mut ends = fixture.ends().await;
        ends.sort_unstable();
        assert_eq!(ends, [false, true]);
        assert!(fixture.is_resolved(&good).await && !fixture.is_resolved(&bad).await);
        fixture.node.mend_inserts("commands");
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
    }

    #[actix_rt::test]
    async fn an_action_that_is_cancelled_meanwhile_gets_no_more_commands() {
        let gate = Arc::new(Notify::new());
        let mut fixture = fixture(Some(gate.clone()), 0).await;
        fixture.node.agents(20).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.begin().await;
        next(&mut fixture.seen).await;
        fixture.node.store.action_cancel(action.id, &me()).await.unwrap();
        action.set_cancelled();
        let open = actix_rt::spawn(async move {
            loop {
                gate.notify_one();
                tokio::task::yield_now().await;
            }
        });
        fixture.ends().await;
        open.abort();
        assert!(fixture.node.states(&action).await.is_empty());
        fixture.begin().await;
        assert!(fixture.resolver.is_idle(), "it is not to be resolved any more");
    }

    #[actix_rt::test]
    async fn an_action_is_resolved_when_it_comes_near_and_never_after_it_has_expired() {
        let mut fixture = fixture(None, 0).await;
        fixture.node.agents(1).await;
        let later = fixture.node.submit(json!({"delay": "1h"})).await;
        let short = fixture.node.submit(json!({"delay": "1h", "expires_after": "1s"})).await;
        fixture.begin().await;
        assert!(fixture.resolver.is_idle());
        fixture.node.pass(Duration::from_secs(3_602));
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
        assert_eq!((fixture.node.states(&later).await.len(), fixture.node.states(&short).await.len()), (1, 0));
        assert!(fixture.node.open(&short).await.is_some_and(|open| open.expired));
    }

    #[actix_rt::test]
    async fn an_action_that_cannot_be_read_stops_no_other() {
        let mut fixture = fixture(None, 0).await;
        fixture.node.agents(1).await;
        let new = std::iter::repeat_with(|| new_action(json!({}), fixture.node.store.now())).take(3);
        fixture.node.store.action_insert(new.collect()).await.unwrap();
        fixture
            .node
            .sql("UPDATE actions SET operations = '[' WHERE no = 1; UPDATE actions SET target = '(' WHERE no = 2");
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
        assert_eq!(fixture.seen(), [(3, 0, 1, true)]);
    }

    #[actix_rt::test]
    async fn only_so_many_actions_are_in_hand() {
        let gate = Arc::new(Notify::new());
        let mut fixture = fixture(Some(gate), 0).await;
        fixture.node.agents(1).await;
        let new = std::iter::repeat_with(|| new_action(json!({}), fixture.node.store.now()));
        fixture.node.store.action_insert(new.take(ACTIONS_AT_A_TIME + 3).collect()).await.unwrap();
        fixture.begin().await;
        assert_eq!(fixture.resolver.active.len(), ACTIONS_AT_A_TIME);
        fixture.begin().await;
        assert_eq!(fixture.resolver.active.len(), ACTIONS_AT_A_TIME);
    }

    #[actix_rt::test]
    async fn a_stop_finishes_what_is_under_way_and_leaves_the_rest_to_the_next_start() {
        let gate = Arc::new(Notify::new());
        let mut fixture = fixture(Some(gate.clone()), 0).await;
        fixture.node.agents(20).await;
        let action = fixture.node.submit(json!({})).await;
        fixture.begin().await;
        next(&mut fixture.seen).await;
        fixture.resolver.stop();
        let open = actix_rt::spawn(async move {
            loop {
                gate.notify_one();
                tokio::task::yield_now().await;
            }
        });
        while !fixture.resolver.is_idle() {
            fixture.resolver.in_flight().await;
        }
        let written = fixture.node.states(&action).await.len();
        assert!((3..20).contains(&written) && !fixture.is_resolved(&action).await, "{written}");
        fixture.resolver = Resolver::new(fixture.node.node.clone(), fixture.pages.clone());
        fixture.begin().await;
        assert_eq!(fixture.ends().await, [true]);
        open.abort();
        assert_eq!(fixture.node.states(&action).await.len(), 20);
    }
}
