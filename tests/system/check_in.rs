//! Agents that aren't always connected: plain HTTP, and the reference agent's single check-in.

use crate::support::{On, Server, ServerOptions, program, success};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

/// A check-in that nobody wakes polls after 5 s.
const POLLED_AFTER: chrono::Duration = chrono::Duration::seconds(4);

async fn ask(server: &Server, token: &str, query: &str) -> Vec<Value> {
    let (status, due) = server.call_as(token, "GET", &format!("/v1/agent/commands{query}"), None).await;
    assert_eq!(status, 200, "{due}");
    assert!(due["server_time"].is_string(), "{due}");
    due["commands"].as_array().unwrap().clone()
}

async fn tell(server: &Server, token: &str, what: &str, body: Value) -> Value {
    let (status, answer) = server.call_as(token, "POST", &format!("/v1/agent/{what}"), Some(body)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn reference(command: &Value) -> Value {
    json!({ "action": command["action"], "run": command["run"] })
}

pub async fn commands_are_asked_for_received_and_answered_over_plain_http(on: On) {
    let server = Server::start(on.options()).await;
    let (token, other) = (server.enroll("a", json!({})).await, server.enroll("b", json!({})).await);
    assert!(ask(&server, &token, "").await.is_empty());
    assert_eq!(server.call("GET", "/v1/agents/a", None).await.1["status"], "online", "it has checked in");
    let low =
        server.submit(json!({ "name": "low", "target": "name = 'a'", "operations": [{ "module": "ping" }] })).await;
    let urgent =
        json!({ "name": "urgent", "target": "name = 'a'", "operations": [{ "module": "ping" }], "priority": 9 });
    let urgent = server.submit(urgent).await;
    let due = crate::support::eventually("both commands", || async {
        let due = ask(&server, &token, "").await;
        (due.len() == 2).then_some(due)
    })
    .await;
    assert_eq!((&due[0]["action"], &due[1]["action"]), (&json!(urgent), &json!(low)));
    assert_eq!((&due[0]["run"], &due[0]["attempt"], &due[0]["name"]), (&json!(1), &json!(1), &json!("urgent")));
    assert_eq!(ask(&server, &token, "?limit=1").await, due[..1], "asking changes nothing");
    assert_eq!(server.action(&low).await["counts"]["pending"], 1);

    let answer = tell(&server, &token, "received", json!({ "commands": [reference(&due[0])] })).await;
    assert_eq!(answer["commands"], json!([reference(&due[0])]));
    assert_eq!(server.action(&urgent).await["counts"]["sent"], 1);
    assert_eq!(ask(&server, &token, "").await, due[1..]);
    // A result is enough, also a second time; what isn't one's own is rejected, and so is what isn't there.
    for _ in 0..2 {
        let results = json!({ "results": [success(&due[0]), success(&due[1])] });
        let answer = tell(&server, &token, "results", results).await;
        assert_eq!(answer["commands"].as_array().unwrap().len(), 2, "{answer}");
    }
    for id in [&low, &urgent] {
        assert_eq!(server.until_status(id, "completed").await["counts"]["succeeded"], 1);
    }
    assert!(ask(&server, &token, "").await.is_empty());
    let answer = tell(&server, &other, "results", json!({ "results": [success(&due[0])] })).await;
    assert_eq!((answer["commands"].as_array().unwrap().len(), answer["rejected"].as_array().unwrap().len()), (0, 1));
    let unknown = json!({ "commands": [{ "action": uuid::Uuid::now_v7(), "run": 1 }, reference(&due[0])] });
    let answer = tell(&server, &token, "received", unknown).await;
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 2, "{answer}");

    for (path, body, wanted) in
        [("/v1/agent/results", json!({ "results": [{ "action": "x" }] }), 422), ("/v1/agent/received", json!({}), 422)]
    {
        assert_eq!(server.call_as(&token, "POST", path, Some(body)).await.0, wanted);
    }
    for query in ["?limit=0", "?wait=soon"] {
        assert_eq!(server.call_as(&token, "GET", &format!("/v1/agent/commands{query}"), None).await.0, 400, "{query}");
    }
    assert_eq!(server.call("GET", "/v1/agent/commands", None).await.0, 403, "an operator is no agent");
}

pub async fn a_waiting_check_in_is_answered_when_something_is_due(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({})).await;
    let started = Instant::now();
    assert!(ask(&server, &token, "?wait=1s").await.is_empty());
    assert!(started.elapsed() >= Duration::from_secs(1));
    // What is due at once, and what is due a little later.
    for delay in ["0s", "1500ms"] {
        let mut soonest = chrono::Duration::MAX;
        // Of several times the soonest: the machine may be busy.
        for _ in 0..10 {
            let document =
                json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }], "delay": delay });
            let (due, id) = tokio::join!(ask(&server, &token, "?wait=50s"), server.submit(document));
            let now = chrono::Utc::now();
            assert_eq!(due[0]["action"], id.as_str());
            let view = server.action(&id).await;
            let valid_from = view["action"]["valid_from"].as_str().unwrap();
            let late = now.signed_duration_since(chrono::DateTime::parse_from_rfc3339(valid_from).unwrap());
            assert!(late >= chrono::Duration::zero(), "{delay}: {late}");
            soonest = soonest.min(late);
            tell(&server, &token, "results", json!({ "results": [success(&due[0])] })).await;
            if soonest < POLLED_AFTER {
                break;
            }
        }
        assert!(soonest < POLLED_AFTER, "{delay}: {soonest}");
    }
}

pub async fn an_agent_that_is_disabled_while_it_waits_is_told_nothing(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({})).await;
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }], "delay": "8s" });
    let id = server.submit(document).await;
    crate::support::eventually("its command to wait", || async {
        (server.action(&id).await["counts"]["total"] == 1).then_some(())
    })
    .await;
    let disabled = Some(json!({ "disabled": true }));
    let asking = server.call_as(&token, "GET", "/v1/agent/commands?wait=20s", None);
    let ((status, answer), _) = tokio::join!(asking, server.call("PATCH", "/v1/agents/a", disabled));
    // Whichever comes first: it is refused, at once or when something is due.
    assert_eq!(status, 403, "{answer}");
}

#[actix_rt::test]
async fn the_reference_agent_checks_in_once() {
    let server = Server::start(ServerOptions::default()).await;
    let enroll = server.enroll_token().await;
    let folder = server.folder.path().to_owned();
    std::fs::write(folder.join("enroll"), enroll).unwrap();
    std::fs::write(folder.join("agent.toml"), "[exec]\nallow = [\"*\"]\n").unwrap();
    let url = server.url.clone();
    let check_in = || {
        let mut agent = Command::new(program());
        agent.args(["agent", "--once", "--server", &url, "--name", "timer", "--token-file"]).arg(folder.join("enroll"));
        agent.arg("--config").arg(folder.join("agent.toml")).arg("--state-dir").arg(folder.join("state"));
        tokio::task::spawn_blocking(move || agent.output().unwrap())
    };
    let first = check_in().await.unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let operations = json!([{ "module": "exec", "parameters": { "argv": ["echo", "on time"] } }]);
    let ids = [
        server.submit(json!({ "name": "n", "target": "TRUE", "operations": operations })).await,
        server.submit(json!({ "name": "n", "target": "TRUE", "operations": operations, "delay": "1h" })).await,
    ];
    crate::support::eventually("its command to wait", || async {
        (server.action(&ids[0]).await["counts"]["total"] == 1).then_some(())
    })
    .await;
    let second = check_in().await.unwrap();
    let out = String::from_utf8_lossy(&second.stdout).into_owned();
    assert!(
        second.status.success() && out == "1 results were stored\n",
        "{out}{}",
        String::from_utf8_lossy(&second.stderr)
    );
    server.until_status(&ids[0], "completed").await;
    assert_eq!(server.commands(&ids[0]).await[0]["results"][0]["output"]["stdout"], "on time\n");
    assert_eq!(server.action(&ids[1]).await["counts"]["succeeded"], 0, "it isn't due");
}
