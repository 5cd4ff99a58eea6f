//! What others write: numbers of any length, and JSON that readers disagree about, on its way through all doors.

use crate::support::{AgentProcess, Operator, Server, ServerOptions, WireAgent, eventually};
use odoshi::domain::json::readable;
use odoshi::domain::text::escaped_lines;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DIGITS: &str = "123456789012345678901234567890.10";

/// Sends text as it is.
async fn post(server: &Server, token: &str, path: &str, body: String) -> (u16, String) {
    let call = reqwest::Client::new().post(format!("{}{path}", server.url)).bearer_auth(token);
    let answer = call.header("Content-Type", "application/json").body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// What the API answers, to the letter.
async fn get(server: &Server, path: &str) -> String {
    let call = reqwest::Client::new().get(format!("{}{path}", server.url)).bearer_auth(server.admin_token());
    call.send().await.unwrap().text().await.unwrap()
}

#[actix_rt::test]
async fn what_one_agent_returns_hides_no_other_agents_results() {
    let server = Server::start(ServerOptions::default()).await;
    let operator = Operator::of(&server);
    let deep = format!("{}1{}", "[".repeat(128), "]".repeat(128));
    // The last one would be a line of another agent.
    let forged = "{\"x\":\r\n{\"agent\":\"a0\",\"status\":\"failed\",\"error\":\"FORGED\"}\n, \"big\": 1e400}";
    let outputs = ["1e400", r#""\ud800 half""#, r#"{"\udc00":"a\u0000b"}"#, &deep, DIGITS, r#""plain""#, forged];
    let mut tokens = Vec::new();
    for name in 0..outputs.len() {
        tokens.push(server.enroll(&format!("a{name}"), json!({})).await);
    }
    let id = server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    eventually("all commands to be there", || async {
        (server.action(&id).await["counts"]["total"] == outputs.len()).then_some(())
    })
    .await;
    for (token, output) in tokens.iter().zip(outputs) {
        let result = format!(
            r#"{{"results":[{{"action":"{id}","run":1,"status":"succeeded","results":[{{"module":"ping","ok":true,
                "output":{output},"error":"\ud83d"}}]}}]}}"#
        );
        let (status, text) = post(&server, token, "/v1/agent/results", result).await;
        assert!(status == 200 && text.contains(&id), "{output}: {status} {text}");
    }
    server.until_status(&id, "completed").await;
    // Other people's readers take it, apart from numbers that they have none for.
    let commands = get(&server, &format!("/v1/actions/{id}/commands")).await;
    let others: Value = serde_json::from_str(&commands.replace("1e400", "1")).unwrap();
    assert_eq!(others["commands"].as_array().unwrap().len(), outputs.len());
    let read = readable(&commands).unwrap();
    let shown = |n: usize| &read["commands"][n]["results"][0]["output"];
    assert_eq!(shown(0), "1e400");
    assert_eq!(shown(1), "\u{FFFD} half");
    assert_eq!(shown(2), &json!({ "\u{FFFD}": "a\u{FFFD}b" }));
    assert_eq!(shown(3), deep.as_str());
    assert!(commands.contains(&format!("\"output\":{DIGITS}")), "{commands}");
    let table = operator.prints(&["actions", "show", &id]).await;
    assert!(["1e400", DIGITS, "plain", "7 succeeded"].iter().all(|text| table.contains(text)), "{table}");
    let full = operator.prints(&["actions", "show", &id, "--full"]).await;
    assert!(full.contains("\"big\": 1e400}"), "{full}");
    let lines = operator.prints(&["actions", "show", &id, "-o", "jsonl"]).await;
    let agents: Vec<Value> = lines.lines().map(|line| readable(line).unwrap()["agent"].clone()).collect();
    assert_eq!(agents, ["a0", "a1", "a2", "a3", "a4", "a5", "a6"]);
    let json = operator.prints(&["actions", "show", &id, "-o", "json"]).await;
    assert_eq!(readable(&json).unwrap()["commands"].as_array().unwrap().len(), outputs.len());
    for arguments in [&["--full"][..], &["--group"], &["-o", "json"], &["-o", "jsonl"], &["-o", "csv"]] {
        let shown = operator.prints(&[&["actions", "show", &id], arguments].concat()).await;
        assert!(shown.contains(DIGITS) && shown.contains("1e400"), "{arguments:?}: {shown}");
    }
    operator.prints(&["actions", "follow", &id]).await;
}

#[actix_rt::test]
async fn facts_and_metadata_keep_their_digits_and_end_no_connection() {
    let server = Server::start(ServerOptions::default()).await;
    let operator = Operator::of(&server);
    let token = server.enroll("a", json!({})).await;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let mut agent = WireAgent::connect(&server.url, &token).await;
    let facts = format!(r#"{{"n":{DIGITS},"big":1e400,"half":"\ud800","deep":{deep},"id":9007199254740993}}"#);
    agent.send_text(&format!(r#"{{"type":"hello","version":"1","facts":{facts},"capacity":1,"running":[]}}"#)).await;
    agent.expect("welcome").await;
    let mut watching = operator.command(&["agents", "watch", "TRUE", "-o", "jsonl"]).spawn().unwrap();
    let lines = "{\"key\":\"lines\",\"value\":{\n\"used\": 5}}";
    let deep = format!(r#"{{"key":"half","value":"\ud800"}},{{"key":"deep","value":{deep}}}"#);
    let items = format!(r#"[{lines},{{"key":"n","value":{DIGITS}}},{deep}]"#);
    agent.send_text(&format!(r#"{{"type":"metadata","seq":1,"items":{items}}}"#)).await;
    let stored = agent.expect("metadata_stored").await;
    assert!(stored.get("rejected").is_none(), "{stored}");
    let mut shown = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(watching.stdout.take().unwrap()), &mut shown).unwrap();
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert!(shown.contains("\"used\": 5") && shown.contains(DIGITS), "{shown}");
    let view = get(&server, "/v1/agents/a").await;
    assert!(view.contains(&format!("\"n\":{DIGITS}")) && view.contains("\"big\":1e400"), "{view}");
    let shown = operator.prints(&["agents", "show", "a"]).await;
    assert_eq!(shown.matches(DIGITS).count(), 2, "{shown}");
    assert!(operator.prints(&["agents", "list", "-o", "jsonl"]).await.contains(DIGITS));
    assert!(operator.prints(&["agents", "list", "--metadata", "n"]).await.contains(DIGITS));
    for (target, count) in [
        ("facts.id = 9007199254740993", 1),
        ("facts.id = 9007199254740992", 0),
        ("facts.n > 123456789012345678901234567890.09 AND facts.big > facts.n", 0),
        ("facts.n = 123456789012345678901234567890.1 AND metadata.n = 123456789012345678901234567890.1", 1),
        ("facts.big > 9e399 AND facts.big < 2e400", 1),
    ] {
        let (status, found) = server.call("POST", "/v1/targets/preview", Some(json!({ "target": target }))).await;
        assert!(status == 422 || found["count"] == count, "{target}: {status} {found}");
    }
}

#[actix_rt::test]
async fn what_is_no_text_is_shown_as_such_and_what_could_not_start_is_explained() {
    let server = Server::start(ServerOptions::default()).await;
    let operator = Operator::of(&server);
    let folder = server.folder.path().join("agents");
    let token = server.enroll_token().await;
    let _agent = AgentProcess::start(&server.url, "a", &[], &folder, &token);
    eventually("the agent to be there", || async {
        (server.call("GET", "/v1/agents/a", None).await.0 == 200).then_some(())
    })
    .await;
    let shown = operator.prints(&["run", "--target", "TRUE", "--", "printf", r"gr\374n"]).await;
    assert!(shown.contains("gr\u{FFFD}n"), "{shown}");
    let id = server.call("GET", "/v1/actions", None).await.1["actions"][0]["id"].as_str().unwrap().to_owned();
    let result = &server.commands(&id).await[0]["results"][0];
    assert_eq!((&result["lossy"], &result["truncated"]), (&json!(true), &json!(false)));
    assert!(operator.prints(&["actions", "show", &id, "--full"]).await.contains("not UTF-8"));
    let script = folder.join("windows.sh");
    std::fs::write(&script, "#!/bin/sh\r\necho\r\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = script.display().to_string();
    for (parameters, what) in [
        (json!({ "argv": [script] }), "\\r\\n"),
        (json!({ "argv": ["uname"], "cwd": "/no/where" }), "cwd: \"/no/where\": No such file"),
        (json!({ "argv": ["/no/program"] }), "\"/no/program\" could not be run: No such file"),
    ] {
        let document =
            json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "exec", "parameters": parameters }] });
        let id = server.submit(document).await;
        server.until_status(&id, "completed").await;
        let error = server.commands(&id).await[0]["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(what), "{parameters}: {error}");
    }
}

/// Documents that are mostly nearly valid, as text.
fn document() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        "1e400",
        "-0",
        "1.10",
        "123456789012345678901234567890",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "null",
        "[]",
        "{}",
        "true",
        "\"5M\"",
        "\"1h\"",
        "\"1h30m\"",
        "\"1.5h\"",
        "5",
        "\"\"",
        "\"2000-01-01T00:00:00Z\"",
        "\"2999-01-01T00:00:00Z\"",
        "{\"a\":1,\"a\":2}",
        "[[[[1]]]]",
        "\"live\"",
        "\"TRUE\"",
        "\"labels.a = \"",
        "{",
        "nonsense",
        "\"\\x\"",
    ]);
    let key = prop::sample::select(vec![
        "name",
        "target",
        "operations",
        "timeout",
        "delay",
        "spread",
        "expires_after",
        "expires_at",
        "valid_from",
        "max_runs",
        "max_deliveries",
        "membership",
        "priority",
        "description",
        "threat",
        "colour",
        "status",
        "syntaxversion",
        "rollout",
    ]);
    let deep = (60_usize..70).prop_map(|levels| format!("{{\"a\":{}1{}}}", "[".repeat(levels), "]".repeat(levels)));
    let changes = prop::collection::vec((key, prop_oneof![8 => odd.prop_map(str::to_owned), 1 => deep]), 0..3);
    let shape =
        prop::sample::select(vec!["object", "object", "object", "object", "list", "mark", "cut", "twice", "after"]);
    (changes, shape).prop_map(|(changes, shape)| {
        let mut keys: BTreeMap<&str, String> = [
            ("name", "\"n\""),
            ("target", "\"name = 'nobody'\""),
            ("operations", r#"[{"module":"ping","parameters":1.10}]"#),
        ]
        .map(|(key, value)| (key, value.to_owned()))
        .into();
        keys.extend(changes);
        let parts: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        let object = format!("{{{}}}", parts.join(",\n "));
        match shape {
            "list" => format!("[{object}]"),
            "mark" => format!("\u{FEFF}{object}"),
            "cut" => object[..object.len() - 1].to_owned(),
            "twice" => format!("{{\"name\":\"m\",{}", &object[1..]),
            "after" => format!("{object} x"),
            _ => object,
        }
    })
}

#[actix_rt::test]
async fn http_the_spool_and_the_command_line_take_and_refuse_the_same_documents() {
    let server = Server::start(ServerOptions::default()).await;
    let (operator, admin) = (Operator::of(&server), server.admin_token());
    let mut runner = TestRunner::default();
    let documents: Vec<String> =
        (0..crate::support::by_length(60, 400)).map(|_| document().new_tree(&mut runner).unwrap().current()).collect();
    for (number, text) in documents.iter().enumerate() {
        server.drop_file(&format!("{number}.json"), text);
    }
    let (mut accepted, mut refused) = (0, 0);
    for (number, text) in documents.iter().enumerate() {
        let (status, answer) = post(&server, &admin, "/v1/actions", text.clone()).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let is_fine = status == 202;
        assert!(is_fine || matches!(status, 400 | 422), "{text}: {status} {answer}");
        let name = format!("{number}.json");
        let (done, failed) = (server.spool("done").join(&name), server.spool("failed").join(format!("{name}.error")));
        let in_spool = eventually(&format!("the spool to be done with {text}"), || async {
            if done.exists() {
                return Some(None);
            }
            serde_json::from_slice::<Value>(&std::fs::read(&failed).ok()?).ok().map(Some)
        })
        .await;
        let told = |problem: &Value| (problem["type"].clone(), problem["status"].clone());
        // Times are compared with now, which each door has its own of.
        match &in_spool {
            None => assert!(is_fine, "{text}: {status} {answer}"),
            Some(problem) => assert_eq!(told(problem), told(&answer), "{text}: {problem} {answer}"),
        }
        let file = server.folder.path().join(&name);
        std::fs::write(&file, text).unwrap();
        let (code, out, err) = operator.call(&["run", &file.display().to_string(), "--detach"]).await;
        assert_eq!(code, if is_fine { 0 } else { 6 }, "{text}: {out}{err}");
        let detail = answer["detail"].as_str().unwrap_or_default();
        // Each door has its own place and its own now. A terminal is shown no control characters.
        let shown = escaped_lines(detail.split(" at line ").next().unwrap().split("; it is ").next().unwrap());
        assert!(is_fine || err.contains(&*shown), "{text}: {err} {answer}");
        if is_fine { accepted += 1 } else { refused += 1 }
    }
    assert!(accepted > 0 && refused > 0, "{accepted} and {refused}");
}
