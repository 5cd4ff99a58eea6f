//! Live actions, agents that operators add, and the audit log, over HTTP.

use crate::support::{On, Server, WireAgent, eventually, mostly_waits};
use odoshi::domain::time::Timestamp;
use serde_json::{Value, json};

pub async fn agents_join_a_live_action_until_it_expires(on: On) {
    mostly_waits();
    let mut server = Server::start(on.options()).await;
    let token = server.enroll("first", json!({ "role": "web" })).await;
    let mut first = WireAgent::hello(&server.url, &token, 16).await;
    let document = json!({ "name": "n", "target": "labels.role = 'web'", "membership": "live", "expires_after": "1h",
        "operations": [{ "module": "ping" }] });
    let id = server.submit(document.clone()).await;
    let mut short = document;
    (short["target"], short["expires_after"]) = ("labels.role = 'nobody'".into(), "20s".into());
    let short = server.submit(short).await;
    let commands = first.commands().await;
    first.succeed(&commands[0]).await;
    let view = server.until_status(&id, "running").await;
    assert_eq!(view["counts"]["resolved"], false, "others may join: {view}");

    // One that enrolls, one whose labels change, one that says it only after the server was killed.
    let token = server.enroll("second", json!({ "role": "web" })).await;
    let mut second = WireAgent::hello(&server.url, &token, 16).await;
    assert_eq!(second.commands().await[0]["action"], id.as_str());
    let third = server.enroll("third", json!({ "role": "db" })).await;
    let mut third = WireAgent::hello(&server.url, &third, 16).await;
    server.call("PATCH", "/v1/agents/third", Some(json!({ "labels": { "role": "web" } }))).await;
    let commands = third.commands().await;
    assert_eq!((commands[0]["action"].as_str(), &commands[0]["run"]), (Some(id.as_str()), &json!(1)));
    third.succeed(&commands[0]).await;
    third.expect("stored").await;
    server.kill();
    server.restart().await;
    // What the second had and didn't answer comes again.
    let mut second = WireAgent::hello(&server.url, &token, 16).await;
    let commands = second.commands().await;
    assert_eq!((commands.len(), commands[0]["action"].as_str()), (1, Some(id.as_str())));
    second.succeed(&commands[0]).await;
    let fourth = server.enroll("fourth", json!({ "role": "web" })).await;
    let (_, due) = server.call_as(&fourth, "GET", "/v1/agent/commands?wait=50s", None).await;
    assert_eq!(due["commands"][0]["action"], id.as_str(), "a waiting check-in is woken: {due}");
    let result = json!({ "action": id, "run": 1, "status": "succeeded", "results": [] });
    let (status, _) = server.call_as(&fourth, "POST", "/v1/agent/results", Some(json!({ "results": [result] }))).await;
    assert_eq!(status, 200);

    let view = server.action(&id).await;
    assert_eq!((&view["counts"]["total"], &view["counts"]["succeeded"]), (&json!(4), &json!(4)), "{view}");
    assert_eq!((&view["status"], &view["counts"]["resolved"]), (&json!("running"), &json!(false)), "{view}");
    eventually("the other one to be over", || async {
        (server.action(&short).await["counts"]["resolved"] == true).then_some(())
    })
    .await;
    let late = server.enroll("late", json!({ "role": "nobody" })).await;
    let (_, due) = server.call_as(&late, "GET", "/v1/agent/commands?wait=1s", None).await;
    assert_eq!((&due["commands"], &server.action(&short).await["counts"]["total"]), (&json!([]), &json!(0)));
}

pub async fn agents_that_join_before_valid_from_get_nothing_before_it(on: On) {
    mostly_waits();
    let server = Server::start(on.options()).await;
    let first = server.enroll("first", json!({ "role": "web" })).await;
    let mut first = WireAgent::hello(&server.url, &first, 16).await;
    let document = json!({ "name": "n", "target": "labels.role = 'web'", "membership": "live", "delay": "25s",
        "operations": [{ "module": "ping" }] });
    let id = server.submit(document).await;
    let valid_from = server.action(&id).await["action"]["valid_from"].as_str().unwrap().to_owned();
    eventually("the action to be resolved", || async {
        (server.action(&id).await["counts"]["total"] == 1).then_some(())
    })
    .await;
    // One that is connected when it joins, one that connects after that, one that asks over plain HTTP.
    let streams = server.enroll("streams", json!({ "role": "db" })).await;
    let mut streams = WireAgent::hello(&server.url, &streams, 16).await;
    server.call("PATCH", "/v1/agents/streams", Some(json!({ "labels": { "role": "web" } }))).await;
    let connects = server.enroll("connects", json!({ "role": "web" })).await;
    let asks = server.enroll("asks", json!({ "role": "web" })).await;
    eventually("all to have joined", || async { (server.action(&id).await["counts"]["total"] == 4).then_some(()) })
        .await;
    let mut connects = WireAgent::hello(&server.url, &connects, 16).await;
    let (_, due) = server.call_as(&asks, "GET", "/v1/agent/commands", None).await;
    let asked_early = due["server_time"].as_str().unwrap() < valid_from.as_str();
    assert!(!asked_early || due["commands"] == json!([]), "{due} before {valid_from}");
    // Times are text of one length: later ones are greater. The database's clock is this machine's.
    let now = || Timestamp::of_this_machine().to_string();
    for (name, agent) in [("first", &mut first), ("streams", &mut streams), ("connects", &mut connects)] {
        let commands = agent.commands().await;
        let at = now();
        assert_eq!(commands[0]["action"], id.as_str());
        assert!(at >= valid_from, "{name} got it at {at}, before {valid_from}");
        agent.succeed(&commands[0]).await;
    }
    let asked = eventually("the one that asks", || async {
        let (_, due) = server.call_as(&asks, "GET", "/v1/agent/commands?wait=30s", None).await;
        (due["commands"] != json!([])).then_some(due)
    })
    .await;
    assert!(asked["server_time"].as_str().unwrap() >= valid_from.as_str(), "{asked} before {valid_from}");
}

pub async fn an_added_agent_has_its_secrets_once_and_its_address(on: On) {
    let server = Server::start(on.options()).await;
    let body = json!({ "name": "hook", "transport": "webhook", "address": "https://example.com/hook",
        "labels": { "role": "api" } });
    let (status, added) = server.call("POST", "/v1/agents", Some(body.clone())).await;
    assert_eq!((status, &added["agent"]), (201, &json!("hook")), "{added}");
    let (token, secret) = (added["token"].as_str().unwrap(), added["secret"].as_str().unwrap());
    assert!(secret.starts_with("whsec_") && secret.len() > 40, "{secret}");
    assert_eq!(server.call("POST", "/v1/agents", Some(body.clone())).await.0, 409);
    let (_, agent) = server.call("GET", "/v1/agents/hook", None).await;
    assert_eq!(agent["address"], "https://example.com/hook");
    assert_eq!((&agent["transport"], &agent["labels"]), (&json!("webhook"), &json!({ "role": "api" })));
    assert!(!agent.to_string().contains(secret) && !server.log_text().contains(secret));
    assert_eq!(server.call_as(token, "GET", "/v1/agent/commands", None).await.0, 200);
    for (key, value) in [
        ("name", json!("a b")),
        ("address", Value::Null),
        ("address", json!("ftp://x")),
        ("address", json!("/etc/passwd")),
        ("transport", json!("")),
        ("transport", json!("stream")),
        ("labels", json!({ "x": "\u{0}" })),
        ("colour", json!("red")),
    ] {
        let mut wrong = body.clone();
        wrong["name"] = json!("other");
        wrong[key] = value;
        let (status, problem) = server.call("POST", "/v1/agents", Some(wrong)).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 422 && (detail.contains(key) || detail.starts_with("address")), "{key}: {problem}");
    }
}

pub async fn the_audit_log_says_who_did_what(on: On) {
    let mut server = Server::start(on.options()).await;
    let (_, made) = server.call("POST", "/v1/tokens", Some(json!({ "role": "operator", "name": "ops" }))).await;
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    server.enroll("a", json!({})).await;
    let (_, accepted) =
        server.call_as(made["token"].as_str().unwrap(), "POST", "/v1/actions", Some(document.clone())).await;
    let id = accepted["id"].as_str().unwrap();
    server.call("POST", &format!("/v1/actions/{id}/cancel"), None).await;
    server.drop_file("a.json", &document.to_string());
    let list = async |server: &Server| {
        let (status, page) = server.call("GET", "/v1/audit?limit=3", None).await;
        assert_eq!((status, page["audit"].as_array().map(Vec::len)), (200, Some(3)), "{page}");
        page
    };
    let page = eventually("the spool's action", || async {
        let page = list(&server).await;
        (page["audit"][0]["by"]["name"] == "spool").then_some(page)
    })
    .await;
    server.kill();
    server.restart().await;
    assert_eq!(list(&server).await, page, "it survives");
    let entry = |n: usize| {
        let entry = &page["audit"][n];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let by = &entry["by"];
        (text(&entry["did"]), text(&by["name"]), text(&by["role"]), text(&by["token"]))
    };
    let of = |did: &str, name: &str, role: &str| (did.to_owned(), name.to_owned(), role.to_owned());
    let short = |(did, name, role, _): (String, String, String, String)| (did, name, role);
    assert_eq!(short(entry(0)), of("action.create", "spool", "server"));
    assert_eq!(short(entry(1)), of("action.cancel", "the first admin", "admin"));
    assert_eq!(short(entry(2)), of("action.create", "ops", "operator"));
    assert_eq!((entry(2).3, &page["audit"][2]["subject"]), (made["id"].as_str().unwrap().to_owned(), &json!(id)));
    let ran =
        |n: usize| [&page["audit"][n]["target"], &page["audit"][n]["operations"], &page["audit"][n]["by"]["address"]];
    let operations = json!([{ "module": "ping" }]);
    assert_eq!(ran(0), [&json!("TRUE"), &operations, &Value::Null]);
    assert_eq!(ran(1), [&Value::Null, &Value::Null, &json!("127.0.0.1")]);
    assert_eq!(ran(2), [&json!("TRUE"), &operations, &json!("127.0.0.1")]);
    let next = page["next"].as_str().unwrap();
    let (_, rest) = server.call("GET", &format!("/v1/audit?after={next}"), None).await;
    let did: Vec<&str> = rest["audit"].as_array().unwrap().iter().map(|entry| entry["did"].as_str().unwrap()).collect();
    assert_eq!(did, ["agent.create", "token.create", "token.create", "token.create"]);
}
