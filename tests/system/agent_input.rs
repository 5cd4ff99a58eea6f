//! What agents may say, in whatever order and however wrong: the connection ends with its code or the result is rejected
//! with its reason, and nobody else notices.

use crate::support::{On, Server, WireAgent, mostly_waits, success};
use futures_util::SinkExt;
use odoshi::domain::agent::hash_of;
use odoshi::domain::audit::Author;
use odoshi::store::{AgentPatch, Revoked};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_tungstenite::tungstenite::{Bytes, Message};

fn document(target: &str) -> Value {
    json!({ "name": "n", "target": target, "operations": [{ "module": "ping" }] })
}

/// Says this after `hello`, and learns with which code the connection is closed.
async fn closed_after(server: &Server, token: &str, message: Message) -> u16 {
    let mut agent = WireAgent::hello(&server.url, token, 16).await;
    // It may be closed before all of it is sent.
    agent.socket.send(message).await.ok();
    agent.expect_close().await
}

pub async fn frames_that_are_none_close_the_connection_and_only_that(on: On) {
    let server = Server::start(on.options()).await;
    let (token, other) = (server.enroll("bad", json!({})).await, server.enroll("good", json!({})).await);
    let padding = "x".repeat(4 * 1024 * 1024);
    let rows = [
        ("text", Message::text("hello")),
        ("truncated", Message::text("{\"type\":\"received\",")),
        ("no type", Message::text("{}")),
        ("a list", Message::text("[1,2]")),
        ("a result that is none", Message::text("{\"type\":\"results\",\"results\":[{\"action\":\"x\"}]}")),
        (
            "a run that is no number",
            Message::text("{\"type\":\"received\",\"commands\":[{\"action\":null,\"run\":1e99}]}"),
        ),
        ("depth", Message::text(format!("{{\"type\":{}", "[".repeat(100_000)))),
        ("hello again", Message::text("{\"type\":\"hello\"}")),
        ("binary", Message::Binary(Bytes::from_static(b"{\"type\":\"received\",\"commands\":[]}"))),
        ("too large", Message::text(format!("{{\"type\":\"ignored\",\"padding\":\"{padding}\"}}"))),
    ];
    for (what, message) in rows {
        assert_eq!(closed_after(&server, &token, message).await, 4009, "{what}");
    }
    let mut bystander = WireAgent::hello(&server.url, &other, 16).await;
    for first in [json!({ "type": "received", "commands": [] }), json!({ "type": "ignored" }), json!(1)] {
        let mut agent = WireAgent::connect(&server.url, &token).await;
        agent.send(first.clone()).await;
        assert_eq!(agent.expect_close().await, 4009, "{first} instead of hello");
    }
    // Frames of a type that isn't known, and keys that aren't, are for a later version.
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    agent.send(json!({ "type": "from-the-future", "anything": [1, { "a": null }] })).await;
    agent.send(json!({ "type": "received", "commands": [], "new": true })).await;
    let id = server.submit(document("TRUE")).await;
    let command = agent.commands().await.remove(0);
    agent.succeed(&command).await;
    assert_eq!(agent.expect("stored").await["commands"][0]["action"], *id);
    let command = bystander.commands().await.remove(0);
    bystander.succeed(&command).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 2);
}

pub async fn who_says_nothing_is_closed_after_ten_seconds(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("mute", json!({})).await;
    let started = std::time::Instant::now();
    let mut agent = WireAgent::connect(&server.url, &token).await;
    assert_eq!(agent.expect_close().await, 4008);
    let waited = started.elapsed();
    // Not by its silence, which is after 60 s.
    assert!((Duration::from_secs(10)..Duration::from_secs(60)).contains(&waited), "{waited:?}");
}

/// The answer to these results.
async fn answer(agent: &mut WireAgent, results: Vec<Value>) -> Value {
    agent.send(json!({ "type": "results", "results": results })).await;
    agent.expect("stored").await
}

pub async fn results_of_what_is_not_ones_own_or_not_due_are_rejected_with_a_reason(on: On) {
    let server = Server::start(on.options()).await;
    let (thief_token, token) = (server.enroll("thief", json!({})).await, server.enroll("owner", json!({})).await);
    let mut thief = WireAgent::hello(&server.url, &thief_token, 16).await;
    let mut owner = WireAgent::hello(&server.url, &token, 16).await;
    let id = server.submit(document("name = 'owner'")).await;
    let command = owner.commands().await.remove(0);

    thief.send(json!({ "type": "received", "commands": [{ "action": id, "run": 1 }] })).await;
    let unknown = "00000000-0000-4000-8000-000000000000";
    let mut of_nobody = success(&command);
    of_nobody["action"] = unknown.into();
    let stored = answer(&mut thief, vec![success(&command), of_nobody]).await;
    assert_eq!(stored["commands"], json!([]));
    let reasons: Vec<(&str, &str)> = stored["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["action"].as_str().unwrap(), one["reason"].as_str().unwrap()))
        .collect();
    assert!(reasons.contains(&(&id, "there is no such command for this agent")), "{reasons:?}");
    assert!(reasons.contains(&(unknown, "there is no such action")), "{reasons:?}");

    for run in [2, 0, -1, i32::MAX] {
        let mut not_due = success(&command);
        not_due["run"] = run.into();
        let stored = answer(&mut owner, vec![not_due]).await;
        assert_eq!(stored["commands"], json!([]), "run {run}");
        let reason = stored["rejected"][0]["reason"].as_str().unwrap();
        assert!(reason.contains(&format!("run {run} is not due")), "{reason}");
    }
    let view = server.action(&id).await;
    assert_eq!((&view["counts"]["pending"], &view["status"]), (&json!(1), &json!("running")), "nothing has changed");

    // Its own, three times: stored each time, and once counted.
    let failed = json!({ "action": id, "run": 1, "status": "failed", "results": [] });
    let stored = answer(&mut owner, vec![success(&command), success(&command)]).await;
    assert_eq!(stored["commands"], json!([{ "action": id, "run": 1 }, { "action": id, "run": 1 }]));
    let stored = answer(&mut owner, vec![failed]).await;
    assert_eq!((&stored["commands"][0]["action"], &stored["rejected"]), (&json!(id), &json!([])));
    let view = server.until_status(&id, "completed").await;
    assert_eq!((&view["counts"]["succeeded"], &view["counts"]["failed"]), (&json!(1), &json!(0)));
    let mut later = success(&command);
    later["run"] = 2.into();
    let stored = answer(&mut owner, vec![later]).await;
    assert!(stored["rejected"][0]["reason"].as_str().unwrap().contains("run 2 never was"), "{stored}");
}

pub async fn an_agent_whose_clock_is_years_off_is_served_like_any_other(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("lost-in-time", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    for (started, finished) in
        [("1999-01-01T00:00:00.000Z", "1999-01-01T00:00:01.000Z"), ("2090-01-01T00:00:00Z", "1970-01-01T00:00:00Z")]
    {
        let mut with_runs = document("TRUE");
        with_runs["max_runs"] = 2.into();
        let id = server.submit(with_runs).await;
        let command = agent.commands().await.remove(0);
        let mut result = success(&command);
        (result["started_at"], result["finished_at"]) = (started.into(), finished.into());
        result["status"] = "failed".into();
        assert_eq!(answer(&mut agent, vec![result.clone()]).await["rejected"], json!([]));
        // Run 2 comes within its backoff by the server's clock, whatever the agent's says.
        let again = agent.commands().await.remove(0);
        assert_eq!((&again["action"], &again["run"]), (&json!(id), &json!(2)));
        result["run"] = 2.into();
        result["status"] = "succeeded".into();
        answer(&mut agent, vec![result]).await;
        let command = server.until_status(&id, "completed").await;
        assert_eq!(command["counts"]["succeeded"], 1);
        let command = server.commands(&id).await.remove(0);
        assert_eq!(command["runs"], 2);
        for time in ["due_at", "sent_at", "finished_at"] {
            let year = &command[time].as_str().unwrap()[..4];
            let now = &server.action(&id).await["created_at"].as_str().unwrap()[..4].to_owned();
            assert!(year >= now.as_str() && year < "2089", "{time} is the server's: {command}");
        }
    }
}

pub async fn a_newer_connection_of_an_agent_takes_over_and_nothing_is_lost(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("twin", json!({})).await;
    let mut first = WireAgent::hello(&server.url, &token, 2).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(server.submit(document("TRUE")).await);
    }
    let mut handed = 0;
    while handed < 2 {
        handed += first.commands().await.len();
    }
    let mut second = WireAgent::hello(&server.url, &token, 100).await;
    assert_eq!(first.expect_close().await, 4001);
    let mut done = std::collections::BTreeSet::new();
    while done.len() < ids.len() {
        for command in second.commands().await {
            second.succeed(&command).await;
            done.insert(command["action"].as_str().unwrap().to_owned());
        }
    }
    for id in &ids {
        assert_eq!(server.until_status(id, "completed").await["counts"]["succeeded"], 1);
    }
    let id = server.submit(document("TRUE")).await;
    // The newer one is the agent's now; what was read before its end was stored may come once more.
    while !second.commands().await.iter().any(|command| command["action"] == *id) {}
}

pub async fn tokens_open_what_they_are_for_and_nothing_else(on: On) {
    let server = Server::start(on.options()).await;
    let enroll = server.enroll_token().await;
    let body = |name: &str| Some(json!({ "name": name, "labels": {}, "facts": {}, "version": "1" }));
    let own = server.enroll("own", json!({})).await;
    let made = server.call("POST", "/v1/tokens", Some(json!({ "role": "enroll" }))).await.1;
    let revoked = made["token"].as_str().unwrap();
    server.call("DELETE", &format!("/v1/tokens/{}", made["id"].as_str().unwrap()), None).await;
    let viewer = server.call("POST", "/v1/tokens", Some(json!({ "role": "viewer" }))).await.1;
    let viewer = viewer["token"].as_str().unwrap();
    let rows = [
        ("garbage", "own", 401),
        (revoked, "new", 401),
        (viewer, "new", 403),
        (&enroll, "own", 409),
        (&own, "own", 200),
        (&own, "other", 403),
        (&enroll, "bad name", 422),
        (&enroll, "", 422),
        (&enroll, "new", 201),
    ];
    for (token, name, status) in rows {
        let (given, answer) = server.call_as(token, "POST", "/v1/agent/enroll", body(name)).await;
        assert_eq!(given, status, "{name}: {answer}");
        assert_eq!(answer["type"].is_string(), status >= 400, "a problem, or none: {answer}");
    }
    let call = reqwest::Client::new().post(format!("{}/v1/agent/enroll", server.url)).json(&body("new2"));
    assert_eq!(call.send().await.unwrap().status(), 401, "no token");
    for (token, status) in
        [("garbage", 401), (revoked, 401), (viewer, 403), (&enroll, 403), (&server.admin_token(), 403)]
    {
        assert_eq!(server.call_as(token, "GET", "/v1/agent/stream", None).await.0, status);
    }
    for (path, status) in [("/v1/actions", 403), ("/v1/tokens", 403)] {
        assert_eq!(server.call_as(&own, "GET", path, None).await.0, status, "an agent's token and {path}");
    }
}

/// How an agent is shut out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ShutOut {
    Disabled,
    Removed,
    /// Removed, and another one enrolled under its name.
    Replaced,
}

const SHUT_OUT: [ShutOut; 3] = [ShutOut::Disabled, ShutOut::Removed, ShutOut::Replaced];

pub async fn an_agent_that_is_disabled_or_removed_before_it_says_hello_is_not_let_in(on: On) {
    let server = Server::start(on.options()).await;
    for how in SHUT_OUT {
        let mut tries = 0;
        let code = loop {
            tries += 1;
            let name = format!("{how:?}-{tries}");
            let token = server.enroll(&name, json!({})).await;
            let id = server.submit(document(&format!("name = '{name}'"))).await;
            let mut agent = WireAgent::connect(&server.url, &token).await;
            let path = format!("/v1/agents/{name}");
            match how {
                ShutOut::Disabled => server.call("PATCH", &path, Some(json!({ "disabled": true }))).await,
                ShutOut::Removed | ShutOut::Replaced => server.call("DELETE", &path, None).await,
            };
            if how == ShutOut::Replaced {
                server.enroll(&name, json!({})).await;
            }
            // It may be closed before it has said anything.
            agent.socket.send(Message::text(r#"{"type":"hello","version":"late","facts":{}}"#)).await.ok();
            let code = loop {
                match agent.next().await {
                    Ok(frame) if frame["type"] == "error" => {}
                    Ok(frame) => panic!("{how:?} is let in: {frame}"),
                    Err(code) => break code,
                }
            };
            let commands = server.commands(&id).await;
            assert!(commands.iter().all(|command| command["sent_at"].is_null()), "{how:?}: {commands:?}");
            // On a busy machine it said hello too late.
            if code != 4008 {
                break code;
            }
        };
        assert_eq!(code, 4003, "{how:?}");
    }
}

pub async fn an_agent_that_is_disabled_or_removed_is_cut_off_though_nothing_says_so(on: On) {
    mostly_waits();
    let server = Server::start(on.options()).await;
    let bystander = server.enroll("bystander", json!({})).await;
    let mut bystander = WireAgent::hello(&server.url, &bystander, 16).await;
    let by = Author { token: None, name: "another node".into(), role: "admin", address: None };
    let mut agents = Vec::new();
    // A look past the server changes them: it is as if its notification were lost.
    let store = server.store().await;
    for how in SHUT_OUT {
        let name = format!("{how:?}");
        let token = server.enroll(&name, json!({})).await;
        agents.push((how, WireAgent::hello(&server.url, &token, 16).await));
        match how {
            ShutOut::Disabled => {
                let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
                assert!(store.agent_update(&name, &patch, &by).await.unwrap().is_some());
            }
            ShutOut::Removed | ShutOut::Replaced => {
                assert!(store.agent_remove(&name, &by).await.unwrap().is_some());
            }
        }
    }
    let token = server.enroll("Revoked", json!({})).await;
    let mut revoked = WireAgent::hello(&server.url, &token, 16).await;
    let token = store.token_find(&hash_of(&token)).await.unwrap().unwrap();
    assert_eq!(store.token_revoke(token.token.id, &by).await.unwrap(), Revoked::Done);
    store.node_stop().await.unwrap();
    let again = server.enroll("Replaced", json!({})).await;
    let mut again = WireAgent::hello(&server.url, &again, 16).await;
    for (how, agent) in &mut agents {
        assert_eq!(agent.expect_close().await, 4003, "{how:?}");
    }
    assert_eq!(revoked.expect_close().await, 4003);
    let id = server.submit(document("name IN ('bystander', 'Replaced')")).await;
    for agent in [&mut bystander, &mut again] {
        let commands = agent.commands().await;
        agent.succeed(&commands[0]).await;
    }
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 2);
}
