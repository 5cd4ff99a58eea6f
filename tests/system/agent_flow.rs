//! How much an agent gets, in which order, and what becomes of what it doesn't answer.

use crate::support::{AgentProcess, On, Server, WireAgent, eventually, success};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn document(extra: Value) -> Value {
    let mut document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    for (key, value) in extra.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

async fn server_with(on: On, agent: &str) -> (Server, String) {
    let server = Server::start(on.options()).await;
    let token = server.enroll(agent, json!({})).await;
    (server, token)
}

/// The next command, which must be the only one in its frame.
async fn one(agent: &mut WireAgent) -> Value {
    let mut commands = agent.commands().await;
    assert_eq!(commands.len(), 1, "{commands:?}");
    commands.remove(0)
}

fn refer(command: &Value) -> Value {
    json!({ "action": command["action"], "run": command["run"] })
}

async fn received(agent: &mut WireAgent, command: &Value) {
    agent.send(json!({ "type": "received", "commands": [refer(command)] })).await;
}

pub async fn an_agent_never_has_more_than_its_capacity_and_the_urgent_goes_first(on: On) {
    const CAPACITY: usize = 3;
    let (server, token) = server_with(on, "small").await;
    let mut agent = WireAgent::hello(&server.url, &token, CAPACITY as u32).await;
    let mut unfinished: Vec<Value> = Vec::new();
    for n in 0..CAPACITY {
        server.submit(document(json!({ "name": format!("first {n}") }))).await;
    }
    while unfinished.len() < CAPACITY {
        unfinished.extend(agent.commands().await);
    }
    let mut ids = Vec::new();
    for priority in [0, -100, 5, 100, 5, -1, 0, 99] {
        let id = server.submit(document(json!({ "priority": priority, "name": format!("p{priority}") }))).await;
        server.until_status(&id, "running").await;
        ids.push(id);
    }
    // All of them wait at the desk when the session has written down what it has for longer than a moment.
    for command in &unfinished {
        received(&mut agent, command).await;
    }
    let open = (CAPACITY + ids.len()) as i64;
    crate::support::eventually("all of them at the desk", || async {
        (server.sql().number("SELECT count(*) AS n FROM open_commands") == open).then_some(())
    })
    .await;
    let mut order = Vec::new();
    for _ in 0..ids.len() {
        let finished = unfinished.remove(0);
        agent.succeed(&finished).await;
        let next = one(&mut agent).await;
        received(&mut agent, &next).await;
        order.push(next["priority"].as_i64().unwrap());
        unfinished.push(next);
        assert_eq!(unfinished.len(), CAPACITY);
    }
    assert_eq!(order, [100, 99, 5, 5, 0, 0, -1, -100]);
}

pub async fn what_an_agent_says_it_runs_is_not_delivered_again(on: On) {
    let (server, token) = server_with(on, "back").await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let running = server.submit(document(json!({}))).await;
    let command = one(&mut agent).await;
    received(&mut agent, &command).await;
    crate::support::eventually("it to be sent", || async {
        (server.action(&running).await["counts"]["sent"] == 1).then_some(())
    })
    .await;
    drop(agent);
    let fresh = server.submit(document(json!({}))).await;
    let mut agent = WireAgent::connect(&server.url, &token).await;
    let unknown = json!({ "action": "00000000-0000-4000-8000-000000000000", "run": 1 });
    agent.send(json!({ "type": "hello", "capacity": 16, "running": [refer(&command), unknown] })).await;
    assert_eq!(
        agent.expect("cancel").await["actions"],
        json!([unknown["action"]]),
        "what nobody knows is to be stopped"
    );
    let next = one(&mut agent).await;
    assert_eq!(next["action"], *fresh, "the other one is the agent's already");
    agent.succeed(&next).await;
    agent.succeed(&command).await;
    for id in [&running, &fresh] {
        assert_eq!(server.until_status(id, "completed").await["counts"]["succeeded"], 1);
    }
}

pub async fn a_failed_run_is_followed_by_another_up_to_max_runs(on: On) {
    let (server, token) = server_with(on, "clumsy").await;
    let mut agent = WireAgent::hello(&server.url, &token, 1).await;
    let id = server.submit(document(json!({ "max_runs": 2 }))).await;
    for run in 1..=2 {
        let command = one(&mut agent).await;
        assert_eq!((&command["action"], &command["run"], &command["attempt"]), (&json!(id), &json!(run), &json!(1)));
        let mut result = success(&command);
        result["status"] = "failed".into();
        agent.send(json!({ "type": "results", "results": [result] })).await;
    }
    assert_eq!(server.until_status(&id, "completed").await["counts"]["failed"], 1);
    assert_eq!(server.commands(&id).await[0]["runs"], 2);
}

pub async fn a_cancel_reaches_the_agent_and_is_final(on: On) {
    let (server, token) = server_with(on, "told").await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let id = server.submit(document(json!({}))).await;
    let command = one(&mut agent).await;
    received(&mut agent, &command).await;
    assert_eq!(server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await.0, 200);
    assert_eq!(agent.expect("cancel").await["actions"], json!([id]));
    crate::support::eventually("the cancelled outcome", || async {
        (server.action(&id).await["counts"]["cancelled"] == 1).then_some(())
    })
    .await;
    agent.succeed(&command).await;
    let stored = agent.expect("stored").await;
    assert_eq!((&stored["commands"], &stored["rejected"]), (&json!([refer(&command)]), &json!([])), "a late result");
    let view = server.action(&id).await;
    assert_eq!((&view["status"], &view["counts"]["succeeded"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(server.commands(&id).await[0]["status"], "cancelled");
}

pub async fn a_run_that_a_cancel_killed_is_cancelled_and_not_run_again(on: On) {
    let server = Server::start(on.options()).await;
    let enroll = server.enroll_token().await;
    let _agent = AgentProcess::start(&server.url, "killed", &[], server.folder.path(), &enroll);
    let argv = json!(["sh", "-c", "echo run >> $AGENT_FOLDER/runs; exec sleep 600"]);
    let operations = json!([{ "module": "exec", "parameters": { "argv": argv } }]);
    let runs = || std::fs::read_to_string(server.folder.path().join("killed/runs")).unwrap_or_default().lines().count();
    eventually("the agent to be there", || async {
        let (_, view) = server.call("GET", "/v1/agents/killed", None).await;
        (view["status"] == "online").then_some(())
    })
    .await;
    for (number, max_runs) in [(1, 1), (2, 3)] {
        let id = server.submit(document(json!({ "operations": operations, "max_runs": max_runs }))).await;
        eventually("the run to begin", || async { (runs() == number).then_some(()) }).await;
        assert_eq!(server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await.0, 200);
        eventually("the command to end", || async {
            let counts = server.action(&id).await["counts"].clone();
            (counts["pending"] == 0 && counts["sent"] == 0).then_some(())
        })
        .await;
        let command = server.commands(&id).await.remove(0);
        assert_eq!(command["status"], "cancelled", "up to {max_runs} runs: {command}");
        let (status, again) = server.call("POST", &format!("/v1/actions/{id}/retry"), None).await;
        assert_eq!(status, 202, "{again}");
        let again = server.until_status(again["id"].as_str().unwrap(), "completed").await;
        assert_eq!(again["counts"]["total"], 0, "nothing is tried again");
        assert_eq!(runs(), number);
    }
}

pub async fn a_cancelled_result_counts_only_when_the_action_was_cancelled(on: On) {
    let (server, token) = server_with(on, "says").await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let cancelled = |command: &Value| {
        let mut result = success(command);
        result["status"] = "cancelled".into();
        result["results"][0]["ok"] = false.into();
        json!({ "type": "results", "results": [result] })
    };
    let nobody = server.submit(document(json!({ "max_runs": 2 }))).await;
    for run in 1..=2 {
        let command = one(&mut agent).await;
        assert_eq!(command["run"], run, "nobody cancelled it");
        agent.send(cancelled(&command)).await;
    }
    assert_eq!(server.until_status(&nobody, "completed").await["counts"]["failed"], 1);
    let somebody = server.submit(document(json!({ "max_runs": 2 }))).await;
    let command = one(&mut agent).await;
    assert_eq!(server.call("POST", &format!("/v1/actions/{somebody}/cancel"), None).await.0, 200);
    agent.send(cancelled(&command)).await;
    eventually("the cancelled outcome", || async {
        (server.action(&somebody).await["counts"]["cancelled"] == 1).then_some(())
    })
    .await;
}

pub async fn a_command_for_an_agent_that_stays_away_expires_after_the_grace(on: On) {
    let (server, token) = server_with(on, "away").await;
    let id = server.submit(document(json!({ "expires_after": "10s" }))).await;
    let view = server.until_status(&id, "completed").await;
    assert_eq!((&view["counts"]["total"], &view["counts"]["expired"]), (&json!(1), &json!(1)));
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let next = server.submit(document(json!({}))).await;
    assert_eq!(one(&mut agent).await["action"], *next, "never delivered after its expiry");
}

pub async fn who_takes_a_command_and_never_answers_has_timed_out_and_gets_the_next_one(on: On) {
    let (server, token) = server_with(on, "silent").await;
    let mut agent = WireAgent::hello(&server.url, &token, 1).await;
    let id = server.submit(document(json!({ "timeout": "1s" }))).await;
    let command = one(&mut agent).await;
    let started = Instant::now();
    received(&mut agent, &command).await;
    let next = server.submit(document(json!({}))).await;
    let view = server.until_status(&id, "completed").await;
    assert!(started.elapsed() > Duration::from_secs(10), "the agent's own word gets its grace");
    assert_eq!(view["counts"]["timed_out"], 1);
    assert_eq!(one(&mut agent).await["action"], *next, "its room is free again");
}

pub async fn without_received_a_delivery_has_failed_and_is_tried_again_up_to_max_deliveries(on: On) {
    let (server, token) = server_with(on, "forgetful").await;
    let mut agent = WireAgent::hello(&server.url, &token, 2).await;
    let once = server.submit(document(json!({ "max_deliveries": 1 }))).await;
    let started = Instant::now();
    one(&mut agent).await;
    let twice = server.submit(document(json!({}))).await;
    one(&mut agent).await;
    let waits = server.submit(document(json!({}))).await;
    let waiting_too = server.submit(document(json!({}))).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        for command in agent.commands().await {
            seen.insert((command["action"].as_str().unwrap().to_owned(), command["attempt"].as_i64().unwrap()));
            agent.succeed(&command).await;
        }
    }
    assert!(started.elapsed() > Duration::from_secs(25), "not before 30 seconds");
    assert_eq!(seen, [(twice.clone(), 2), (waits.clone(), 1), (waiting_too.clone(), 1)].into());
    let view = server.until_status(&once, "completed").await;
    assert_eq!(view["counts"]["undeliverable"], 1);
    let command = server.commands(&once).await.remove(0);
    assert!(command["error"].as_str().unwrap().contains("received"), "{command}");
    for id in [&twice, &waits, &waiting_too] {
        assert_eq!(server.until_status(id, "completed").await["counts"]["succeeded"], 1);
    }
    // The one that was undeliverable takes up no room.
    let (a, b) = (server.submit(document(json!({}))).await, server.submit(document(json!({}))).await);
    let mut both = BTreeSet::new();
    while both.len() < 2 {
        for command in agent.commands().await {
            // Else its room would be free by itself after a while.
            received(&mut agent, &command).await;
            both.insert(command["action"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(both, [a, b].into());
}

fn resident_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

pub async fn agents_that_stop_reading_cost_little_and_are_dropped_and_get_their_commands_later(on: On) {
    const STUCK: usize = 15;
    const ACTIONS: usize = 30;
    let server = Server::start(on.options()).await;
    let enroll = join_all((0..STUCK).map(|n| {
        let server = &server;
        async move { server.enroll(&format!("stuck-{n}"), json!({ "group": "stuck" })).await }
    }));
    let tokens = enroll.await;
    let reader = server.enroll("reader", json!({ "group": "reader" })).await;
    let mut stuck = Vec::new();
    for token in &tokens {
        stuck.push(WireAgent::hello(&server.url, token, 1_000).await);
    }
    let parameters = "x".repeat(1024 * 1024);
    let large = json!([{ "module": "ping", "parameters": parameters }]);
    let mut ids = Vec::new();
    for _ in 0..ACTIONS {
        let target = "labels.group = 'stuck'";
        ids.push(server.submit(document(json!({ "target": target, "operations": large, "timeout": "1h" }))).await);
    }
    // Others are served meanwhile.
    let mut reader = WireAgent::hello(&server.url, &reader, 16).await;
    for _ in 0..20 {
        let id = server.submit(document(json!({ "target": "name = 'reader'" }))).await;
        let command = one(&mut reader).await;
        reader.succeed(&command).await;
        assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
    }
    crate::support::eventually("the stuck ones to be dropped", || async {
        (server.log_text().matches("an agent's connection has ended agent=stuck").count() == STUCK).then_some(())
    })
    .await;
    let log = server.log_text();
    assert_eq!(log.matches("code=4008").count(), STUCK, "too slow: {log}");
    let peak = resident_mib(server.pid());
    println!("{STUCK} agents that don't read {ACTIONS} MiB each: the server had {peak} MiB at most");
    // All frames at once took 700.
    assert!(peak < 500, "{peak} MiB");
    drop(stuck);
    let mut back = WireAgent::hello(&server.url, &tokens[0], 4).await;
    let mut again = BTreeSet::new();
    while again.len() < ACTIONS {
        for command in back.commands().await {
            again.insert(command["action"].as_str().unwrap().to_owned());
            back.succeed(&command).await;
        }
    }
    assert_eq!(again, ids.into_iter().collect());
}

/// Whether the agent gets any command within a while.
async fn gets_something(agent: &mut WireAgent) -> bool {
    tokio::time::timeout(Duration::from_millis(1_500), agent.commands()).await.is_ok()
}

pub async fn a_paused_action_delivers_nothing_until_it_is_resumed(on: On) {
    let mut server = Server::start(on.options()).await;
    let here = server.enroll("here", json!({})).await;
    let away = server.enroll("away", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &here, 16).await;
    let soon = chrono::Utc::now() + chrono::Duration::seconds(10);
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }],
        "valid_from": soon.to_rfc3339() });
    let id = server.submit(document).await;
    let call = async |server: &Server, what: &str| server.call("POST", &format!("/v1/actions/{id}/{what}"), None).await;
    for _ in 0..2 {
        let (status, view) = call(&server, "pause").await;
        assert_eq!((status, &view["status"]), (200, &json!("paused")));
    }
    crate::support::eventually("its commands to be written all the same", || async {
        (server.action(&id).await["counts"]["total"] == 2).then_some(())
    })
    .await;
    tokio::time::sleep((soon - chrono::Utc::now()).to_std().unwrap_or_default()).await;
    assert!(!gets_something(&mut agent).await, "it is paused");
    // Others go on.
    let other = server.submit(json!({ "name": "o", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    let command = one(&mut agent).await;
    assert_eq!(command["action"], other.as_str());
    agent.succeed(&command).await;
    agent.expect("stored").await;
    // Over a crash too, and for an agent that comes meanwhile.
    server.kill();
    server.restart().await;
    let mut agent = WireAgent::hello(&server.url, &here, 16).await;
    let mut late = WireAgent::hello(&server.url, &away, 16).await;
    let command = one(&mut late).await;
    assert_eq!(command["action"], other.as_str());
    late.succeed(&command).await;
    assert!(!gets_something(&mut agent).await && !gets_something(&mut late).await, "it is paused");
    assert_eq!(server.until_status(&other, "completed").await["counts"]["succeeded"], 2);

    for _ in 0..2 {
        let (status, view) = call(&server, "resume").await;
        assert_eq!((status, &view["status"]), (200, &json!("running")));
    }
    for agent in [&mut agent, &mut late] {
        let command = one(agent).await;
        assert_eq!(command["action"], id.as_str());
        agent.succeed(&command).await;
    }
    server.until_status(&id, "completed").await;
    assert_eq!(call(&server, "pause").await.1["status"], "completed", "what has ended stays as it ended");
    assert_eq!(server.call("POST", &format!("/v1/actions/{}/pause", uuid::Uuid::now_v7()), None).await.0, 404);
}

pub async fn a_retry_is_a_new_action_over_those_that_failed(on: On) {
    let server = Server::start(on.options()).await;
    let mut agents = Vec::new();
    for name in ["good", "bad"] {
        let token = server.enroll(name, json!({})).await;
        agents.push(WireAgent::hello(&server.url, &token, 16).await);
    }
    let operations = json!([{ "module": "exec", "parameters": { "argv": ["true"] } }]);
    let document =
        json!({ "name": "n", "target": "TRUE", "operations": operations, "expires_after": "2h", "priority": 7 });
    let id = server.submit(document).await;
    let commands = [one(&mut agents[0]).await, one(&mut agents[1]).await];
    agents[0].succeed(&commands[0]).await;
    let mut failed = success(&commands[1]);
    failed["status"] = "failed".into();
    agents[1].send(json!({ "type": "results", "results": [failed] })).await;
    server.until_status(&id, "completed").await;

    let path = format!("/v1/actions/{id}/retry");
    let (status, again) = server.call("POST", &path, None).await;
    assert_eq!(status, 202, "{again}");
    let again = again["id"].as_str().unwrap();
    assert_ne!(again, id);
    let command = one(&mut agents[1]).await;
    assert_eq!((&command["action"], &command["operations"]), (&json!(again), &operations));
    agents[1].succeed(&command).await;
    let view = server.until_status(again, "completed").await;
    assert_eq!((&view["counts"]["total"], &view["action"]["priority"]), (&json!(1), &json!(7)));
    let parse = |key: &str| chrono::DateTime::parse_from_rfc3339(view["action"][key].as_str().unwrap()).unwrap();
    assert_eq!(parse("expires_at") - parse("valid_from"), chrono::Duration::hours(2));

    let (status, none) = server.call("POST", &format!("{path}?status=cancelled,undeliverable"), None).await;
    assert_eq!(status, 202);
    assert_eq!(server.until_status(none["id"].as_str().unwrap(), "completed").await["counts"]["total"], 0);
    assert_eq!(server.call("POST", &format!("{path}?status=pending"), None).await.0, 400);
    assert_eq!(server.call("POST", &format!("/v1/actions/{}/retry", uuid::Uuid::now_v7()), None).await.0, 404);
}
