use super::server::Server;
use super::*;
use crate::agent::{Agent, AgentConfig, AgentError, BackoffConfig};
use crate::domain::protocol::{AgentFrame, Rejected, RunStatus, ServerFrame, Stored, close};
use crate::domain::time::Span;
use futures_util::SinkExt;
use std::path::Path;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

struct Running {
    at_gate: mpsc::UnboundedReceiver<AtGate>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Running {
    async fn next_at_gate(&mut self) -> AtGate {
        soon(self.at_gate.recv()).await.expect("somebody at the gate")
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        soon(self.task).await.expect("no panic").expect("a good end");
    }

    /// Simulates `kill -9`.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn config(server: &Server, dir: &Path) -> AgentConfig {
    AgentConfig {
        server: server.url.clone(),
        name: "a".into(),
        labels: Some([("role".to_owned(), "web".to_owned())].into()),
        token: Some("enroll".to_owned().into()),
        state_dir: dir.join("state"),
        capacity: 4,
        backoff: BackoffConfig { min: Span::millis(1), max: Span::millis(20) },
        ..AgentConfig::default()
    }
}

fn start_with(config: AgentConfig) -> Running {
    let (gate, at_gate, _) = Gate::new();
    let (stop, stopped) = oneshot::channel();
    let agent = Agent::new(config).expect("a valid configuration").with_module("gate", gate);
    let task = tokio::spawn(agent.run(async { _ = stopped.await }));
    Running { at_gate, stop, task }
}

fn start(server: &Server, dir: &Path) -> Running {
    start_with(config(server, dir))
}

#[tokio::test]
async fn it_enrolls_once_and_refreshes_its_labels_with_its_own_token_later() {
    let (dir, mut server) = (folder(), Server::start().await);
    for token in ["enroll", "own"] {
        let agent = start(&server, dir.path());
        let (head, body) = soon(server.enrolled.recv()).await.expect("enrolling");
        assert!(head.contains(&format!("authorization: bearer {token}")), "{head}");
        assert_eq!((&body["name"], &body["labels"]["role"]), (&"a".into(), &"web".into()));
        let peer = server.session().await;
        assert_eq!((peer.bearer.as_str(), peer.hello.capacity), ("Bearer own", 4));
        let facts = peer.hello.facts.as_ref().expect("facts");
        assert!(facts.text_at(&["os".to_owned()]).is_some());
        drop(peer);
        agent.stop().await;
        *server.answer.lock().expect("not poisoned") = (200, r#"{"agent":"a"}"#.into());
    }
}

#[tokio::test]
async fn a_name_that_is_taken_ends_it_and_a_server_that_is_not_ready_does_not() {
    let (dir, mut server) = (folder(), Server::start().await);
    *server.answer.lock().expect("not poisoned") = (503, "{}".into());
    let agent = start(&server, dir.path());
    for _ in 0..3 {
        soon(server.enrolled.recv()).await.expect("another attempt");
    }
    *server.answer.lock().expect("not poisoned") = (409, r#"{"title":"Conflict","detail":"a exists"}"#.into());
    let error = soon(agent.task).await.expect("no panic").expect_err("nothing to do here");
    assert_eq!(error.to_string(), "agent \"a\" can't enroll: the name is taken: a exists");
}

#[tokio::test]
async fn a_result_is_sent_again_after_every_reconnect_until_it_is_stored() {
    let (dir, mut server) = (folder(), Server::start().await);
    let mut agent = start(&server, dir.path());
    let mut peer = server.session().await;
    peer.commands([command(1)]).await;
    assert_eq!(peer.received().await, [run_ref(1)]);
    agent.next_at_gate().await.end(true);
    let first = peer.results().await;
    assert_eq!((first.len(), first[0].status), (1, RunStatus::Succeeded));
    drop(peer);
    // Another connection, then another process after a crash, and then the result is stored.
    let mut peer = server.session().await;
    assert_eq!(peer.hello.running, [run_ref(1)]);
    assert_eq!(peer.results().await[0].run_ref(), run_ref(1));
    agent.kill().await;
    let agent = start(&server, dir.path());
    let mut peer = server.session().await;
    assert_eq!(peer.results().await[0].finished_at, first[0].finished_at);
    peer.stored(vec![run_ref(1)]).await;
    // Answered after `stored` was read.
    peer.commands([with_operations(2, r#"[{"module":"ping"}]"#)]).await;
    assert_eq!(peer.received().await, [run_ref(2)]);
    drop(peer);
    let mut peer = server.session().await;
    assert_eq!(peer.hello.running, [run_ref(2)]);
    let results = peer.results().await;
    assert_eq!(results.iter().map(|result| result.run_ref()).collect::<Vec<_>>(), [run_ref(2)]);
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn a_repeat_is_answered_from_the_journal_even_after_a_crash() {
    let (dir, mut server) = (folder(), Server::start().await);
    let mut agent = start(&server, dir.path());
    let mut peer = server.session().await;
    peer.commands([command(1), command(2)]).await;
    assert_eq!(peer.received().await, [run_ref(1), run_ref(2)]);
    let at_gate = agent.next_at_gate().await;
    assert_eq!(at_gate.name, "1");
    at_gate.end(true);
    let result = peer.results().await.remove(0);
    peer.stored(vec![run_ref(1)]).await;
    peer.commands([command(1), command(2)]).await;
    // The order of the two frames is not defined.
    let (mut repeated, mut received) = (Vec::new(), Vec::new());
    while repeated.is_empty() || received.is_empty() {
        match peer.frame().await {
            AgentFrame::Received { commands } => received = commands,
            AgentFrame::Results { results } => repeated = results,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, [run_ref(2)]);
    assert_eq!(repeated[0].finished_at, result.finished_at);
    agent.kill().await;
    let mut agent = start(&server, dir.path());
    let mut peer = server.session().await;
    let interrupted = peer.results().await.remove(0);
    assert_eq!((interrupted.run_ref(), interrupted.status), (run_ref(2), RunStatus::Failed));
    assert_eq!(interrupted.results[0].error.as_deref(), Some("interrupted"));
    peer.commands([command(1)]).await;
    assert_eq!(peer.results().await[0].finished_at, result.finished_at);
    assert!(agent.at_gate.try_recv().is_err(), "neither ran again");
    drop(peer);
    agent.stop().await;
}

fn nonce_of((head, _): &(String, serde_json::Value)) -> Option<&str> {
    head.lines().find_map(|line| line.strip_prefix("idempotency-key: "))
}

#[tokio::test]
async fn an_enroll_answer_that_got_lost_is_asked_for_under_the_same_nonce_also_after_a_crash() {
    let (dir, mut server) = (folder(), Server::start().await);
    let nonce_file = dir.path().join("state/enroll.nonce");
    *server.answer.lock().expect("not poisoned") = (0, String::new());
    let mut agent = start(&server, dir.path());
    let first = soon(server.enrolled.recv()).await.expect("a call");
    let nonce = nonce_of(&first).expect("a nonce").to_owned();
    assert_eq!(std::fs::read_to_string(&nonce_file).expect("it is on disk").trim(), nonce);
    let second = soon(server.enrolled.recv()).await.expect("another call");
    assert_eq!(nonce_of(&second), Some(nonce.as_str()));
    agent.kill().await;
    agent = start(&server, dir.path());
    *server.answer.lock().expect("not poisoned") = (201, r#"{"agent":"a","token":"own"}"#.to_owned());
    let peer = server.session().await;
    assert_eq!(peer.bearer, "Bearer own");
    while let Ok(call) = server.enrolled.try_recv() {
        assert_eq!(nonce_of(&call), Some(nonce.as_str()));
    }
    soon(async {
        while nonce_file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn a_token_that_a_repeated_call_took_back_is_replaced() {
    let (dir, mut server) = (folder(), Server::start().await);
    // The answer arrived, but the token hasn't been used on the server yet.
    let state = dir.path().join("state");
    std::fs::create_dir(&state).expect("made");
    std::fs::write(state.join("token"), "taken-back\n").expect("written");
    std::fs::write(state.join("enroll.nonce"), "a-nonce\n").expect("written");
    server.first.lock().expect("not poisoned").push_back((401, "{}".to_owned()));
    let agent = start(&server, dir.path());
    let call = soon(server.enrolled.recv()).await.expect("a call");
    assert!(call.0.contains("bearer taken-back") && nonce_of(&call).is_none(), "{}", call.0);
    let call = soon(server.enrolled.recv()).await.expect("another call");
    assert_eq!(nonce_of(&call), Some("a-nonce"));
    let peer = server.session().await;
    assert_eq!(peer.bearer, "Bearer own");
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn expiry_is_judged_by_the_clock_of_the_server() {
    let (dir, mut server) = (folder(), Server::start().await);
    let agent = start(&server, dir.path());
    let mut peer = server.connection().await;
    let now = Timestamp::of_this_machine();
    peer.welcome(now.minus(Duration::from_secs(7_200))).await;
    let ping = |n, expires_at| Command { expires_at, ..with_operations(n, r#"[{"module":"ping"}]"#) };
    let earlier = |secs| now.minus(Duration::from_secs(secs));
    peer.commands([ping(1, earlier(7_201)), ping(2, earlier(3_600))]).await;
    let (mut received, mut statuses) = (Vec::new(), Vec::new());
    while statuses.len() < 2 {
        match peer.frame().await {
            AgentFrame::Received { commands } => received.extend(commands),
            AgentFrame::Results { results } => {
                statuses.extend(results.into_iter().map(|result| (result.run_ref(), result.status)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, [run_ref(2)], "an hour past here, an hour to go there");
    statuses.sort_by_key(|(run, _)| *run);
    assert_eq!(statuses, [(run_ref(1), RunStatus::Expired), (run_ref(2), RunStatus::Succeeded)]);
    // When a server rejects an expiry, the agent asks it for the time again.
    let RunRef { action, run } = run_ref(1);
    let rejected = vec![Rejected { action, run, reason: "it has not expired".into() }];
    peer.send(&ServerFrame::Stored(Stored { commands: vec![run_ref(2)], rejected })).await;
    peer.closed().await;
    let mut peer = server.connection().await;
    peer.welcome(now.minus(Duration::from_secs(10_000))).await;
    peer.commands([ping(1, earlier(7_201))]).await;
    loop {
        match peer.frame().await {
            AgentFrame::Received { commands } => break assert_eq!(commands, [run_ref(1)]),
            // The other result's `stored` may not have been written before the connection ended.
            AgentFrame::Results { results } => assert_eq!(results[0].run_ref(), run_ref(2)),
            other => panic!("{other:?}"),
        }
    }
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn a_server_that_goes_away_is_left_at_once() {
    let (dir, mut server) = (folder(), Server::start().await);
    let patient = BackoffConfig { min: Span::days(1), max: Span::days(2) };
    let agent = start_with(AgentConfig { backoff: patient, ..config(&server, dir.path()) });
    for _ in 0..3 {
        server.session().await.close(close::GOING_AWAY).await;
    }
    server.session().await;
    agent.stop().await;
}

#[tokio::test]
async fn results_that_do_not_fit_into_one_frame_are_sent_in_several() {
    let (dir, mut server) = (folder(), Server::start().await);
    let agent = start(&server, dir.path());
    let mut peer = server.session().await;
    let large = format!(r#"[{{"module":"ping","parameters":"{}"}}]"#, "x".repeat(1_500_000));
    for n in 1..=5 {
        peer.commands([with_operations(n, &large)]).await;
        while !matches!(peer.frame().await, AgentFrame::Results { .. }) {}
    }
    drop(peer);
    let mut peer = server.session().await;
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 5 {
        sizes.push(peer.results().await.len());
    }
    assert_eq!(sizes, [2, 2, 1]);
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn a_frame_that_makes_no_sense_closes_the_connection_and_an_unknown_one_does_not() {
    let (dir, mut server) = (folder(), Server::start().await);
    let agent = start(&server, dir.path());
    for nonsense in [
        Message::text("nonsense"),
        Message::text(r#"{"type":"commands"}"#),
        Message::binary(vec![1]),
        Message::text("x".repeat(crate::domain::protocol::MAX_FRAME + 1)),
    ] {
        let mut peer = server.session().await;
        peer.socket.send(Message::text(r#"{"type":"weather"}"#)).await.expect("sent");
        // The agent may close before it has read everything.
        let _ = peer.socket.send(nonsense).await;
        assert!(matches!(peer.frame().await, AgentFrame::Error(_)));
        assert_eq!(u16::from(peer.closed().await.code), close::MALFORMED);
    }
    server.session().await;
    agent.stop().await;
}

#[tokio::test]
async fn more_than_it_can_take_closes_the_connection() {
    let (dir, mut server) = (folder(), Server::start().await);
    let agent = start(&server, dir.path());
    let mut peer = server.session().await;
    peer.commands((1..=17).map(command)).await;
    let error = loop {
        match peer.frame().await {
            AgentFrame::Error(error) => break error,
            AgentFrame::Received { commands } => assert_eq!(commands.len(), 16),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error.code, "too_many_commands");
    assert_eq!(server.session().await.hello.running.len(), 16);
    drop(peer);
    agent.stop().await;
}

#[tokio::test]
async fn a_stop_reports_what_it_interrupts_and_says_goodbye() {
    let (dir, mut server) = (folder(), Server::start().await);
    let mut agent = start(&server, dir.path());
    let mut peer = server.session().await;
    peer.commands([command(1), command(2)]).await;
    peer.received().await;
    let _first = agent.next_at_gate().await;
    let _second = agent.next_at_gate().await;
    peer.send(&ServerFrame::Cancel { actions: vec![Uuid::from_u128(2)] }).await;
    assert_eq!(peer.results().await[0].results[0].error.as_deref(), Some("cancelled"));
    let goodbye = async {
        let results = peer.results().await;
        assert_eq!(results[0].results[0].error.as_deref(), Some("interrupted"));
        assert_eq!(u16::from(peer.closed().await.code), close::DONE);
    };
    tokio::join!(agent.stop(), goodbye);
}

#[tokio::test]
async fn a_check_in_takes_what_is_due_runs_it_and_reports_it() {
    let (dir, mut server) = (folder(), Server::start().await);
    let once =
        || Agent::new(config(&server, dir.path())).expect("a valid configuration").run_once(std::future::pending());
    let due = |commands: Vec<Command>| {
        let server_time = Timestamp::of_this_machine();
        (200, serde_json::json!({"commands": commands, "server_time": server_time}).to_string())
    };
    let stored = |n| (200, serde_json::json!({"commands": [run_ref(n)]}).to_string());
    let ping = |n| with_operations(n, r#"[{"module":"ping","parameters":1}]"#);
    let script = |answers: Vec<(u16, String)>| *server.check_in.lock().expect("not poisoned") = answers.into();

    // The first check-in breaks off after the run; the second reports it and fetches another.
    script(vec![due(vec![ping(1)]), (200, String::new()), (503, "{}".into())]);
    let error = soon(once()).await.expect_err("the result is not taken");
    assert!(matches!(error, AgentError::CheckIn(_)), "{error}");
    script(vec![stored(1), due(vec![ping(2)]), (200, String::new()), stored(2), due(vec![ping(2)])]);
    assert_eq!(soon(once()).await.expect("a good end"), 2);
    script(vec![due(vec![])]);
    assert_eq!(soon(once()).await.expect("a good end"), 0);

    let mut asked = Vec::new();
    while let Ok((head, body)) = server.enrolled.try_recv() {
        let path = head.split(' ').nth(1).expect("a path").split('?').next().expect("a path").to_owned();
        asked.push(path.rsplit('/').next().expect("its end").to_owned());
        if path.ends_with("results") {
            assert_eq!(body["results"][0]["results"][0]["output"], 1);
        }
    }
    let expected = "enroll commands received results \
        enroll results commands received results commands \
        enroll commands";
    assert_eq!(asked.join(" "), expected);
}
