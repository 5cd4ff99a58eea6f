use super::*;
use crate::config::Config;
use crate::domain::time::Span;
use crate::pipeline::command_store::{CommandSink, PageWriter};
use crate::pipeline::messages::NewPage;
use crate::pipeline::sender_router::{Route, Routes};
use crate::runtime::{Unstarted, Writer};
use crate::store::CommandPage;
use crate::testing::{TestNode, TestSender, batcher, me, next, supervision, until};
use serde_json::{Value, json};
use std::cell::Cell;
use tokio::sync::mpsc::UnboundedReceiver;

struct Fixture {
    node: TestNode,
    scheduler: Addr<DelayScheduler>,
    pages: PageWriter,
    delivered: UnboundedReceiver<DueCommand>,
}

/// A scheduler that delivers by stream and by webhook to the same sender, which crashes once for one agent.
async fn start_with(config: Config, fatal: Option<i64>, prepare: impl AsyncFnOnce(&TestNode)) -> Fixture {
    let node = TestNode::with(config).await;
    prepare(&node).await;
    let (sender, delivered) = TestSender::start(fatal);
    let routes = Routes::from([
        ("stream".to_owned(), Route::Sessions(sender.clone().recipient())),
        ("webhook".to_owned(), Route::Sender(sender.recipient())),
    ]);
    let router = SenderRouter::new(node.node.clone(), routes, node.recorder.clone());
    let router = Unstarted::default().start("sender_router", router, &supervision());
    let scheduler = DelayScheduler::new(node.node.clone(), router, node.recorder.clone());
    let scheduler = Unstarted::default().start("delay_scheduler", scheduler, &supervision());
    // It has started.
    scheduler.send(Rescheduled(Vec::new())).await.expect("it lives");
    let sink = CommandSink { node: node.node.clone(), scheduler: scheduler.clone() };
    Fixture { pages: Writer::new(batcher(sink)), node, scheduler, delivered }
}

async fn start() -> Fixture {
    start_with(Config::default(), None, async |_| ()).await
}

fn page(action: &Arc<Action>, after: i64, agents: &[i64], transport: &str, last: bool) -> NewPage {
    let due = |agent_no: &i64| (*agent_no, Arc::from(transport), action.valid_from);
    let rows = agents.iter().map(|agent_no| (*agent_no, None)).collect();
    let through = agents.last().copied().unwrap_or(after);
    let page = CommandPage { action_no: action.no, after, through, commands: rows, last };
    NewPage { action: action.clone(), page, commands: agents.iter().map(due).collect() }
}

impl Fixture {
    /// An action whose commands are written through the command store, all in one page.
    async fn written(&self, changes: Value, agents: &[i64], transport: &str) -> Arc<Action> {
        let action = self.node.submit(changes).await;
        let answers = self.pages.put(vec![page(&action, 0, agents, transport, true)]).await.unwrap();
        assert!(matches!(answers[..], [Ok(crate::store::Inserted::Written)]));
        action
    }

    /// The open actions are read, and the scheduler hears of it, as it does each second.
    async fn compare(&self) {
        self.node.read_open_actions().await;
        let snapshot = self.node.node.signals.open_actions().last();
        self.scheduler.send(OpenActionsRead(snapshot)).await.expect("it lives");
    }

    /// The scheduler reads what its time has come for, as its timers have it do.
    async fn wake(&self) {
        self.scheduler.send(PeerNews { open: true, ..PeerNews::default() }).await.expect("it lives");
    }

    /// The agents of the next deliveries.
    async fn next(&mut self, number: usize) -> Vec<i64> {
        let mut agents = Vec::new();
        for _ in 0..number {
            agents.push(next(&mut self.delivered).await.due.agent_no);
        }
        agents
    }

    async fn nothing_more(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(50), self.delivered.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }

    async fn waits(&self, agents: &[i64]) -> Vec<i64> {
        self.node.store.agent_with_due(agents, self.node.store.now()).await.unwrap()
    }
}

#[actix_rt::test]
async fn commands_of_connected_agents_are_delivered_once() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(3).await;
    fixture.node.connect(&agents).await;
    fixture.written(json!({}), &agents, "stream").await;
    assert_eq!(fixture.next(3).await, agents);
    fixture.compare().await;
    fixture.wake().await;
    fixture.nothing_more().await;
    assert!(fixture.waits(&agents).await.is_empty());
}

#[actix_rt::test]
async fn commands_of_which_nothing_is_known_are_read_again_after_two_comparisons() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(1).await;
    fixture.node.connect(&agents).await;
    fixture.written(json!({}), &agents, "stream").await;
    assert_eq!(fixture.next(1).await, agents);
    let look_again = PeerNews { everything: true, ..PeerNews::default() };
    fixture.scheduler.send(look_again).await.expect("it lives");
    fixture.compare().await;
    fixture.nothing_more().await;
    let look_again = PeerNews { everything: true, ..PeerNews::default() };
    fixture.scheduler.send(look_again).await.expect("it lives");
    fixture.compare().await;
    assert_eq!(fixture.next(1).await, agents, "it may have been lost");
}

#[actix_rt::test]
async fn what_is_due_at_the_same_time_goes_out_by_priority() {
    let mut fixture = start().await;
    let agents = fixture.node.agents_of("webhook", 3).await;
    let at = fixture.node.store.now().plus(Duration::from_secs(30));
    for (priority, agent_no) in [(0, agents[0]), (9, agents[1]), (5, agents[2])] {
        let document = json!({"valid_from": at.to_string(), "priority": priority});
        fixture.written(document, &[agent_no], "webhook").await;
    }
    fixture.nothing_more().await;
    fixture.node.pass(Duration::from_secs(30));
    fixture.wake().await;
    assert_eq!(fixture.next(3).await, [agents[1], agents[2], agents[0]]);
}

#[actix_rt::test]
async fn an_agent_that_is_away_gets_a_waiting_row() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(2).await;
    fixture.node.connect(&agents[1..]).await;
    fixture.written(json!({}), &agents, "stream").await;
    assert_eq!(fixture.next(1).await, agents[1..]);
    until("there is a row", async || fixture.waits(&agents).await == agents[..1]).await;
}

#[actix_rt::test]
async fn commands_from_before_the_start_are_read_from_the_store() {
    let agents: Cell<Vec<i64>> = Cell::default();
    let mut fixture = start_with(Config::default(), None, async |node| {
        let keys = node.agents(3).await;
        node.connect(&keys).await;
        let action = node.resolved(json!({}), &keys).await;
        node.succeed(&action, keys[0]).await;
        agents.set(keys);
    })
    .await;
    let agents = agents.take();
    assert!(fixture.node.has_heard("open_actions: wake").await, "it asks for the list");
    fixture.compare().await;
    assert_eq!(fixture.next(2).await, agents[1..], "one was done before");
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn a_page_that_does_not_join_on_is_read_from_the_store() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(4).await;
    fixture.node.connect(&agents).await;
    let action = fixture.node.submit(json!({})).await;
    fixture.node.commands(&action, 0, &agents[..2], false).await;
    fixture.pages.put(vec![page(&action, agents[1], &agents[2..], "stream", true)]).await.unwrap();
    assert_eq!(fixture.next(4).await, agents);
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn what_is_beyond_the_horizon_stays_in_the_store_until_it_is_near() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(1).await;
    fixture.node.connect(&agents).await;
    let action = fixture.written(json!({"delay": "1h"}), &agents, "stream").await;
    fixture.wake().await;
    fixture.nothing_more().await;
    fixture.node.pass(Duration::from_secs(3_600));
    fixture.wake().await;
    assert_eq!(next(&mut fixture.delivered).await.action.no, action.no);
}

#[actix_rt::test]
async fn what_is_cancelled_is_not_delivered() {
    let mut fixture = start().await;
    let agents = fixture.node.agents_of("webhook", 2).await;
    let soon = json!({"delay": "30s"});
    let (bad, good) = (
        fixture.written(soon.clone(), &agents[..1], "webhook").await,
        fixture.written(soon, &agents[1..], "webhook").await,
    );
    fixture.node.node.signals.action_cancelled(bad.no, bad.id);
    fixture.scheduler.send(Cancelled(vec![(bad.no, bad.id)])).await.expect("it lives");
    fixture.node.pass(Duration::from_secs(30));
    fixture.wake().await;
    assert_eq!(next(&mut fixture.delivered).await.action.no, good.no);
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn what_is_paused_is_delivered_when_it_is_resumed() {
    let mut fixture = start().await;
    let agents = fixture.node.agents_of("webhook", 2).await;
    let action = fixture.written(json!({"delay": "30s"}), &agents, "webhook").await;
    fixture.node.store.action_pause(action.id, true, &me()).await.unwrap();
    fixture.node.node.signals.action_paused(action.no);
    fixture.node.pass(Duration::from_secs(30));
    fixture.wake().await;
    fixture.nothing_more().await;
    fixture.node.store.action_pause(action.id, false, &me()).await.unwrap();
    fixture.node.node.signals.action_resumed(action.no);
    fixture.scheduler.send(Resumed(vec![action.no])).await.expect("it lives");
    fixture.compare().await;
    assert_eq!(fixture.next(2).await, agents);
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn what_falls_due_again_is_delivered_as_its_next_attempt() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(1).await;
    fixture.node.connect(&agents).await;
    let action = fixture.written(json!({}), &agents, "stream").await;
    assert_eq!(fixture.next(1).await, agents);
    let (action_no, due_at) = (action.no, fixture.node.store.now());
    let due = Due { action_no, agent_no: agents[0], run: 1, attempts: 1, due_at, priority: 0, open: true };
    fixture.scheduler.send(Rescheduled(vec![due.clone()])).await.expect("it lives");
    assert_eq!(next(&mut fixture.delivered).await.due, due);
}

#[actix_rt::test]
async fn an_open_row_that_nobody_told_of_is_read_when_it_is_near() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(1).await;
    let action = fixture.written(json!({"max_runs": 2}), &agents, "stream").await;
    until("there is a row", async || fixture.waits(&agents).await == agents).await;
    fixture.node.connect(&agents).await;
    fixture.wake().await;
    fixture.nothing_more().await;
    // What waits for its agent is its session's. What is due again at a time is the scheduler's.
    let until = fixture.node.store.now();
    fixture.node.tell(&action, agents[0], Event::Postponed { run: 1, until }).await;
    fixture.wake().await;
    let delivery = next(&mut fixture.delivered).await;
    assert_eq!((delivery.action.no, delivery.due.open), (action.no, true));
}

#[actix_rt::test]
async fn sessions_are_told_of_what_found_no_room_when_it_is_due() {
    let mut config = Config::default();
    config.delay.capacity = 1;
    let fixture = start_with(config, None, async |_| ()).await;
    let agents = fixture.node.agents(2).await;
    fixture.node.connect(&agents).await;
    let action = fixture.node.submit(json!({"valid_from": fixture.node.store.now().to_string()})).await;
    let due_at = fixture.node.store.now().plus(Duration::from_secs(20));
    let soon = |agent_no: &i64| Due {
        action_no: action.no,
        agent_no: *agent_no,
        run: 1,
        attempts: 0,
        due_at,
        priority: 0,
        open: true,
    };
    fixture.node.heard().await;
    fixture.scheduler.send(Rescheduled(agents.iter().map(soon).collect())).await.expect("it lives");
    fixture.wake().await;
    assert!(!fixture.node.has_heard("backlogs: wake").await);
    fixture.node.pass(Duration::from_secs(20));
    until("the sessions are told", async || {
        fixture.wake().await;
        fixture.node.has_heard("backlogs: wake").await
    })
    .await;
}

#[actix_rt::test]
async fn of_another_nodes_action_only_what_is_connected_here_is_taken() {
    let agents: Cell<Vec<i64>> = Cell::default();
    let mut fixture = start_with(Config::default(), None, async |node| {
        let keys = node.agents(2).await;
        node.connect(&keys[1..]).await;
        node.resolved(json!({}), &keys).await;
        agents.set(keys);
    })
    .await;
    let agents = agents.take();
    fixture.node.read_open_actions().await;
    fixture.node.pretend(1, |open| open.owned = false);
    let snapshot = fixture.node.node.signals.open_actions().last();
    fixture.scheduler.send(OpenActionsRead(snapshot)).await.expect("it lives");
    assert_eq!(fixture.next(1).await, agents[1..]);
    fixture.nothing_more().await;
    assert!(fixture.waits(&agents).await.is_empty(), "its owner writes down who is away");
}

#[actix_rt::test]
async fn commands_that_another_node_wrote_are_read_from_where_they_begin() {
    let mut fixture = start().await;
    let agents = fixture.node.agents(2).await;
    fixture.node.connect(&agents).await;
    let action = fixture.node.resolved(json!({}), &agents).await;
    let news = PeerNews { commands: vec![(action.no, agents[0])], ..PeerNews::default() };
    fixture.scheduler.send(news).await.expect("it lives");
    assert_eq!(fixture.next(1).await, agents[1..]);
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn what_a_crashed_sender_had_is_tried_again() {
    let mut fixture = start_with(Config::default(), Some(1), async |_| ()).await;
    let agents = fixture.node.agents(2).await;
    assert_eq!(agents[0], 1);
    fixture.node.connect(&agents).await;
    fixture.written(json!({}), &agents, "stream").await;
    assert_eq!(fixture.next(2).await, agents);
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn what_does_not_fit_goes_out_when_there_is_room() {
    let mut config = Config::default();
    config.delay.capacity = 2;
    let mut fixture = start_with(config, None, async |_| ()).await;
    let agents = fixture.node.agents_of("webhook", 9).await;
    fixture.written(json!({}), &agents, "webhook").await;
    let mut delivered = fixture.next(9).await;
    delivered.sort_unstable();
    assert_eq!(delivered, agents);
    fixture.nothing_more().await;
}

#[actix_rt::test]
async fn what_is_near_takes_the_place_of_what_has_time() {
    let mut config = Config::default();
    (config.delay.capacity, config.delay.horizon) = (1, Span::secs(60));
    let mut fixture = start_with(config, None, async |_| ()).await;
    let agents = fixture.node.agents_of("webhook", 2).await;
    let far = fixture.written(json!({"delay": "30s"}), &agents[..1], "webhook").await;
    let near = fixture.written(json!({"delay": "10ms"}), &agents[1..], "webhook").await;
    assert_eq!(next(&mut fixture.delivered).await.action.no, near.no);
    fixture.nothing_more().await;
    fixture.node.pass(Duration::from_secs(30));
    fixture.wake().await;
    assert_eq!(next(&mut fixture.delivered).await.action.no, far.no, "it was read again");
}

#[actix_rt::test]
async fn after_a_drain_nothing_is_delivered() {
    let mut fixture = start().await;
    let agents = fixture.node.agents_of("webhook", 1).await;
    let action = fixture.written(json!({"delay": "30s"}), &agents, "webhook").await;
    fixture.scheduler.send(Drain).await.expect("it is answered");
    fixture.node.pass(Duration::from_secs(30));
    fixture.wake().await;
    fixture.nothing_more().await;
    assert_eq!(fixture.node.store.command_undispatched(action.no, 0, 9).await.unwrap().commands.len(), 1);
}
