use super::*;
use crate::domain::broker::{FromServer, MAX_MESSAGE, from_server};
use crate::domain::command::CommandState::{Cancelled, Pending, Sent, Succeeded};
use crate::domain::protocol::ServerFrame;
use crate::senders::pooled::Transport;
use crate::senders::{Delivery, DueCommand, Outcome, SenderContext};
use crate::store::AgentPatch;
use crate::testing::{REFUSED, TestNode, delivery, me, until};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const A: &str = "agent-00000";

/// A broker in memory.
#[derive(Default)]
struct Memory {
    sent: Mutex<Vec<(String, String, Option<String>)>>,
    buried: Mutex<Vec<(Option<String>, String)>>,
    fails: Mutex<Option<CarrierError>>,
    largest: Option<usize>,
}

#[async_trait]
impl Carrier for Memory {
    fn max_message(&self) -> usize {
        self.largest.unwrap_or(usize::MAX)
    }

    async fn send(&self, agent: &str, message: String, id: Option<&str>) -> Result<(), CarrierError> {
        if let Some(error) = self.fails.lock().unwrap().clone() {
            return Err(error);
        }
        self.sent.lock().unwrap().push((agent.into(), message, id.map(str::to_owned)));
        Ok(())
    }

    async fn bury(&self, agent: Option<&str>, _: &[u8], reason: &str) -> Result<(), CarrierError> {
        if let Some(error) = self.fails.lock().unwrap().clone() {
            return Err(error);
        }
        self.buried.lock().unwrap().push((agent.map(str::to_owned), reason.into()));
        Ok(())
    }
}

impl Memory {
    fn sent(&self) -> Vec<FromServer> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter().map(|(_, message, _)| from_server(message.as_bytes()).expect("a message")).collect()
    }
}

struct Rig {
    node: TestNode,
    context: SenderContext,
    broker: Arc<Memory>,
    intake: Intake<Memory>,
    agents: Vec<i64>,
}

impl Rig {
    async fn new(count: usize) -> Self {
        let node = TestNode::new().await;
        let agents = node.agents_of("nats", count).await;
        let context = SenderContext::new(node.node.clone(), node.recorder.clone(), "nats");
        let broker = Arc::new(Memory::default());
        let intake = Intake::new(context.clone(), broker.clone());
        Self { node, context, broker, intake, agents }
    }

    async fn take(&self, message: Value) -> Taken {
        self.intake.take(Some(A), message.to_string().as_bytes()).await
    }

    /// The reasons of what was put aside.
    fn buried(&self) -> Vec<(Option<String>, String)> {
        std::mem::take(&mut *self.broker.buried.lock().unwrap())
    }
}

fn commands(message: &FromServer) -> Vec<uuid::Uuid> {
    match &message.frame {
        Some(ServerFrame::Commands { commands }) => commands.iter().map(|command| command.action).collect(),
        other => panic!("{other:?}"),
    }
}

#[actix_rt::test]
async fn a_hello_is_answered_with_the_time_and_with_all_that_is_open_and_not_running() {
    let rig = Rig::new(1).await;
    let mut actions = Vec::new();
    for _ in 0..6 {
        actions.push(rig.node.resolved(json!({}), &rig.agents).await);
    }
    rig.node.resolved(json!({"delay": "1h"}), &rig.agents).await;
    rig.node.succeed(&actions[0], rig.agents[0]).await;
    // One lies at the broker already.
    rig.node.tell(&actions[1], rig.agents[0], queued(&rig)).await;
    let running = json!([{"action": actions[2].id, "run": 1}]);
    let hello = json!({"type": "hello", "version": "9", "facts": {"os": "plan9"}, "capacity": 3, "running": running,
        "clock": "2026-01-01T00:00:00.000Z"});
    assert_eq!(rig.take(hello).await, Taken::Done);
    let sent = rig.broker.sent();
    let Some(ServerFrame::Welcome(welcome)) = &sent[0].frame else { panic!("{sent:?}") };
    assert_eq!(welcome.clock.map(|clock| clock.to_string()).as_deref(), Some("2026-01-01T00:00:00.000Z"));
    let mut open: Vec<_> = sent[1..].iter().flat_map(commands).collect();
    assert!(sent[1..].iter().all(|message| commands(message).len() <= 3), "{sent:?}");
    let mut wanted: Vec<_> = [1, 3, 4, 5].map(|place: usize| actions[place].id).into();
    open.sort();
    wanted.sort();
    assert_eq!(open, wanted);
    assert_eq!(rig.node.states(&actions[2]).await, [Sent], "the agent has it");
    assert_eq!(rig.node.states(&actions[3]).await, [Pending], "a broker's confirmation is not `sent`");
    let view = async || rig.node.store.agent_view(A).await.unwrap().expect("it is there");
    until("it is online", async || view().await.status == "online").await;
    let view = view().await;
    assert_eq!((view.version.as_str(), view.facts.get()), ("9", r#"{"os":"plan9"}"#));
}

#[actix_rt::test]
async fn metadata_is_answered_when_it_is_stored() {
    let rig = Rig::new(1).await;
    let items = json!([{"key": "load", "value": 0.5}, {"key": "", "value": 1}]);
    assert_eq!(rig.take(json!({"type": "metadata", "seq": 7, "items": items})).await, Taken::Done);
    let sent = rig.broker.sent();
    let Some(ServerFrame::MetadataStored(stored)) = &sent[0].frame else { panic!("{sent:?}") };
    assert_eq!((stored.seq, stored.rejected.len()), (7, 1));
    let of = rig.node.store.metadata_of(&[A.to_owned()], None).await.unwrap();
    assert_eq!(of[0].values["load"].value.as_ref().expect("a value").get(), "0.5");
}

fn queued(rig: &Rig) -> crate::domain::command::Event {
    crate::domain::command::Event::Queued { run: 1, due_at: rig.node.store.now() }
}

#[actix_rt::test]
async fn received_and_results_are_recorded_before_they_are_acknowledged() {
    let rig = Rig::new(1).await;
    let action = rig.node.resolved(json!({}), &rig.agents).await;
    let run = json!({"action": action.id, "run": 1});
    assert_eq!(rig.take(json!({"type": "received", "commands": [run]})).await, Taken::Done);
    assert_eq!(rig.node.states(&action).await, [Sent]);
    let results = json!({"type": "results", "results": [{"action": action.id, "run": 1, "status": "succeeded"}]});
    *rig.broker.fails.lock().unwrap() = Some(CarrierError::Away("away".into()));
    assert_eq!(rig.take(results.clone()).await, Taken::Later, "`stored` did not get through");
    *rig.broker.fails.lock().unwrap() = None;
    assert_eq!(rig.take(results).await, Taken::Done);
    assert_eq!(rig.node.states(&action).await, [Succeeded]);
    let sent = rig.broker.sent();
    assert!(
        matches!(&sent[..], [FromServer { frame: Some(ServerFrame::Stored(stored)), .. }]
        if stored.commands.len() == 1 && stored.rejected.is_empty()),
        "{sent:?}"
    );
}

#[actix_rt::test]
async fn an_agent_that_has_received_what_was_cancelled_is_told_so() {
    let rig = Rig::new(1).await;
    let action = rig.node.resolved(json!({}), &rig.agents).await;
    rig.node.store.action_cancel(action.id, &me()).await.unwrap();
    rig.node.node.signals.action_cancelled(action.no, action.id);
    rig.node.tell(&action, rig.agents[0], crate::domain::command::Event::Cancelled).await;
    let over = rig.node.resolved(json!({}), &rig.agents).await;
    rig.node.succeed(&over, rig.agents[0]).await;
    let runs = json!([{"action": action.id, "run": 1}, {"action": over.id, "run": 1}]);
    assert_eq!(rig.take(json!({"type": "received", "commands": runs})).await, Taken::Done);
    let sent = rig.broker.sent();
    assert!(
        matches!(&sent[..], [FromServer { frame: Some(ServerFrame::Cancel { actions }), .. }]
        if *actions == [action.id]),
        "{sent:?}"
    );
    assert_eq!(rig.node.states(&action).await, [Cancelled]);
}

#[actix_rt::test]
async fn what_cannot_be_used_is_put_aside_with_the_reason() {
    let rig = Rig::new(2).await;
    rig.node.agents(1).await;
    let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    rig.node.store.agent_update("agent-00001", &patch, &me()).await.unwrap();
    let heartbeat = br#"{"type":"heartbeat"}"#.to_vec();
    let large = vec![b' '; MAX_MESSAGE + 1];
    for (agent, message, reason) in [
        (Some(A), b"nonsense".to_vec(), "not a frame"),
        (Some(A), vec![0xff], "not UTF-8"),
        (Some(A), large, "bytes"),
        (Some("nobody"), heartbeat.clone(), "no such agent"),
        (Some("x' OR '1"), heartbeat.clone(), "no agent's name"),
        (Some("agent-00001"), heartbeat.clone(), "disabled"),
        (None, heartbeat.clone(), "which agent"),
    ] {
        assert_eq!(rig.intake.take(agent, &message).await, Taken::Done);
        let buried = rig.buried();
        assert!(buried.len() == 1 && buried[0].0.as_deref() == agent && buried[0].1.contains(reason), "{buried:?}");
    }
    for fine in [json!({"type": "weather"}), json!({"type": "heartbeat"})] {
        assert_eq!(rig.take(fine).await, Taken::Done);
    }
    assert!(rig.buried().is_empty() && rig.broker.sent().is_empty());
    *rig.broker.fails.lock().unwrap() = Some(CarrierError::Full("full".into()));
    assert_eq!(rig.intake.take(Some(A), b"nonsense").await, Taken::Later, "it is not put aside yet");
}

#[actix_rt::test]
async fn what_the_store_refuses_is_rejected_and_what_it_cannot_take_now_comes_again() {
    let rig = Rig::new(1).await;
    let action = rig.node.resolved(json!({}), &rig.agents).await;
    rig.node.break_inserts("outcomes", "TRUE", REFUSED);
    let results = json!({"type": "results", "results": [{"action": action.id, "run": 1, "status": "failed"}]});
    assert_eq!(rig.take(results).await, Taken::Done);
    let sent = rig.broker.sent();
    assert!(
        matches!(&sent[..], [FromServer { frame: Some(ServerFrame::Stored(stored)), .. }]
        if stored.rejected.len() == 1),
        "{sent:?}"
    );
}

#[actix_rt::test]
async fn a_delivery_ends_as_the_broker_says() {
    let rig = Rig::new(1).await;
    let action = rig.node.resolved(json!({}), &rig.agents).await;
    let agent = rig.node.store.agent_contacts(&rig.agents).await.unwrap().remove(0);
    let DueCommand { due, action } = delivery(&action, rig.agents[0]);
    let delivery = Delivery { due, action, agent: agent.into() };
    let transport = BrokerTransport::new(rig.context.clone(), rig.broker.clone());
    assert!(matches!(transport.deliver(&delivery).await, Outcome::Queued));
    let sent = rig.broker.sent.lock().unwrap().remove(0);
    assert_eq!(sent.0, A);
    assert_eq!(sent.2, Some(format!("{}.{A}.1.1", delivery.action.id)));
    *rig.broker.fails.lock().unwrap() = Some(CarrierError::Away("away".into()));
    assert!(matches!(transport.deliver(&delivery).await, Outcome::Away { .. }));
    *rig.broker.fails.lock().unwrap() = Some(CarrierError::Full("full".into()));
    assert!(matches!(transport.deliver(&delivery).await, Outcome::Postponed { .. }));
    let small = Arc::new(Memory { largest: Some(100), ..Memory::default() });
    let transport = BrokerTransport::new(rig.context.clone(), small);
    assert!(matches!(transport.deliver(&delivery).await, Outcome::Failed { error, .. } if error.contains("100")));
}

#[actix_rt::test]
async fn a_cancel_goes_to_the_agents_of_the_transport_that_may_have_a_command() {
    let rig = Rig::new(3).await;
    let action = rig.node.resolved(json!({}), &rig.agents).await;
    rig.node.succeed(&action, rig.agents[0]).await;
    rig.node.sent(&action, rig.agents[1]).await;
    let transport = BrokerTransport::new(rig.context.clone(), rig.broker.clone());
    transport.cancelled(&[(action.no, action.id)]).await;
    let told: Vec<_> =
        rig.broker.sent.lock().unwrap().iter().map(|(agent, _, id)| (agent.clone(), id.clone())).collect();
    let id = |agent: &str| Some(format!("cancel.{}.{agent}", action.id));
    let mut wanted: Vec<_> = ["agent-00001", "agent-00002"].map(|agent| (agent.to_owned(), id(agent))).into();
    wanted.sort();
    let mut told = told;
    told.sort();
    assert_eq!(told, wanted);
    rig.broker.sent();
    // Nobody has anything of one that isn't valid yet.
    let later = rig.node.resolved(json!({"delay": "1h"}), &rig.agents).await;
    transport.cancelled(&[(later.no, later.id)]).await;
    assert!(rig.broker.sent().is_empty());
}
