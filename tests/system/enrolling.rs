//! Enrolling, and an answer to it that got lost.

use crate::support::{AgentProcess, On, Server, WireAgent, eventually, program};
use serde_json::{Value, json};

/// Enrolls with a nonce: status and body.
async fn enroll(server: &Server, token: &str, nonce: &str, body: Value) -> (u16, Value) {
    let url = format!("{}/v1/agent/enroll", server.url);
    let call = reqwest::Client::new().post(url).bearer_auth(token).header("Idempotency-Key", nonce).json(&body);
    let answer = call.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
}

fn token(answer: &Value) -> String {
    answer["token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
}

pub async fn an_enroll_answer_that_got_lost_is_repeated_under_the_same_nonce(on: On) {
    let server = Server::start(on.options()).await;
    let allowed = server.enroll_token().await;
    let said = |role: &str| json!({ "name": "lost", "labels": { "role": role }, "facts": {}, "version": "1" });
    let (status, first) = enroll(&server, &allowed, "nonce-1", said("db")).await;
    assert_eq!(status, 201, "{first}");
    for nonce in ["nonce-2", "Nonce-1"] {
        assert_eq!(enroll(&server, &allowed, nonce, said("db")).await.0, 409, "another nonce is another agent");
    }
    assert_eq!(server.call_as(&allowed, "POST", "/v1/agent/enroll", Some(said("db"))).await.0, 409, "no nonce");
    let (status, second) = enroll(&server, &allowed, "nonce-1", said("web")).await;
    assert_eq!(status, 201, "{second}");
    let (_, agent) = server.call("GET", "/v1/agents/lost", None).await;
    assert_eq!(agent["labels"]["role"], "web", "what it said last");
    let (first, second) = (token(&first), token(&second));
    let due = "/v1/agent/commands";
    assert_eq!(server.call_as(&first, "GET", due, None).await.0, 401, "the token of the lost answer is revoked");
    assert_eq!(server.call_as(&second, "GET", due, None).await.0, 200);
    // It was used: whoever has the nonce gets nothing any more.
    assert_eq!(enroll(&server, &allowed, "nonce-1", said("web")).await.0, 409);
    assert_eq!(server.call_as(&second, "GET", due, None).await.0, 200);

    // Each kind of use is one.
    for (name, nonce) in [("streams", "nonce-3"), ("refreshes", "nonce-4")] {
        let said = json!({ "name": name });
        let own = token(&enroll(&server, &allowed, nonce, said.clone()).await.1);
        match name {
            "streams" => drop(WireAgent::hello(&server.url, &own, 1).await),
            _ => assert_eq!(enroll(&server, &own, nonce, said.clone()).await.0, 200, "its own token refreshes it"),
        }
        assert_eq!(enroll(&server, &allowed, nonce, said).await.0, 409, "{name}");
    }

    // A nonce is one agent's: images that were copied with it enroll under their own names.
    assert_eq!(enroll(&server, &allowed, "nonce-5", json!({ "name": "copy-1" })).await.0, 201);
    assert_eq!(enroll(&server, &allowed, "nonce-5", json!({ "name": "copy-2" })).await.0, 201);
    // A removed agent's is worth nothing: the name is a new agent.
    assert_eq!(server.call("DELETE", "/v1/agents/copy-1", None).await.0, 204);
    assert_eq!(enroll(&server, &allowed, "nonce-5", json!({ "name": "copy-1" })).await.0, 201);
    let long = "x".repeat(256);
    for nonce in ["", long.as_str()] {
        assert_eq!(enroll(&server, &allowed, nonce, json!({ "name": "n" })).await.0, 400, "{nonce}");
    }
}

pub async fn two_enrolls_under_one_nonce_leave_one_agent_with_one_token(on: On) {
    let server = Server::start(on.options()).await;
    let allowed = server.enroll_token().await;
    let calls = (0..8).map(|_| enroll(&server, &allowed, "nonce", json!({ "name": "twice" })));
    let answers = futures_util::future::join_all(calls).await;
    let mut valid = 0;
    for (status, answer) in answers {
        assert_eq!(status, 201, "{answer}");
        // The stream, since it says whether the token opens it and nothing more.
        let call = reqwest::Client::new().get(format!("{}/v1/agent/commands", server.url));
        let status = call.bearer_auth(token(&answer)).send().await.unwrap().status();
        valid += usize::from(status == 200);
    }
    assert_eq!(valid, 1, "tokens that are valid");
    let (_, agents) = server.call("GET", "/v1/agents", None).await;
    assert_eq!(agents["agents"].as_array().unwrap().len(), 1);
}

pub async fn an_agent_whose_enroll_answer_got_lost_connects(on: On) {
    let server = Server::start(on.options()).await;
    let allowed = server.enroll_token().await;
    // It made its nonce and called; then it died.
    let state = server.folder.path().join("dead/state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("enroll.nonce"), "a-nonce-that-was-kept\n").unwrap();
    assert_eq!(enroll(&server, &allowed, "a-nonce-that-was-kept", json!({ "name": "dead" })).await.0, 201);
    let _agent = AgentProcess::start(&server.url, "dead", &[], server.folder.path(), &allowed);
    eventually("the agent to be online", || async {
        let (_, view) = server.call("GET", "/v1/agents/dead", None).await;
        (view["status"] == "online").then_some(())
    })
    .await;
    eventually("the nonce to be dropped", || async { (!state.join("enroll.nonce").exists()).then_some(()) }).await;
}

pub async fn the_last_admin_token_stays_and_a_lost_one_is_replaced(on: On) {
    let mut server = Server::start(on.options()).await;
    let (_, tokens) = server.call("GET", "/v1/tokens", None).await;
    let first = format!("/v1/tokens/{}", tokens["tokens"][0]["id"].as_str().unwrap());
    let (status, problem) = server.call("DELETE", &first, None).await;
    assert_eq!(status, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("last admin token"), "{problem}");

    let config = server.folder.path().join("odoshi.toml");
    let settings = format!("data_dir = {:?}\n[store]\nurl = {:?}\n", server.data(), server.store_url());
    std::fs::write(&config, settings).unwrap();
    let reset = async || {
        let mut command = tokio::process::Command::new(program());
        command.args(["token", "reset", "--config"]).arg(&config).output().await.unwrap()
    };
    if on == On::Sqlite {
        // The file is one process's.
        let refused = reset().await;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && refused.stdout.is_empty() && told.contains("in use"), "{told}");
        assert!(server.terminate().await.success());
    }
    let done = reset().await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    if on == On::Sqlite {
        server.restart().await;
    }
    let new = String::from_utf8(done.stdout).unwrap();
    let new = new.trim();
    assert!(!new.is_empty() && !new.contains(char::is_whitespace), "the token alone");
    // The old one may go now, and it did not take part as a node.
    assert_eq!(server.call_as(new, "DELETE", &first, None).await.0, 204);
    let (status, nodes) = server.call_as(new, "GET", "/v1/nodes", None).await;
    assert_eq!((status, nodes["nodes"].as_array().unwrap().len()), (200, 1), "{nodes}");

    std::fs::write(&config, "[store]\nurl = \"sqlite:///nowhere/odoshi.db\"\n").unwrap();
    let refused = reset().await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("/nowhere/odoshi.db"));
}

pub async fn names_that_are_a_folder_are_refused(on: On) {
    let server = Server::start(on.options()).await;
    let allowed = server.enroll_token().await;
    for name in [".", ".."] {
        let body = Some(json!({ "name": name }));
        assert_eq!(server.call_as(&allowed, "POST", "/v1/agent/enroll", body).await.0, 422, "{name}");
        let body = Some(json!({ "name": name, "transport": "mine" }));
        assert_eq!(server.call("POST", "/v1/agents", body).await.0, 422, "{name}");
    }
    server.enroll("...", json!({})).await;
}
