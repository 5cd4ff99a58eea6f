use super::breaker::THRESHOLD;
use super::*;
use crate::domain::action::Action;
use crate::domain::command::CommandState::{Failed, Pending, Succeeded};
use crate::domain::protocol::OperationResult;
use crate::runtime::Unstarted;
use crate::store::{AgentNames, Due};
use crate::testing::{TestNode, next, supervision, until};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};

/// What a test has the transport do with an agent's command.
#[derive(Clone, Default)]
enum Then {
    #[default]
    Succeed,
    Fail,
    Retry,
    Away,
    Panic,
    /// Waits until the test lets it go.
    Wait(Arc<Notify>),
}

struct Scripted {
    limits: Limits,
    script: Mutex<HashMap<i64, Then>>,
    delivered: UnboundedSender<i64>,
    cancelled: UnboundedSender<Uuid>,
}

impl Scripted {
    fn set(&self, agent_no: i64, then: Then) {
        self.script.lock().expect("no panic under the lock").insert(agent_no, then);
    }
}

#[async_trait]
impl Transport for Arc<Scripted> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn group(&self, delivery: &Delivery) -> Arc<str> {
        delivery.agent.address.as_deref().unwrap_or_default().into()
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let agent_no = delivery.due.agent_no;
        let then = self.script.lock().expect("no panic under the lock").get(&agent_no).cloned().unwrap_or_default();
        self.delivered.send(agent_no).ok();
        let error = "no".to_owned();
        match then {
            Then::Succeed => Outcome::Succeeded(vec![ok()]),
            Then::Fail => Outcome::Failed { error, results: vec![] },
            Then::Retry => Outcome::AttemptFailed { error, retry_after: None },
            Then::Away => Outcome::Away { error },
            Then::Panic => panic!("as the test wants it"),
            Then::Wait(go) => {
                go.notified().await;
                Outcome::Succeeded(vec![ok()])
            }
        }
    }

    async fn cancelled(&self, actions: &[(i64, Uuid)]) {
        actions.iter().for_each(|(_, id)| self.cancelled.send(*id).unwrap_or_default());
    }
}

fn ok() -> OperationResult {
    OperationResult { module: "test".into(), ok: true, output: None, error: None, truncated: false, lossy: false }
}

struct Fixture {
    node: TestNode,
    transport: Arc<Scripted>,
    sender: Addr<PooledSender<Arc<Scripted>>>,
    delivered: UnboundedReceiver<i64>,
    cancelled: UnboundedReceiver<Uuid>,
}

async fn fixture(limits: Limits) -> Fixture {
    let node = TestNode::new().await;
    let ((delivered, deliveries), (cancelled, cancels)) = (unbounded_channel(), unbounded_channel());
    let transport = Arc::new(Scripted { limits, script: Mutex::default(), delivered, cancelled });
    let context = SenderContext::new(node.node.clone(), node.recorder.clone(), "test");
    let sender = PooledSender::new(context, transport.clone());
    let sender = Unstarted::default().start("test", sender, &supervision());
    Fixture { node, transport, sender, delivered: deliveries, cancelled: cancels }
}

impl Fixture {
    /// Has a host reached, so that more than one command at a time goes to it.
    async fn reach(&mut self, host: &str) {
        let (action, agents) = self.action(1).await;
        assert!(self.offer(&action, &agents, host).await.is_empty());
        self.states_become(&action, &[Succeeded]).await;
        assert_eq!(next(&mut self.delivered).await, agents[0]);
    }

    /// An action with a command for each of so many agents.
    async fn action(&self, agents: usize) -> (Arc<Action>, Vec<i64>) {
        let agents = self.node.agents_of("test", agents).await;
        (self.node.resolved(json!({}), &agents).await, agents)
    }

    /// Offers the commands of these agents, whose host is `host`; answers whose it doesn't take.
    async fn offer(&self, action: &Arc<Action>, agents: &[i64], host: &str) -> Vec<i64> {
        let delivery = |agent_no: &i64| {
            let (action_no, agent_no) = (action.no, *agent_no);
            let due =
                Due { action_no, agent_no, run: 1, attempts: 0, due_at: action.valid_from, priority: 0, open: false };
            let (name, address) = (format!("agent-{agent_no}"), Some(host.to_owned()));
            let agent = crate::domain::agent::AgentContact { no: agent_no, name, address, secret: None };
            Delivery { due, action: action.clone(), agent: Arc::new(agent) }
        };
        let deferred = self.sender.send(Deliver(agents.iter().map(delivery).collect())).await.expect("it lives");
        deferred.into_iter().map(|deferred| deferred.delivery.due.agent_no).collect()
    }

    async fn states_become(&self, action: &Action, states: &[crate::domain::command::CommandState]) {
        until("the states are so", async || self.node.states(action).await == states).await;
    }

    fn numbers(&self) -> (usize, usize, usize) {
        let report = self.node.node.metrics.senders().of("test").report("test");
        (report.waiting, report.in_flight, report.hosts_away)
    }
}

#[actix_rt::test]
async fn each_command_has_the_outcome_that_the_transport_gave() {
    let fixture = fixture(Limits::default()).await;
    let (action, agents) = fixture.action(4).await;
    fixture.transport.set(agents[1], Then::Fail);
    fixture.transport.set(agents[2], Then::Retry);
    fixture.transport.set(agents[3], Then::Panic);
    assert!(fixture.offer(&action, &agents, "").await.is_empty());
    fixture.states_become(&action, &[Succeeded, Failed, Pending, Pending]).await;
    let attempts = async || {
        let commands = fixture.node.store.command_list(action.id, None, AgentNames::ALL, 10).await.unwrap();
        commands.iter().map(|command| command.attempts).collect::<Vec<_>>()
    };
    until("attempts are counted", async || attempts().await == [1, 1, 1, 1]).await;
}

#[actix_rt::test]
async fn a_command_in_hand_is_not_delivered_twice() {
    let mut fixture = fixture(Limits::default()).await;
    let (action, agents) = fixture.action(1).await;
    let go = Arc::new(Notify::new());
    fixture.transport.set(agents[0], Then::Wait(go.clone()));
    for _ in 0..3 {
        assert!(fixture.offer(&action, &agents, "").await.is_empty());
    }
    assert_eq!(next(&mut fixture.delivered).await, agents[0]);
    go.notify_one();
    fixture.states_become(&action, &[Succeeded]).await;
    assert!(fixture.delivered.try_recv().is_err());
}

#[actix_rt::test]
async fn a_slow_host_holds_up_no_other_and_its_queue_is_bounded() {
    let limits = Limits { concurrency: 3, per_group: 2, queue: 1, ..Limits::default() };
    let mut fixture = fixture(limits).await;
    fixture.reach("slow").await;
    let (action, agents) = fixture.action(8).await;
    let go = Arc::new(Notify::new());
    agents[..4].iter().for_each(|agent| fixture.transport.set(*agent, Then::Wait(go.clone())));
    // Two are started after the first is queued, and one more waits: the queue is filled before anything starts.
    let back = fixture.offer(&action, &agents[..1], "slow").await;
    assert!(back.is_empty());
    fixture.offer(&action, &agents[1..2], "slow").await;
    fixture.offer(&action, &agents[2..3], "slow").await;
    assert_eq!(fixture.offer(&action, &agents[3..4], "slow").await, [agents[3]]);
    for agent in &agents[4..] {
        assert!(fixture.offer(&action, &[*agent], "fast").await.is_empty());
        while next(&mut fixture.delivered).await != *agent {}
    }
    for _ in 0..3 {
        go.notify_one();
        tokio::task::yield_now().await;
    }
    until("all but one succeeded", async || {
        go.notify_waiters();
        fixture.node.states(&action).await.iter().filter(|state| **state == Succeeded).count() == 7
    })
    .await;
}

#[actix_rt::test]
async fn while_a_host_is_away_no_attempt_is_counted_and_then_all_are_delivered() {
    let fixture = fixture(Limits { per_group: 1, ..Limits::default() }).await;
    let (action, agents) = fixture.action(5).await;
    agents.iter().for_each(|agent| fixture.transport.set(*agent, Then::Away));
    // The breaker opens at the first failure, and nothing is taken while it is open.
    assert!(fixture.offer(&action, &agents, "host").await.is_empty());
    until("its breaker is open", async || fixture.numbers().2 == 1).await;
    assert_eq!(fixture.numbers().0, 5, "they wait");
    let (other, more) = fixture.action(1).await;
    assert_eq!(fixture.offer(&other, &more, "host").await, more, "nothing more is taken");
    agents.iter().for_each(|agent| fixture.transport.set(*agent, Then::Succeed));
    fixture.states_become(&action, &[Succeeded; 5]).await;
    let commands = fixture.node.store.command_list(action.id, None, AgentNames::ALL, 10).await.unwrap();
    assert!(commands.iter().all(|command| command.attempts == 1), "{commands:?}");
    assert_eq!(fixture.numbers(), (0, 0, 0));
}

#[actix_rt::test]
async fn a_delivery_that_takes_too_long_is_a_failed_attempt_and_opens_the_breaker() {
    let limits = Limits { per_group: 1, timeout: Duration::from_millis(5), ..Limits::default() };
    let mut fixture = fixture(limits).await;
    fixture.reach("host").await;
    let (action, agents) = fixture.action(THRESHOLD as usize).await;
    let never = Arc::new(Notify::new());
    agents.iter().for_each(|agent| fixture.transport.set(*agent, Then::Wait(never.clone())));
    fixture.offer(&action, &agents, "host").await;
    for _ in 0..THRESHOLD {
        next(&mut fixture.delivered).await;
    }
    until("its breaker is open", async || fixture.numbers().2 == 1).await;
    until("the attempts are counted", async || {
        let commands = fixture.node.store.command_list(action.id, None, AgentNames::ALL, 10).await.unwrap();
        commands.iter().all(|command| command.attempts == 1)
    })
    .await;
}

#[actix_rt::test]
async fn a_drain_finishes_what_is_under_way_and_leaves_the_rest() {
    let mut fixture = fixture(Limits { concurrency: 1, ..Limits::default() }).await;
    let (action, agents) = fixture.action(3).await;
    let go = Arc::new(Notify::new());
    fixture.transport.set(agents[0], Then::Wait(go.clone()));
    fixture.offer(&action, &agents, "").await;
    next(&mut fixture.delivered).await;
    let drain = fixture.sender.send(Drain);
    go.notify_one();
    drain.await.expect("it lives");
    assert_eq!(fixture.node.states(&action).await, [Succeeded, Pending, Pending]);
    assert_eq!(fixture.offer(&action, &agents[1..], "").await, agents[1..], "it takes nothing any more");
}

#[actix_rt::test]
async fn cancelled_commands_are_dropped_and_the_transport_is_told() {
    let mut fixture = fixture(Limits { concurrency: 1, ..Limits::default() }).await;
    let (first, others) = fixture.action(1).await;
    let go = Arc::new(Notify::new());
    fixture.transport.set(others[0], Then::Wait(go.clone()));
    fixture.offer(&first, &others, "").await;
    next(&mut fixture.delivered).await;
    let (action, agents) = fixture.action(2).await;
    fixture.offer(&action, &agents, "").await;
    action.set_cancelled();
    fixture.sender.send(Cancelled(vec![(action.no, action.id)])).await.expect("it lives");
    assert_eq!(next(&mut fixture.cancelled).await, action.id);
    go.notify_one();
    fixture.states_become(&first, &[Succeeded]).await;
    until("nothing is in hand", async || fixture.numbers() == (0, 0, 0)).await;
    assert!(fixture.delivered.try_recv().is_err());
}

#[actix_rt::test]
async fn a_thousand_commands_over_many_hosts_each_end_once() {
    let mut fixture = fixture(Limits { concurrency: 50, per_group: 5, queue: 100, ..Limits::default() }).await;
    let (action, agents) = fixture.action(1_000).await;
    let permits = Semaphore::new(1);
    for (host, chunk) in agents.chunks(50).enumerate() {
        let _permit = permits.acquire().await.expect("it is open");
        assert!(fixture.offer(&action, chunk, &host.to_string()).await.is_empty());
    }
    fixture.states_become(&action, &[Succeeded; 1_000]).await;
    let mut delivered = Vec::new();
    while let Ok(agent_no) = fixture.delivered.try_recv() {
        delivered.push(agent_no);
    }
    delivered.sort_unstable();
    assert_eq!(delivered, agents);
}
