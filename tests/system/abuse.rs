//! What callers may do that they shouldn't: wrong tokens, roles and methods, bodies that are none, crowds.

use crate::support::{On, PATIENCE, Server, WireAgent, eventually, mostly_waits};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Calls with a body that isn't made by a JSON library: status and problem.
async fn post(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let call = reqwest::Client::new().post(format!("{}{path}", server.url)).bearer_auth(server.admin_token());
    let answer = call.header("Content-Type", "application/json").body(body).send().await.unwrap();
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["Content-Type"], "application/problem+json");
    (status, answer.json().await.unwrap())
}

pub async fn bodies_that_are_none_get_a_problem_that_names_the_place(on: On) {
    let server = Server::start(on.options()).await;
    let nested = format!(
        "{{\"name\":\"n\",\"target\":\"TRUE\",\"operations\":[{{\"module\":\"ping\",\"parameters\":{}{}}}]}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let target = |text: &str| json!({ "target": text }).to_string();
    let parentheses = target(&format!("{}TRUE{}", "(".repeat(10_000), ")".repeat(10_000)));
    let list = target(&format!("name IN ({})", vec!["'a'"; 200_000].join(",")));
    for (path, body, status, said) in [
        ("/v1/actions", "{".to_owned(), 400, "line 1"),
        ("/v1/actions", "{\"name\": \"n\",\n \"target\": 5,\n \"operations\": []}".to_owned(), 422, "line 2"),
        ("/v1/actions", "[]".to_owned(), 422, ""),
        ("/v1/actions", nested, 400, "more than 64 deep"),
        ("/v1/actions", "x".repeat(5 << 20), 413, "4194304"),
        (
            "/v1/actions",
            json!({"name": "n", "target": "TRUE", "operations": [], "colour": 1}).to_string(),
            422,
            "colour",
        ),
        ("/v1/tokens", "{\"role\": \"king\"}".to_owned(), 422, "role"),
        ("/v1/tokens", "[\"viewer\", \"\", null]".to_owned(), 422, "not a list"),
        ("/v1/targets/preview", " [\"TRUE\"]".to_owned(), 422, "not a list"),
        ("/v1/targets/preview", "{\"target\": \"TRUE\"} x".to_owned(), 400, "trailing"),
        ("/v1/targets/preview", target("name = 'a' -- b\nOR colour = 'x'"), 422, "line "),
        ("/v1/targets/preview", target("TRUE; DROP TABLE agents"), 422, "line 1, column"),
        ("/v1/targets/preview", target("name IN (SELECT name FROM agents)"), 422, "line 1, column"),
        ("/v1/targets/preview", target("pg_sleep(10) = 1"), 422, "line 1, column"),
        ("/v1/targets/preview", target("name::text = 'a'"), 422, "line 1, column"),
        ("/v1/targets/preview", target("colour = 'red'"), 422, "line 1, column"),
        ("/v1/targets/preview", parentheses, 422, "line 1, column"),
        ("/v1/targets/preview", list, 422, "line 1, column"),
    ] {
        let (given, problem) = post(&server, path, body).await;
        assert_eq!(given, status, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{said:?}: {problem}");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:odoshi:problem:"), "{problem}");
    }
    assert_eq!(server.readyz().await.unwrap().0, 200);
}

/// The roles are in the document, and a route without its check would answer something else.
async fn every_documented_route_needs_its_role(server: &Server, callers: &[(&str, &String)]) {
    let allows = |role: &str, needed: &str| match needed {
        "viewer" => ["viewer", "operator", "admin"].contains(&role),
        "operator" => ["operator", "admin"].contains(&role),
        _ => role == needed,
    };
    let (_, document) = server.call("GET", "/openapi.json", None).await;
    let mut guarded = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let url = path.replace("{id}", "00000000-0000-7000-8000-000000000000").replace("{name}", "nobody");
        for (method, operation) in operations.as_object().unwrap() {
            let Some(needed) = operation["security"][0]["token"][0].as_str() else { continue };
            guarded += 1;
            let method = method.to_uppercase();
            let call = reqwest::Client::new().request(method.parse().unwrap(), format!("{}{url}", server.url));
            let status = call.body("{}").send().await.unwrap().status();
            assert_eq!(status, 401, "{method} {path} without a token");
            for (role, token) in callers {
                let (status, answer) = server.call_as(token, &method, &url, Some(json!({}))).await;
                assert_eq!(status == 403, !allows(role, needed), "{method} {path} as {role}: {status} {answer}");
            }
        }
    }
    assert!(guarded > 20, "{guarded} routes");
}

pub async fn who_may_not_do_something_is_told_so(on: On) {
    let server = Server::start(on.options()).await;
    let make = async |role: &str| {
        let (status, made) = server.call("POST", "/v1/tokens", Some(json!({ "role": role }))).await;
        assert_eq!(status, 201, "{made}");
        made["token"].as_str().unwrap().to_owned()
    };
    let (viewer, operator) = (make("viewer").await, make("operator").await);
    let (_, short) = server.call("POST", "/v1/tokens", Some(json!({ "role": "admin", "expires_after": "1ms" }))).await;
    let short = short["token"].as_str().unwrap();
    eventually("the token to have expired", || async {
        (server.call_as(short, "GET", "/v1/actions", None).await.0 == 401).then_some(())
    })
    .await;
    let document = json!({ "name": "n", "target": "name = 'nobody'", "operations": [{ "module": "ping" }] });
    for (token, method, path, status) in [
        (&viewer, "GET", "/v1/actions", 200),
        (&viewer, "POST", "/v1/actions", 403),
        (&operator, "POST", "/v1/actions", 202),
        (&operator, "POST", "/v1/agents", 403),
        (&operator, "GET", "/v1/audit", 403),
        (&operator, "GET", "/v1/tokens", 403),
        (&viewer, "DELETE", "/v1/actions", 405),
        (&viewer, "GET", "/v2/actions", 404),
    ] {
        let (given, answer) = server.call_as(token, method, path, Some(document.clone())).await;
        assert_eq!(given, status, "{method} {path}: {answer}");
    }
    let answer = reqwest::Client::new().put(format!("{}/v1/actions", server.url)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["Allow"]), (405, &"GET, HEAD, POST".parse().unwrap()));
    every_documented_route_needs_its_role(&server, &[("viewer", &viewer), ("operator", &operator)]).await;
    // An agent asks for what is another's.
    let (own, other) = (server.enroll("own", json!({})).await, server.enroll("other", json!({})).await);
    let id =
        server.submit(json!({ "name": "n", "target": "name = 'other'", "operations": [{ "module": "ping" }] })).await;
    let wait = "/v1/agent/commands?wait=50s";
    assert_eq!(server.call_as(&other, "GET", wait, None).await.1["commands"][0]["action"], id.as_str());
    assert_eq!(server.call_as(&own, "GET", "/v1/agent/commands", None).await.1["commands"], json!([]));
    let run = json!({ "action": id, "run": 1 });
    let (_, answer) = server.call_as(&own, "POST", "/v1/agent/received", Some(json!({ "commands": [run] }))).await;
    assert_eq!((&answer["commands"], answer["rejected"][0]["action"].as_str()), (&json!([]), Some(id.as_str())));
    let result = json!({ "action": id, "run": 1, "status": "succeeded", "results": [] });
    let (_, answer) = server.call_as(&own, "POST", "/v1/agent/results", Some(json!({ "results": [result] }))).await;
    assert_eq!((&answer["commands"], answer["rejected"][0]["action"].as_str()), (&json!([]), Some(id.as_str())));
    assert_eq!(server.action(&id).await["counts"]["pending"], 1);
}

pub async fn a_token_that_calls_too_often_is_slowed_down_and_nobody_else(on: On) {
    let server = Server::start(on.options().with("ODOSHI__HTTP__TOKEN_RATE", "2")).await;
    let (_, viewer) = server.call("POST", "/v1/tokens", Some(json!({ "role": "viewer" }))).await;
    let viewer = viewer["token"].as_str().unwrap();
    let http = reqwest::Client::new();
    let call = async || {
        let answer = http.get(format!("{}/v1/actions", server.url)).bearer_auth(viewer).send().await.unwrap();
        (answer.status().as_u16(), answer.headers().contains_key("Retry-After"))
    };
    let mut refused = 0;
    for _ in 0..200 {
        match call().await {
            (200, _) => {}
            (429, true) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "200 calls passed a limit of 2 a second");
    assert_eq!(server.call("GET", "/v1/actions", None).await.0, 200);
    eventually("the slow one to be let in again", || async { (call().await.0 == 200).then_some(()) }).await;
}

pub async fn a_token_has_so_many_streams_open_and_no_more(on: On) {
    mostly_waits();
    let server = Server::start(on.options().with("ODOSHI__HTTP__TOKEN_STREAMS", "2")).await;
    server.enroll("away", json!({})).await;
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    let http = reqwest::Client::new();
    let watch = async || {
        let url = format!("{}/v1/actions/{id}/events", server.url);
        http.get(url).bearer_auth(server.admin_token()).send().await.unwrap()
    };
    let (first, second) = (watch().await, watch().await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    assert_eq!(watch().await.status(), 429);
    drop((first, second));
    // The server notices at its next event, or at the latest when it says that it is alive.
    eventually("room for another stream", || async { (watch().await.status() == 200).then_some(()) }).await;
}

/// They are thousands, say nothing or half of something, and are closed; meanwhile others are served.
#[actix_rt::test]
async fn idle_and_slow_connections_are_closed_and_in_nobodys_way() {
    mostly_waits();
    const CROWD: usize = 2_000;
    let server = Server::start(On::Sqlite.options()).await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let token = server.admin_token();
    let (begun, crowd) = (
        std::time::Instant::now(),
        tokio::task::spawn_blocking(move || {
            let connect = |text: &str| {
                let mut socket = TcpStream::connect(&address).unwrap();
                socket.write_all(text.as_bytes()).unwrap();
                socket
            };
            let silent = (0..CROWD).map(|_| connect(""));
            let half = (0..10).map(|_| connect("GET /v1/actions HT"));
            let mut crowd: Vec<TcpStream> = silent.chain(half).collect();
            // A head, and a body that never comes.
            crowd.push(connect(&format!(
            "POST /v1/actions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n{{"
        )));
            crowd
        }),
    );
    let crowd = crowd.await.unwrap();
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    server.until_status(&id, "completed").await;
    let closed = tokio::task::spawn_blocking(move || {
        crowd.into_iter().all(|mut socket| {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // 408 or nothing, and then the end.
            socket.read_to_end(&mut Vec::new()).is_ok()
        })
    });
    assert!(closed.await.unwrap(), "a connection is still open after {:?}", begun.elapsed());
    println!("{CROWD} idle connections and a body that never comes were closed within {:?}", begun.elapsed());
    assert_eq!(server.readyz().await.unwrap().0, 200);
}

/// Bodies that are sent but for their ends cost no more memory than there is for bodies, and other callers nothing.
#[actix_rt::test]
async fn half_sent_bodies_of_one_token_take_bounded_memory_and_hold_up_no_other() {
    const SIZE: usize = 4_000_000;
    const MOST_KB: u64 = 350_000;
    let server = Server::start(crate::support::ServerOptions::default()).await;
    let (loud, quiet) = (server.enroll("loud", json!({})).await, server.enroll("quiet", json!({})).await);
    let address = server.url.trim_start_matches("http://").to_owned();
    let head = format!(
        "POST /v1/agent/results HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {loud}\r\n\
         Content-Type: application/json\r\nContent-Length: {SIZE}\r\n\r\n"
    );
    let open = tokio::task::spawn_blocking(move || {
        let body = vec![b' '; SIZE - 1];
        let one = |_| {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            // Of those who are refused, not all is read.
            body.chunks(65_536).try_for_each(|chunk| stream.write_all(chunk)).ok();
            stream
        };
        (0..150).map(one).collect::<Vec<TcpStream>>()
    });
    let open = open.await.unwrap();
    let used = server.memory("VmHWM");
    assert!(used < MOST_KB, "{used} KB for {} bodies", open.len());
    let report = json!({ "results": [] });
    let call = || reqwest::Client::new().post(format!("{}/v1/agent/results", server.url)).json(&report);
    assert_eq!(call().bearer_auth(&quiet).send().await.unwrap().status(), 200);
    // When they are gone, the loud one is served again.
    drop(open);
    eventually("room for another body", || async {
        (call().bearer_auth(&loud).send().await.unwrap().status() == 200).then_some(())
    })
    .await;
}

/// Agents that don't read what is sent to them take no more memory than there is for that, and small commands go on.
#[actix_rt::test]
async fn agents_that_do_not_read_large_commands_take_bounded_memory() {
    const MOST_KB: u64 = 450_000;
    let server = Server::start(crate::support::ServerOptions::default()).await;
    let mut deaf = Vec::new();
    for number in 0..60 {
        let token = server.enroll(&format!("deaf-{number}"), json!({})).await;
        deaf.push(WireAgent::hello(&server.url, &token, 16).await);
    }
    let token = server.enroll("quiet", json!({})).await;
    let mut quiet = WireAgent::hello(&server.url, &token, 16).await;
    let large = json!([{ "module": "ping", "parameters": "x".repeat(3_000_000) }]);
    for _ in 0..2 {
        server.submit(json!({ "name": "n", "target": "name LIKE 'deaf-%'", "operations": large })).await;
    }
    // What can be sent is sent long before this: several actions later.
    for _ in 0..20 {
        let small = json!({ "name": "n", "target": "name = 'quiet'", "operations": [{ "module": "ping" }] });
        let id = server.submit(small).await;
        let command = quiet.commands().await.remove(0);
        quiet.succeed(&command).await;
        server.until_status(&id, "completed").await;
    }
    let used = server.memory("VmHWM");
    assert!(used < MOST_KB, "{used} KB for {} agents", deaf.len());
    println!("{} agents that don't read two commands of 3 MB: {used} KB", deaf.len());
}

/// Unknown tokens in any number are refused, and keep nobody else from the server: neither those whose tokens are known,
/// nor new ones from the same address.
#[actix_rt::test]
async fn many_unknown_tokens_keep_nobody_from_the_server() {
    let server = Server::start(crate::support::ServerOptions::default()).await;
    let known = server.enroll("known", json!({})).await;
    let client = reqwest::Client::new();
    let call = |token: String| {
        let call = client.get(format!("{}/v1/agent/commands", server.url)).bearer_auth(token);
        async move { call.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(call(known.clone()).await, 200);
    let unknown = futures_util::stream::iter(0..2_000).map(|number| call(format!("unknown-{number}")));
    let mut unknown = unknown.buffer_unordered(64);
    let mut refused = 0;
    while let Some(status) = unknown.next().await {
        assert_eq!(status, 401);
        refused += 1;
        if refused % 200 == 0 {
            assert_eq!(call(known.clone()).await, 200);
        }
    }
    assert_eq!(call("unknown-7".into()).await, 401, "a second time");
    let new = server.enroll("new", json!({})).await;
    assert_eq!(call(new).await, 200);
}
