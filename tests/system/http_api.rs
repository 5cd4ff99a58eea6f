//! The HTTP API as programs use it.

use crate::support::{On, Server, WireAgent, success};
use serde_json::{Value, json};

pub async fn a_target_is_previewed_and_agents_are_listed_and_shown(on: On) {
    let server = Server::start(on.options()).await;
    let mut tokens = Vec::new();
    for (name, role) in [("b", "web"), ("a", "web"), ("c", "db")] {
        tokens.push(server.enroll(name, json!({ "role": role })).await);
    }
    let _online = WireAgent::hello(&server.url, &tokens[1], 16).await;
    let preview =
        async |target: &str| server.call("POST", "/v1/targets/preview", Some(json!({ "target": target }))).await;
    assert_eq!(preview("labels.role = 'web'").await, (200, json!({ "count": 2, "sample": ["a", "b"] })));
    assert_eq!(preview("TRUE").await.1["count"], 3);
    assert_eq!(preview("name = 'nobody'").await, (200, json!({ "count": 0, "sample": [] })));
    let (status, problem) = preview("labels.role = ").await;
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("line 1, column 15")), (422, true), "{problem}");
    assert_eq!(server.call("POST", "/v1/targets/preview", Some(json!({ "goal": "TRUE" }))).await.0, 422);

    let names = |page: &Value| -> Vec<String> {
        page["agents"].as_array().unwrap().iter().map(|agent| agent["name"].as_str().unwrap().to_owned()).collect()
    };
    let (_, first) = server.call("GET", "/v1/agents?limit=2", None).await;
    assert_eq!((names(&first), &first["next"]), (vec!["a".into(), "b".into()], &json!("b")));
    let (_, rest) = server.call("GET", "/v1/agents?limit=2&after=b", None).await;
    assert_eq!((names(&rest), rest.get("next")), (vec!["c".to_owned()], None));
    let (_, online) = server.call("GET", "/v1/agents?target=status%20%3D%20%27online%27", None).await;
    assert_eq!(names(&online), ["a"]);
    assert_eq!(server.call("GET", "/v1/agents?target=nonsense", None).await.0, 422);
    assert_eq!(server.call("GET", "/v1/agents?limit=1001", None).await.0, 400);
    assert_eq!(server.call("GET", "/v1/agents?after=%00", None).await.0, 400, "no name has such a character");

    let (status, agent) = server.call("GET", "/v1/agents/a", None).await;
    assert_eq!((status, &agent["status"], &agent["transport"]), (200, &json!("online"), &json!("stream")), "{agent}");
    assert_eq!((&agent["labels"], &agent["disabled"]), (&json!({ "role": "web" }), &json!(false)));
    assert!(agent["last_seen"].is_string() && agent["enrolled_at"].is_string(), "{agent}");
    assert_eq!(server.call("GET", "/v1/agents/c", None).await.1["status"], "offline");
    assert_eq!(server.call("GET", "/v1/agents/nobody", None).await.0, 404);
}

/// What comes on a stream of events, as (event, data), until it ends; `seen` looks at all that has come so far.
async fn events(server: &Server, id: &str, mut seen: impl FnMut(&str)) -> Vec<(String, Value)> {
    let request = reqwest::Client::new().get(format!("{}/v1/actions/{id}/events", server.url));
    let mut response = request.bearer_auth(server.admin_token()).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        seen(&text);
    }
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some((field("event: ")?, serde_json::from_str(&field("data: ")?).unwrap()))
    };
    text.split("\n\n").filter_map(event).collect()
}

pub async fn events_tell_the_progress_and_the_end_of_an_action(on: On) {
    let server = Server::start(on.options()).await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let token = server.enroll(name, json!({})).await;
        agents.push(WireAgent::hello(&server.url, &token, 16).await);
    }
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    let first_is_told = tokio::sync::Notify::new();
    let watched = events(&server, &id, |text| {
        if text.contains("\"succeeded\":1,") {
            first_is_told.notify_one();
        }
    });
    let worked = async {
        for agent in &mut agents {
            let commands = agent.commands().await;
            agent.succeed(&commands[0]).await;
            // The next one is done when this one has been told of.
            first_is_told.notified().await;
            first_is_told.notify_one();
        }
    };
    let (events_seen, ()) = tokio::join!(watched, worked);
    let (last, before) = events_seen.split_last().unwrap();
    assert_eq!(
        (last.0.as_str(), &last.1["status"], &last.1["counts"]["succeeded"]),
        ("end", &json!("completed"), &json!(2))
    );
    // Progress may be coalesced: only what the second agent waited for is sure to have been seen.
    assert!(before.iter().all(|(event, _)| event == "progress"), "{events_seen:?}");
    assert!(before.iter().any(|(_, data)| data["counts"]["succeeded"] == 1), "{events_seen:?}");
    // At once when it has ended.
    let again = events(&server, &id, |_| {}).await;
    assert_eq!((again.len(), again[0].0.as_str()), (1, "end"));
    assert_eq!(server.call("GET", &format!("/v1/actions/{}/events", uuid::Uuid::now_v7()), None).await.0, 404);
}

pub async fn commands_are_streamed_as_lines_of_json_and_as_csv(on: On) {
    let server = Server::start(on.options()).await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let token = server.enroll(name, json!({})).await;
        agents.push(WireAgent::hello(&server.url, &token, 16).await);
    }
    // More than a page of them; all but two stay away.
    let store = server.store().await;
    let agent = |n: i32| odoshi::store::NewAgent {
        enrollment: odoshi::domain::agent::Enrollment::from_json(format!(r#"{{"name":"x{n:04}"}}"#).as_bytes())
            .unwrap(),
        transport: "stream".into(),
        address: None,
        secret: None,
    };
    // The server writes to the same file.
    crate::support::eventually("the agents", || async {
        match store.agent_insert((0..1_500).map(agent).collect()).await {
            Ok(_) => Some(()),
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                None
            }
        }
    })
    .await;
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    let commands = [agents[0].commands().await.remove(0), agents[1].commands().await.remove(0)];
    agents[0].succeed(&commands[0]).await;
    let mut failed = success(&commands[1]);
    failed["status"] = "failed".into();
    failed["results"][0] =
        json!({ "module": "ping", "ok": false, "output": null, "error": "a \"quoted\",\nlong\tline, 🎋" });
    agents[1].send(json!({ "type": "results", "results": [failed] })).await;
    crate::support::eventually("both results and all commands", || async {
        let counts = &server.action(&id).await["counts"];
        (counts["total"] == 1_502 && counts["succeeded"] == 1 && counts["failed"] == 1).then_some(())
    })
    .await;
    let read = async |accept: &str, query: &str| {
        let request = reqwest::Client::new().get(format!("{}/v1/actions/{id}/commands{query}", server.url));
        let answer = request.bearer_auth(server.admin_token()).header("Accept", accept).send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with(accept));
        answer.text().await.unwrap()
    };
    let paged = server.commands(&id).await;
    let lines = read("application/x-ndjson", "").await;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines), (1_502, &paged));
    assert_eq!(read("application/x-ndjson", "?status=succeeded").await.lines().count(), 1);
    let agent = paged[7]["agent"].as_str().unwrap();
    let one: Value = serde_json::from_str(&read("application/x-ndjson", &format!("?agent={agent}")).await).unwrap();
    assert_eq!(one, paged[7]);
    let (_, page) = server.call("GET", &format!("/v1/actions/{id}/commands?agent={agent}"), None).await;
    assert_eq!((&page["commands"], page.get("next")), (&json!([paged[7]]), None));

    let text = read("text/csv", "").await;
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    let header: Vec<String> = rows.headers().unwrap().iter().map(str::to_owned).collect();
    assert_eq!(header.join(","), "agent,status,attempts,runs,due_at,sent_at,started_at,finished_at,results,error");
    let rows: Vec<csv::StringRecord> = rows.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 1_502);
    for (row, command) in rows.iter().zip(&paged) {
        assert_eq!((&row[0], &row[1]), (command["agent"].as_str().unwrap(), command["status"].as_str().unwrap()));
        assert_eq!(&row[4], command["due_at"].as_str().unwrap());
        assert_eq!(&row[9], command["error"].as_str().unwrap_or_default());
        let results: Value = serde_json::from_str(&row[8]).unwrap_or(Value::Null);
        assert_eq!(results, command["results"]);
    }
}

pub async fn bodies_may_be_packed_and_what_is_ambiguous_is_refused_at_every_door(on: On) {
    let server = Server::start(on.options()).await;
    let post = async |encoding: Option<&str>, body: Vec<u8>| {
        let request = reqwest::Client::new().post(format!("{}/v1/actions", server.url)).body(body);
        let request = request.bearer_auth(server.admin_token());
        let request = encoding.into_iter().fold(request, |request, name| request.header("Content-Encoding", name));
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let document = r#"{"name":"n","target":"TRUE","operations":[{"module":"ping"}]}"#;
    for (encoding, body) in [
        (Some("gzip"), gzip(document)),
        (Some("identity"), document.into()),
        (None, format!("\u{feff}{document}").into_bytes()),
    ] {
        let (status, answer) = post(encoding, body).await;
        assert_eq!(status, 202, "{encoding:?}: {answer}");
    }
    assert_eq!(post(Some("br"), document.into()).await.0, 415);
    assert_eq!(post(Some("gzip"), document.into()).await.0, 400);
    assert_eq!(post(Some("gzip"), gzip(&" ".repeat(5_000_000))).await.0, 413);

    // The same through the spool.
    for (what, wrong, place) in [
        (
            "twice",
            r#"{"name":"n","target":"name = 'a'","target":"TRUE","operations":[{"module":"ping"}]}"#,
            "\"target\"",
        ),
        (
            "nested",
            r#"{"name":"n","target":"TRUE","operations":[{"module":"ping","parameters":{"a":1,"a":2}}]}"#,
            "\"a\"",
        ),
        ("list", r#"{"name":"n","target":"TRUE","operations":[["ping",{}]]}"#, "operations[0]"),
        ("whole", r#"[null,"n","TRUE",[["ping",{}]]]"#, "not a list"),
        ("months", r#"{"name":"n","target":"TRUE","operations":[{"module":"ping"}],"timeout":"5M"}"#, "timeout"),
        (
            "past",
            r#"{"name":"n","target":"TRUE","operations":[{"module":"ping"}],"valid_from":"2020-01-01T00:00:00Z",
            "expires_at":"2020-01-02T00:00:00Z"}"#,
            "expires_at",
        ),
    ] {
        let (status, answer) = post(None, wrong.into()).await;
        let problem: Value = serde_json::from_str(&answer).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 422 && detail.contains(place), "{what}: {status} {answer}");
        server.drop_file(&format!("{what}.json"), wrong);
        let said = crate::support::eventually("the file to fail", || async {
            std::fs::read_to_string(server.data().join("spool/failed").join(format!("{what}.json.error"))).ok()
        });
        let said: Value = serde_json::from_str(&said.await).unwrap();
        // What it is now differs.
        assert_eq!(said["detail"].as_str().unwrap().split("; it is").next(), detail.split("; it is").next());
    }
    // HEAD is answered as GET is, without the body.
    for (path, status) in
        [("/v1/actions", 200), ("/healthz", 200), ("/v1/actions/nonsense", 404), ("/v1/tokens/x", 405)]
    {
        let head = reqwest::Client::new().head(format!("{}{path}", server.url)).bearer_auth(server.admin_token());
        let answer = head.send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.bytes().await.unwrap().len()), (status, 0), "{path}");
    }
}

pub async fn an_agent_is_labelled_disabled_and_let_in_again(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({ "role": "web", "rack": "1" })).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let patch = async |body: Value| server.call("PATCH", "/v1/agents/a", Some(body)).await;
    let (status, changed) = patch(json!({ "labels": { "role": "db", "rack": null, "zone": "b" } })).await;
    assert_eq!((status, &changed["labels"]), (200, &json!({ "role": "db", "zone": "b" })), "{changed}");
    let count = async |target: &str| {
        server.call("POST", "/v1/targets/preview", Some(json!({ "target": target }))).await.1["count"].clone()
    };
    assert_eq!(count("labels.role = 'db' AND labels.rack IS NULL").await, 1);
    assert_eq!(patch(json!({ "address": "https://example.com" })).await.1["address"], "https://example.com");
    assert_eq!(patch(json!({ "labels": {} })).await.1["address"], "https://example.com", "what isn't there stays");
    assert_eq!(patch(json!({ "address": null })).await.1["address"], Value::Null);
    for (body, wanted) in [
        (json!({ "colour": 1 }), 422),
        (json!({ "labels": { "x": 5 } }), 422),
        (json!({ "labels": { "x": "\u{0}" } }), 422),
        (json!({ "labels": { "x": "y".repeat(70_000) } }), 422),
    ] {
        assert_eq!(patch(body).await.0, wanted);
    }
    assert_eq!(server.call("PATCH", "/v1/agents/nobody", Some(json!({}))).await.0, 404);

    assert_eq!(patch(json!({ "disabled": true })).await.1["disabled"], true);
    assert_eq!(agent.expect_close().await, 4003);
    assert_eq!(count("TRUE").await, 0, "disabled agents never match");
    assert_eq!(server.call("GET", "/v1/agents", None).await.1["agents"][0]["disabled"], true, "and are shown");
    assert_eq!(server.call_as(&token, "GET", "/v1/agent/commands", None).await.0, 403);
    let mut refused = WireAgent::connect(&server.url, &token).await;
    refused.send(json!({ "type": "hello", "version": "wire", "facts": {}, "capacity": 1, "running": [] })).await;
    assert_eq!(refused.expect_close().await, 4003);
    assert_eq!(patch(json!({ "disabled": false })).await.1["disabled"], false);
    WireAgent::hello(&server.url, &token, 16).await;
    assert_eq!(count("TRUE").await, 1);
}

pub async fn a_removed_agent_leaves_nothing_pending_and_its_name_is_free(on: On) {
    let mut server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({})).await;
    let other = server.enroll("b", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 1).await;
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    let (with_it, waiting) = (server.submit(document.clone()).await, server.submit(document).await);
    let has = agent.commands().await;
    agent.send(json!({ "type": "received", "commands": [{ "action": has[0]["action"], "run": 1 }] })).await;
    crate::support::eventually("all commands", || async {
        let mut both = Vec::new();
        for id in [&with_it, &waiting] {
            both.push(server.action(id).await["counts"]["total"] == 2);
        }
        both.iter().all(|all| *all).then_some(())
    })
    .await;
    assert_eq!(server.call("DELETE", "/v1/agents/a", None).await.0, 204);
    server.kill();
    server.restart().await;
    for id in [&with_it, &waiting] {
        crate::support::eventually("its command to be undeliverable", || async {
            (server.action(id).await["counts"]["undeliverable"] == 1).then_some(())
        })
        .await;
        let commands = server.commands(id).await;
        assert_eq!((&commands[0]["agent"], &commands[0]["error"]), (&json!("a"), &json!("the agent was removed")));
        assert_eq!(commands[1]["status"], "pending", "others are not concerned");
    }
    assert_eq!(server.call_as(&token, "GET", "/v1/agent/commands", None).await.0, 401);
    for (method, path) in [("GET", "/v1/agents/a"), ("DELETE", "/v1/agents/a")] {
        assert_eq!(server.call(method, path, None).await.0, 404);
    }
    // The same name is another agent.
    let again = server.enroll("a", json!({})).await;
    let mut again = WireAgent::hello(&server.url, &again, 16).await;
    let mut other = WireAgent::hello(&server.url, &other, 16).await;
    for _ in 0..2 {
        let commands = other.commands().await;
        for command in &commands {
            other.succeed(command).await;
        }
        if commands.len() == 2 {
            break;
        }
    }
    for id in [&with_it, &waiting] {
        server.until_status(id, "completed").await;
    }
    let new = server.submit(json!({ "name": "n", "target": "name = 'a'", "operations": [{ "module": "ping" }] })).await;
    assert_eq!(again.commands().await[0]["action"], new.as_str());
}

pub async fn metrics_are_counted_and_guarded(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    let commands = agent.commands().await;
    agent.succeed(&commands[0]).await;
    server.until_status(&id, "completed").await;
    let read = async |server: &Server, token: Option<String>| {
        let mut request = reqwest::Client::new().get(format!("{}/metrics", server.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (_, viewer) = server.call("POST", "/v1/tokens", Some(json!({ "role": "viewer" }))).await;
    let lines = [
        "odoshi_commands_total 1",
        "odoshi_reports_total{event=\"result\"} 1",
        "odoshi_store_up 1",
        "odoshi_agents_connected 1",
        "odoshi_actor_running{actor=\"resolver\"} 1",
        "odoshi_actor_restarts{actor=\"outcomes\"} 0",
        "odoshi_delay_lateness_seconds_count 1",
        "odoshi_delay_entries 0",
        "# TYPE odoshi_commands_total counter",
        "odoshi_open_actions 0",
        concat!("odoshi_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ];
    // What is counted after a commit may be a moment behind it.
    let text = crate::support::eventually("what was done to be counted", || async {
        let (status, text) = read(&server, viewer["token"].as_str().map(str::to_owned)).await;
        assert_eq!(status, 200, "{text}");
        lines.iter().all(|line| text.lines().any(|has| has == *line)).then_some(text)
    })
    .await;
    assert!(text.contains("odoshi_batch_items_bucket{") && text.contains("odoshi_batch_seconds_sum{"), "{text}");
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| help.len() > 5), "{name} has no help");
    }
    assert!(text.contains("\nprocess_resident_memory_bytes ") && !text.contains("# EOF"), "{text}");
    let open = reqwest::Client::new().get(format!("{}/metrics", server.url)).bearer_auth(server.admin_token());
    let open =
        open.header("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").send().await.unwrap();
    assert!(open.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let open = open.text().await.unwrap();
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE odoshi_commands counter\n"), "{open}");
    assert_eq!(read(&server, None).await.0, 401);
    assert_eq!(read(&server, Some(token)).await.0, 403);
    drop(server);
    let public = Server::start(on.options().with("ODOSHI__HTTP__PUBLIC_METRICS", "true")).await;
    assert_eq!(read(&public, None).await.0, 200);
}
