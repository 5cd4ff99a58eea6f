use super::shared::{PAGES_IN_MEMORY, SEARCHES};
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
async fn a_page_that_the_store_refuses_is_tried_again_and_stops_no_other_action() {
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
    fixture.resolver.backoffs = Backoffs::default();
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
    fixture.node.sql("UPDATE actions SET operations = '[' WHERE no = 1; UPDATE actions SET target = '(' WHERE no = 2");
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

#[actix_rt::test]
async fn an_action_that_fails_pauses_and_is_named_while_others_are_resolved() {
    let mut fixture = fixture(None, 0).await;
    fixture.node.agents(2).await;
    let (bad, good) = (fixture.node.submit(json!({})).await, fixture.node.submit(json!({})).await);
    fixture.node.break_inserts("commands", &format!("NEW.action_no = {}", bad.no), REFUSED);
    fixture.begin().await;
    fixture.ends().await;
    assert!(fixture.is_resolved(&good).await && !fixture.is_resolved(&bad).await);
    let trouble = fixture.resolver.trouble().expect("it is named");
    assert!(trouble.starts_with(&format!("action {}: ", bad.id)) && trouble.contains(REFUSED), "{trouble}");
    fixture.begin().await;
    assert!(fixture.resolver.is_idle(), "it pauses");
    fixture.node.store.action_cancel(bad.id, &me()).await.unwrap();
    fixture.begin().await;
    assert_eq!(fixture.resolver.trouble(), None, "nothing is left to be done for it");
}

#[actix_rt::test]
async fn a_target_that_finds_few_keeps_its_place_and_takes_turns_with_others() {
    let mut fixture = fixture(None, 0).await;
    let agents = fixture.node.agents(20_000).await;
    let few = fixture.node.submit(json!({"target": "name = 'agent-00007' OR facts.x = 1"})).await;
    let retried = fixture.node.resolved(json!({}), &agents[..10]).await;
    fixture.node.succeed(&retried, agents[3]).await;
    let retry = format!("action('{}') = 'succeeded'", retried.id);
    let retry = fixture.node.submit(json!({"target": retry, "spread": "10s"})).await;
    fixture.begin().await;
    assert_eq!(fixture.ends().await, [true, true]);
    let mut seen = fixture.seen();
    seen.sort_unstable();
    assert_eq!(seen[..], [(few.no, 0, 1, true), (retry.no, 0, 1, true)]);
    assert_eq!(fixture.resolver.work.searches.available_permits(), SEARCHES);
    // A search that is over before its end writes what it has, and where it was.
    let mut search = Search::new(fixture.resolver.work.clone(), few.clone(), Target::parse("facts.x = 1").unwrap());
    few.set_cancelled();
    let found = search.next(10).await.unwrap();
    assert!(found.agents.is_empty() && !found.last && found.through > 0 && found.through < agents[19_999]);
}
