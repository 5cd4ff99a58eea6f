//! Connections of agents over a real socket, from `hello` to the close: greeting, session and farewell.

use super::*;
use crate::domain::action::Action;
use crate::domain::agent::MAX_DESCRIPTION;
use crate::domain::command::CommandState::{Pending, Sent, Succeeded};
use crate::domain::protocol::{MAX_FRAME, close};
use crate::runtime::{Drain, Unstarted, Writer};
use crate::senders::{Cancelled, SenderContext};
use crate::signals::BacklogChanged;
use crate::store::AgentPatch;
use crate::testing::{TestNode, batcher, delivery, me, supervision, until};
use actix::prelude::*;
use actix_web::dev::ServerHandle;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

struct Fixture {
    node: TestNode,
    sender: Addr<StreamSender>,
    agents: Vec<i64>,
    url: String,
    server: ServerHandle,
}

/// Takes a connection, as the route of the agents does when their token is checked.
async fn upgrade(
    path: web::Path<(i64, Uuid)>,
    deps: web::Data<SessionDeps>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let (agent_no, token) = path.into_inner();
    let agent = deps.node.store.agent_get(agent_no).await.unwrap().expect("an agent");
    let (response, socket, stream) = actix_ws::handle(&request, payload).expect("an upgrade");
    let stream = stream.max_frame_size(MAX_FRAME).aggregate_continuations().max_continuation_size(MAX_FRAME);
    actix_web::rt::spawn(connection::serve(deps.get_ref().clone(), agent, token, socket, stream));
    response
}

/// Two agents that may connect.
async fn start() -> Fixture {
    let node = TestNode::new().await;
    let agents = node.agents(2).await;
    let context = SenderContext::new(node.node.clone(), node.recorder.clone(), crate::domain::agent::STREAM);
    let sessions = SessionSink { node: node.node.clone(), opening: Opening::default() };
    let sender = StreamSender::new(context.clone(), node.node.presence.clone(), Writer::new(batcher(sessions)));
    let sender = Unstarted::default().start("stream_sender", sender, &supervision());
    let deps = web::Data::new(SessionDeps::new(node.node.clone(), context, sender.clone()));
    let app = move || App::new().app_data(deps.clone()).route("/{agent}/{token}", web::get().to(upgrade));
    let server = HttpServer::new(app).workers(1).disable_signals().bind(("127.0.0.1", 0)).expect("a port");
    let url = format!("ws://{}", server.addrs()[0]);
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Fixture { node, sender, agents, url, server: handle }
}

/// An agent's end of a connection.
struct Agent(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Fixture {
    async fn connect(&self, place: usize) -> Agent {
        let agent_no = self.agents[place];
        let token = self.node.token(agent_no).await;
        let (socket, _) = tokio_tungstenite::connect_async(format!("{}/{agent_no}/{token}", self.url)).await.unwrap();
        Agent(socket)
    }

    /// One that has said `hello`, with these keys changed, and was welcomed.
    async fn greeted(&self, place: usize, changes: Value) -> Agent {
        let mut agent = self.connect(place).await;
        let mut hello = json!({"type": "hello", "version": "1"});
        changes.as_object().expect("an object").iter().for_each(|(key, value)| hello[key] = value.clone());
        agent.says(hello).await;
        assert_eq!(agent.hears().await["type"], "welcome");
        agent
    }

    async fn deliver(&self, action: &Arc<Action>, place: usize) {
        self.sender.send(DeliverToSessions(vec![delivery(action, self.agents[place])])).await.expect("it lives");
    }

    async fn stop(self) {
        self.server.stop(false).await;
    }
}

impl Agent {
    async fn says(&mut self, frame: Value) {
        self.0.send(Frame::Text(frame.to_string().into())).await.expect("it is connected");
    }

    async fn frame(&mut self) -> Frame {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(30), self.0.next()).await.expect("it comes in time");
            match next.expect("it is connected").expect("a frame") {
                Frame::Ping(_) | Frame::Pong(_) => {}
                frame => return frame,
            }
        }
    }

    async fn hears(&mut self) -> Value {
        let frame = self.frame().await;
        serde_json::from_str(frame.to_text().unwrap_or_else(|_| panic!("{frame:?}"))).expect("JSON")
    }

    /// The runs of the commands that it gets next.
    async fn commands(&mut self) -> Vec<Value> {
        let frame = self.hears().await;
        assert_eq!(frame["type"], "commands", "{frame}");
        let commands = frame["commands"].as_array().expect("a list");
        commands.iter().map(|command| json!({"action": command["action"], "run": command["run"]})).collect()
    }

    async fn succeeds(&mut self, run: &Value) {
        let mut result = run.clone();
        result["status"] = "succeeded".into();
        self.says(json!({"type": "results", "results": [result]})).await;
    }

    /// The code of the error before the close, if there is one, and that of the close.
    async fn end(&mut self) -> (Option<String>, u16) {
        let mut error = None;
        loop {
            match self.frame().await {
                Frame::Close(frame) => return (error, frame.expect("a code").code.into()),
                Frame::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).expect("JSON");
                    error = error.or(frame["code"].as_str().map(str::to_owned));
                }
                _ => {}
            }
        }
    }

    /// The end, when it is closed with an error.
    async fn ends(&mut self, error: &str, code: u16) {
        assert_eq!(self.end().await, (Some(error.to_owned()), code));
    }
}

#[actix_rt::test]
async fn an_agent_gets_its_backlog_and_its_result_is_stored_before_it_is_told_so() {
    let fixture = start().await;
    let action = fixture.node.resolved(json!({}), &fixture.agents).await;
    let mut agent = fixture.greeted(0, json!({})).await;
    let runs = agent.commands().await;
    assert_eq!(runs, [json!({"action": action.id, "run": 1})]);
    agent.says(json!({"type": "received", "commands": runs})).await;
    agent.succeeds(&runs[0]).await;
    let stored = agent.hears().await;
    assert_eq!((&stored["type"], &stored["commands"]), (&json!("stored"), &json!(runs)));
    assert_eq!(fixture.node.states(&action).await, [Succeeded, Pending]);
    fixture.stop().await;
}

#[actix_rt::test]
async fn a_command_from_the_scheduler_is_delivered_once() {
    let fixture = start().await;
    let mut agent = fixture.greeted(0, json!({})).await;
    let action = fixture.node.resolved(json!({}), &fixture.agents).await;
    fixture.deliver(&action, 0).await;
    assert_eq!(agent.commands().await.len(), 1);
    fixture.deliver(&action, 0).await;
    let other = fixture.node.resolved(json!({}), &fixture.agents).await;
    fixture.deliver(&other, 0).await;
    assert_eq!(agent.commands().await, [json!({"action": other.id, "run": 1})]);
    fixture.stop().await;
}

#[actix_rt::test]
async fn an_agent_with_room_for_one_gets_the_next_command_after_its_result() {
    let fixture = start().await;
    for _ in 0..3 {
        fixture.node.resolved(json!({}), &fixture.agents).await;
    }
    let mut agent = fixture.greeted(0, json!({"capacity": 1})).await;
    for _ in 0..3 {
        let runs = agent.commands().await;
        assert_eq!(runs.len(), 1);
        agent.succeeds(&runs[0]).await;
        assert_eq!(agent.hears().await["type"], "stored");
    }
    fixture.stop().await;
}

#[actix_rt::test]
async fn first_frames_that_are_no_valid_hello_end_the_connection() {
    let fixture = start().await;
    let large = "x".repeat(MAX_DESCRIPTION + 1);
    let cases = [
        (json!({"type": "received", "commands": []}), "no-hello"),
        (json!({"type": "hello", "capacity": "many"}), "no-hello"),
        (json!({"type": "hello", "facts": {"large": large}}), "facts-too-large"),
        (json!({"type": "hello", "version": "x".repeat(129)}), "facts-too-large"),
    ];
    for (frame, error) in cases {
        let mut agent = fixture.connect(0).await;
        agent.says(frame).await;
        agent.ends(error, close::MALFORMED).await;
    }
    let mut agent = fixture.connect(0).await;
    agent.0.send(Frame::Binary(vec![1].into())).await.expect("it is connected");
    agent.ends("no-hello", close::MALFORMED).await;
    assert!(fixture.node.node.presence.is_empty());
    fixture.stop().await;
}

#[actix_rt::test]
async fn an_agent_that_is_disabled_is_not_greeted_and_is_cut_off_while_it_is_connected() {
    let fixture = start().await;
    let mut agent = fixture.greeted(0, json!({})).await;
    let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
    fixture.node.store.agent_update("agent-00000", &patch, &me()).await.unwrap();
    fixture.sender.do_send(crate::signals::AgentDisabled(fixture.agents[0]));
    agent.ends("not-allowed", close::NOT_ALLOWED).await;
    let mut agent = fixture.connect(0).await;
    agent.says(json!({"type": "hello"})).await;
    agent.ends("disabled", close::NOT_ALLOWED).await;
    fixture.stop().await;
}

#[actix_rt::test]
async fn a_token_that_was_revoked_after_it_was_checked_is_refused() {
    let fixture = start().await;
    let token = fixture.node.token(fixture.agents[0]).await;
    fixture.node.store.token_revoke(token, &me()).await.unwrap();
    let url = format!("{}/{}/{token}", fixture.url, fixture.agents[0]);
    let mut agent = Agent(tokio_tungstenite::connect_async(url).await.unwrap().0);
    agent.says(json!({"type": "hello"})).await;
    agent.ends("not-allowed", close::NOT_ALLOWED).await;
    fixture.stop().await;
}

#[actix_rt::test]
async fn facts_that_have_changed_may_let_the_agent_join_live_actions() {
    let fixture = start().await;
    let facts = json!({"facts": {"os": "l\u{0}inux"}});
    drop(fixture.greeted(0, facts.clone()).await);
    assert!(fixture.node.has_heard("live_join: wake").await);
    let view = fixture.node.store.agent_view("agent-00000").await.unwrap().expect("it is enrolled");
    assert_eq!((view.version.as_str(), view.facts.get()), ("1", r#"{"os":"l\ufffdinux"}"#));
    drop(fixture.greeted(0, facts).await);
    assert!(!fixture.node.has_heard("live_join: wake").await, "it has said just that before");
    fixture.stop().await;
}

#[actix_rt::test]
async fn frames_that_are_wrong_end_the_connection_and_those_of_later_versions_do_not() {
    let fixture = start().await;
    for (frame, error) in [
        (Frame::Text("{".into()), "malformed"),
        (Frame::Text(json!({"type": "hello"}).to_string().into()), "second-hello"),
        (Frame::Binary(vec![1].into()), "binary"),
    ] {
        let mut agent = fixture.greeted(0, json!({})).await;
        agent.says(json!({"type": "of a later version"})).await;
        agent.0.send(frame).await.expect("it is connected");
        agent.ends(error, close::MALFORMED).await;
    }
    let mut agent = fixture.greeted(0, json!({})).await;
    agent.says(json!({"type": "error", "code": "full", "message": "no disk"})).await;
    assert_eq!(agent.end().await, (None, close::DONE));
    fixture.stop().await;
}

#[actix_rt::test]
async fn a_newer_connection_ends_the_one_before_and_gets_what_that_had() {
    let fixture = start().await;
    let action = fixture.node.resolved(json!({}), &fixture.agents).await;
    let mut older = fixture.greeted(0, json!({})).await;
    let runs = older.commands().await;
    let mut newer = fixture.greeted(0, json!({})).await;
    older.ends("replaced", close::REPLACED).await;
    // It may have read its backlog before; then it is told, as the board would do.
    let backlog = format!("stream: backlog {:?}", &fixture.agents[..1]);
    until("what was in hand is written", async || fixture.node.has_heard(&backlog).await).await;
    fixture.sender.do_send(BacklogChanged(fixture.agents[..1].to_vec()));
    assert_eq!(newer.commands().await, runs);
    assert_eq!(fixture.node.states(&action).await, [Pending, Pending]);
    fixture.stop().await;
}

#[actix_rt::test]
async fn an_agent_is_told_of_the_cancelled_actions_that_it_has() {
    let fixture = start().await;
    let action = fixture.node.resolved(json!({}), &fixture.agents).await;
    let mut agent = fixture.greeted(0, json!({})).await;
    agent.commands().await;
    fixture.sender.send(Cancelled(vec![(99, Uuid::nil()), (action.no, action.id)])).await.expect("it lives");
    let cancel = agent.hears().await;
    assert_eq!((&cancel["type"], &cancel["actions"]), (&json!("cancel"), &json!([action.id])));
    fixture.stop().await;
}

#[actix_rt::test]
async fn runs_that_an_agent_has_from_before_are_taken_in_and_unknown_ones_are_cancelled() {
    let fixture = start().await;
    let action = fixture.node.resolved(json!({}), &fixture.agents).await;
    let unknown = Uuid::from_u128(9);
    let running = json!([{"action": action.id, "run": 1}, {"action": unknown, "run": 1}]);
    let mut agent = fixture.greeted(0, json!({"running": running})).await;
    let cancel = agent.hears().await;
    assert_eq!((&cancel["type"], &cancel["actions"]), (&json!("cancel"), &json!([unknown])));
    until("it is taken in", async || fixture.node.states(&action).await == [Sent, Pending]).await;
    agent.succeeds(&json!({"action": action.id, "run": 1})).await;
    assert_eq!(agent.hears().await["type"], "stored");
    assert_eq!(fixture.node.states(&action).await, [Succeeded, Pending]);
    fixture.stop().await;
}

#[actix_rt::test]
async fn a_run_that_was_decided_while_its_agent_was_away_is_cancelled() {
    let fixture = start().await;
    let action = fixture.node.resolved(json!({}), &fixture.agents).await;
    fixture.node.succeed(&action, fixture.agents[0]).await;
    let running = json!([{"action": action.id, "run": 1}]);
    let mut agent = fixture.greeted(0, json!({"running": running})).await;
    assert_eq!(agent.hears().await["actions"], json!([action.id]));
    fixture.stop().await;
}

#[actix_rt::test]
async fn a_result_of_an_action_that_is_not_there_or_that_is_not_the_agents_is_rejected() {
    let fixture = start().await;
    let action = fixture.node.resolved(json!({}), &fixture.agents[1..]).await;
    let mut agent = fixture.greeted(0, json!({})).await;
    for id in [Uuid::from_u128(9), action.id] {
        agent.succeeds(&json!({"action": id, "run": 1})).await;
        let stored = agent.hears().await;
        assert_eq!((&stored["type"], &stored["commands"]), (&json!("stored"), &json!([])));
        assert_eq!(stored["rejected"][0]["action"], json!(id));
    }
    fixture.stop().await;
}

#[actix_rt::test]
async fn an_agent_that_is_wrong_about_the_time_is_told_the_servers() {
    let fixture = start().await;
    fixture.node.resolved(json!({}), &fixture.agents).await;
    let mut agent = fixture.greeted(0, json!({})).await;
    let mut result = agent.commands().await.remove(0);
    result["status"] = "expired".into();
    agent.says(json!({"type": "results", "results": [result]})).await;
    let stored = agent.hears().await;
    let reason = stored["rejected"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("it has not expired: the server's time is 2"), "{reason}");
    fixture.stop().await;
}

#[actix_rt::test]
async fn what_is_unfinished_when_a_connection_breaks_is_in_the_store() {
    let fixture = start().await;
    let (one, two) = (
        fixture.node.resolved(json!({"priority": 1}), &fixture.agents).await,
        fixture.node.resolved(json!({}), &fixture.agents).await,
    );
    let mut agent = fixture.greeted(0, json!({})).await;
    let runs = agent.commands().await;
    agent.says(json!({"type": "received", "commands": [runs[0]]})).await;
    // It is answered after `received`, so that is handled.
    agent.succeeds(&json!({"action": Uuid::from_u128(9), "run": 1})).await;
    agent.hears().await;
    drop(agent);
    until("it is written", async || fixture.node.states(&one).await == [Sent, Pending]).await;
    until("the other one waits", async || {
        fixture.node.store.agent_with_due(&fixture.agents, fixture.node.store.now()).await.unwrap()
            == fixture.agents[..1]
    })
    .await;
    assert_eq!(fixture.node.states(&two).await, [Pending, Pending]);
    until("it is signed off", async || fixture.node.node.presence.is_empty()).await;
    fixture.stop().await;
}

#[actix_rt::test]
async fn a_server_that_stops_sends_its_agents_elsewhere() {
    let fixture = start().await;
    let mut agent = fixture.greeted(0, json!({})).await;
    let drained = fixture.sender.send(Drain);
    assert_eq!(agent.end().await, (None, close::GOING_AWAY));
    drop(agent);
    tokio::time::timeout(Duration::from_secs(30), drained).await.expect("it is answered").expect("it lives");
    let mut late = fixture.connect(1).await;
    late.says(json!({"type": "hello"})).await;
    assert_eq!(late.end().await, (None, close::GOING_AWAY));
    fixture.stop().await;
}
