use super::*;
use crate::domain::action::Action;
use crate::runtime::{Unstarted, Writer};
use crate::senders::stream::sessions::{Opening, SessionSink};
use crate::store::AgentPatch;
use crate::testing::{TestNode, batcher, delivery, me, supervision, until};
use serde_json::json;

/// Test → sender: compares the connections, as its timer has it do.
#[derive(Message)]
#[rtype(result = "()")]
struct Check;

impl Handler<Check> for StreamSender {
    type Result = ();

    fn handle(&mut self, _: Check, ctx: &mut Self::Context) {
        self.check(ctx);
    }
}

/// Test → sender: it crashes.
#[derive(Message)]
#[rtype(result = "()")]
struct Crash;

impl Handler<Crash> for StreamSender {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("it crashes");
    }
}

struct Fixture {
    node: TestNode,
    sender: Addr<StreamSender>,
    agents: Vec<i64>,
    tokens: Vec<Uuid>,
    action: Arc<Action>,
}

/// With two agents that have a command each, and no connection.
async fn start() -> Fixture {
    let node = TestNode::new().await;
    let agents = node.agents(2).await;
    let tokens = vec![node.token(agents[0]).await, node.token(agents[1]).await];
    let action = node.resolved(json!({}), &agents).await;
    let context = SenderContext::new(node.node.clone(), node.recorder.clone(), crate::domain::agent::STREAM);
    let sessions = SessionSink { node: node.node.clone(), opening: Opening::default() };
    let sender = StreamSender::new(context, node.node.presence.clone(), Writer::new(batcher(sessions)));
    let sender = Unstarted::default().start("stream_sender", sender, &supervision());
    Fixture { node, sender, agents, tokens, action }
}

impl Fixture {
    async fn try_connect(&self, place: usize, after: Option<i64>) -> Result<Connected, NotConnected> {
        let (agent_no, token) = (self.agents[place], self.tokens[place]);
        self.sender.send(Connect { agent_no, token, after, instance: None }).await.expect("it lives")
    }

    async fn connect(&self, place: usize) -> Connected {
        self.try_connect(place, None).await.unwrap_or_else(|why| panic!("{why:?}"))
    }

    async fn deliver(&self, places: &[usize]) {
        let deliveries = places.iter().map(|place| delivery(&self.action, self.agents[*place])).collect();
        self.sender.send(DeliverToSessions(deliveries)).await.expect("it lives");
    }

    async fn waits(&self) -> Vec<i64> {
        self.node.store.agent_with_due(&self.agents, self.node.store.now()).await.unwrap()
    }

    fn is_here(&self, place: usize) -> bool {
        self.node.node.presence.contains(self.agents[place])
    }

    async fn is_online(&self, name: &str) -> bool {
        self.node.store.agent_view(name).await.unwrap().expect("it is enrolled").status == "online"
    }

    /// Everything that was sent to the sender before has been handled.
    async fn settle(&self) {
        self.sender.send(BacklogChanged(Vec::new())).await.expect("it lives");
    }
}

/// What is in a session's inbox, in words.
fn inbox(connected: &mut Connected) -> Vec<String> {
    let told = std::iter::from_fn(|| connected.inbox.try_recv().ok());
    let word = |told| match told {
        ToSession::Commands(commands) => format!("{} commands", commands.len()),
        ToSession::Cancelled(actions) => format!("cancelled {}", actions.len()),
        ToSession::Replaced => "replaced".to_owned(),
        ToSession::Leave => "leave".to_owned(),
        ToSession::Disabled => "disabled".to_owned(),
    };
    told.map(word).collect()
}

#[actix_rt::test]
async fn a_connected_agent_gets_its_commands_and_one_that_is_away_a_waiting_row() {
    let fixture = start().await;
    let mut connected = fixture.connect(0).await;
    assert!(fixture.is_here(0) && !fixture.is_here(1));
    assert!(fixture.is_online("agent-00000").await);
    fixture.deliver(&[0, 1]).await;
    assert_eq!(inbox(&mut connected), ["1 commands"]);
    assert_eq!(fixture.waits().await, fixture.agents[1..]);
}

#[actix_rt::test]
async fn a_connection_that_is_dropped_is_signed_off() {
    let fixture = start().await;
    drop(fixture.connect(0).await);
    fixture.settle().await;
    assert!(!fixture.is_here(0));
    until("the store knows", async || !fixture.is_online("agent-00000").await).await;
    fixture.deliver(&[0]).await;
    assert_eq!(fixture.waits().await, fixture.agents[..1]);
}

#[actix_rt::test]
async fn a_newer_connection_replaces_the_one_before() {
    let fixture = start().await;
    let mut older = fixture.connect(0).await;
    let mut newer = fixture.connect(0).await;
    assert!(newer.epoch > older.epoch);
    assert_eq!(inbox(&mut older), ["replaced"]);
    assert!(older.replaced.load(Ordering::Acquire));
    drop(older);
    fixture.settle().await;
    assert!(fixture.is_here(0), "the end of the older one is not its end");
    assert!(fixture.is_online("agent-00000").await);
    fixture.deliver(&[0]).await;
    assert_eq!(inbox(&mut newer), ["1 commands"]);
}

#[actix_rt::test]
async fn a_connection_is_not_signed_on_again_beside_a_newer_one() {
    let fixture = start().await;
    let older = fixture.connect(0).await;
    let newer = fixture.connect(0).await;
    let again = fixture.try_connect(0, Some(older.epoch)).await.err();
    assert_eq!(again, Some(NotConnected::Replaced));
    assert!(fixture.try_connect(0, Some(newer.epoch)).await.is_ok(), "the newest one is");
}

#[actix_rt::test]
async fn an_agent_that_is_disabled_or_whose_token_is_revoked_is_not_let_in() {
    let fixture = start().await;
    let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    fixture.node.store.agent_update("agent-00000", &patch, &me()).await.unwrap();
    fixture.node.store.token_revoke(fixture.tokens[1], &me()).await.unwrap();
    for place in [0, 1] {
        assert_eq!(fixture.try_connect(place, None).await.err(), Some(NotConnected::NotAllowed));
        fixture.settle().await;
        assert!(!fixture.is_here(place));
    }
}

#[actix_rt::test]
async fn an_agent_that_is_disabled_is_told_and_one_that_has_no_room_finds_its_channel_closed() {
    let fixture = start().await;
    let (mut one, mut two) = (fixture.connect(0).await, fixture.connect(1).await);
    for _ in 0..SESSION_INBOX {
        fixture.deliver(&[1]).await;
    }
    fixture.agents.iter().for_each(|agent_no| fixture.sender.do_send(AgentDisabled(*agent_no)));
    fixture.settle().await;
    assert_eq!(inbox(&mut one), ["disabled"]);
    assert_eq!(inbox(&mut two).len(), SESSION_INBOX);
    assert!(two.inbox.recv().await.is_none() && two.replaced.load(Ordering::Acquire));
    assert!(!fixture.is_here(1));
}

#[actix_rt::test]
async fn commands_for_a_full_inbox_get_a_waiting_row_and_the_session_looks_for_more() {
    let fixture = start().await;
    let mut connected = fixture.connect(0).await;
    for _ in 0..SESSION_INBOX {
        fixture.deliver(&[0]).await;
    }
    assert!(!connected.more.load(Ordering::Acquire));
    assert!(fixture.waits().await.is_empty());
    fixture.deliver(&[0]).await;
    assert!(connected.more.load(Ordering::Acquire));
    assert_eq!(fixture.waits().await, fixture.agents[..1]);
    assert_eq!(inbox(&mut connected).len(), SESSION_INBOX);
}

#[actix_rt::test]
async fn a_connection_elsewhere_ends_the_one_here_only_if_it_is_newer() {
    let fixture = start().await;
    let mut connected = fixture.connect(0).await;
    let (agent_no, epoch) = (fixture.agents[0], connected.epoch);
    fixture.sender.send(SessionSuperseded(vec![(agent_no, epoch), (fixture.agents[1], 99)])).await.expect("it lives");
    assert!(inbox(&mut connected).is_empty());
    fixture.sender.send(SessionSuperseded(vec![(agent_no, epoch + 1)])).await.expect("it lives");
    assert_eq!(inbox(&mut connected), ["replaced"]);
}

#[actix_rt::test]
async fn sessions_are_told_of_cancelled_actions_and_of_a_changed_backlog() {
    let fixture = start().await;
    let (mut one, mut two) = (fixture.connect(0).await, fixture.connect(1).await);
    let cancelled = Cancelled(vec![(fixture.action.no, fixture.action.id)]);
    fixture.sender.send(cancelled).await.expect("it lives");
    fixture.sender.send(BacklogChanged(fixture.agents[..1].to_vec())).await.expect("it lives");
    assert_eq!(inbox(&mut one), ["cancelled 1", "0 commands"]);
    assert_eq!(inbox(&mut two), ["cancelled 1"]);
    assert!(one.more.load(Ordering::Acquire) && !two.more.load(Ordering::Acquire));
}

#[actix_rt::test]
async fn a_comparison_with_the_store_finds_what_nobody_told_of() {
    let fixture = start().await;
    let (mut one, mut two) = (fixture.connect(0).await, fixture.connect(1).await);
    fixture.sender.send(Check).await.expect("it lives");
    let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    fixture.node.store.agent_update("agent-00000", &patch, &me()).await.unwrap();
    fixture.node.sql("DELETE FROM agent_sessions");
    until("both are told", async || {
        fixture.sender.send(Check).await.expect("it lives");
        inbox(&mut one).contains(&"disabled".to_owned()) && two.more.load(Ordering::Acquire)
    })
    .await;
    assert_eq!(inbox(&mut two), ["0 commands"], "what came while its row was missing is in the store");
    assert!(fixture.is_online("agent-00001").await, "its row is written again");
}

#[actix_rt::test]
async fn a_comparison_with_the_store_finds_a_newer_connection_elsewhere() {
    let fixture = start().await;
    let mut connected = fixture.connect(0).await;
    fixture.node.connect(&fixture.agents[..1]).await;
    fixture.sender.send(Check).await.expect("it lives");
    until("it is told", async || inbox(&mut connected) == ["replaced"]).await;
}

#[actix_rt::test]
async fn after_a_crash_the_sessions_find_their_channels_closed_and_sign_on_again() {
    let fixture = start().await;
    let mut connected = fixture.connect(0).await;
    assert!(fixture.sender.send(Crash).await.is_err());
    assert!(connected.inbox.recv().await.is_none());
    assert!(!connected.replaced.load(Ordering::Acquire));
    fixture.settle().await;
    assert!(!fixture.is_here(0));
    let mut again = fixture.try_connect(0, Some(connected.epoch)).await.unwrap_or_else(|why| panic!("{why:?}"));
    drop(connected);
    fixture.settle().await;
    assert!(fixture.is_here(0) && fixture.is_online("agent-00000").await);
    fixture.deliver(&[0]).await;
    assert_eq!(inbox(&mut again), ["1 commands"]);
}

#[actix_rt::test]
async fn a_drain_sends_agents_elsewhere_and_waits_until_they_are_gone() {
    let fixture = start().await;
    let mut connected = fixture.connect(0).await;
    let drained = fixture.sender.send(Drain);
    fixture.settle().await;
    assert_eq!(inbox(&mut connected), ["leave"]);
    assert_eq!(fixture.try_connect(1, None).await.err(), Some(NotConnected::Away));
    let mut drained = Box::pin(drained);
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut drained).await.is_err());
    drop(connected);
    tokio::time::timeout(Duration::from_secs(30), drained).await.expect("it is answered").expect("it lives");
    fixture.sender.send(Drain).await.expect("with nobody connected it is answered at once");
}
