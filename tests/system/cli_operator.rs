//! What an operator types, through the built binary.

use crate::support::{AgentProcess, Operator, Server, ServerOptions, WireAgent, eventually, mostly_waits};
use serde_json::{Value, json};
use std::process::Stdio;

/// A server with two agents that run anything.
async fn fleet() -> (Server, Vec<AgentProcess>) {
    let server = Server::start(ServerOptions::default()).await;
    let token = server.enroll_token().await;
    let start = |name: &str, role: &str| {
        AgentProcess::start(&server.url, name, &[("role", role)], server.folder.path(), &token)
    };
    let agents = vec![start("a", "web"), start("b", "db")];
    eventually("both agents to be online", || async {
        let (_, page) = server.call("GET", "/v1/agents?target=status%3D%27online%27", None).await;
        (page["agents"].as_array().map_or(0, Vec::len) == 2).then_some(())
    })
    .await;
    (server, agents)
}

#[actix_rt::test]
async fn a_program_is_run_and_its_output_shown_in_every_format() {
    let (server, _agents) = fleet().await;
    let operator = Operator::of(&server);
    let table = operator.prints(&["run", "--target", "TRUE", "--", "sh", "-c", "echo $((6*7))"]).await;
    for word in ["AGENT", "STATUS", "OUTPUT", "42", "completed", "2 succeeded"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let run =
        async |format: &str| operator.prints(&["run", "--target", "TRUE", "-o", format, "--", "echo", "hi"]).await;
    let json: Value = serde_json::from_str(&run("json").await).unwrap();
    assert_eq!((&json["status"], &json["counts"]["succeeded"]), (&json!("completed"), &json!(2)));
    assert_eq!(json["commands"][0]["results"][0]["output"]["stdout"], "hi\n");
    let jsonl = run("jsonl").await;
    let lines: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["agent"]), (2, &json!("b")));
    let csv = run("csv").await;
    assert!(csv.starts_with("agent,status,") && csv.lines().count() == 3, "{csv}");
    // From a file, and from standard input, with its own id twice.
    let file = server.folder.path().join("action.json");
    let id = "018f0000-0000-7000-8000-00000000000a";
    let document =
        json!({ "id": id, "name": "from a file", "target": "name = 'a'", "operations": [{ "module": "ping" }] });
    std::fs::write(&file, document.to_string()).unwrap();
    for _ in 0..2 {
        let out = operator.prints(&["run", file.to_str().unwrap()]).await;
        assert!(out.contains(id) && out.contains("1 succeeded"), "{out}");
    }
    let mut by_pipe = operator.command(&["run", "-", "--detach"]);
    let mut by_pipe = by_pipe.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut by_pipe.stdin.take().unwrap(), document.to_string().as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || by_pipe.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{id}\n"));
}

#[actix_rt::test]
async fn outputs_are_shown_whole_together_and_of_one_agent_and_drive_no_terminal() {
    let (server, _agents) = fleet().await;
    let operator = Operator::of(&server);
    let script = "printf 'one\\ntwo\\n\\033]0;pwned\\007\\302\\2332J\\n'; echo oops >&2";
    let out = operator.prints(&["run", "--target", "TRUE", "--", "sh", "-c", script]).await;
    for part in ["a  succeeded", "    one\n    two\n", "\\u{1b}]0;pwned\\u{7}\\u{9b}2J", "stderr:\n    oops\n"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(!out.contains(|letter: char| letter.is_control() && letter != '\n'), "{out:?}");
    let page = server.call("GET", "/v1/actions", None).await.1;
    let id = page["actions"][0]["id"].as_str().unwrap();
    for format in ["json", "jsonl", "csv"] {
        let out = operator.prints(&["actions", "show", id, "-o", format]).await;
        assert!(
            out.contains("pwned") && !out.contains(|letter: char| letter.is_control() && letter != '\n'),
            "{out:?}"
        );
    }
    let grouped = operator.prints(&["actions", "show", id, "--group"]).await;
    assert!(grouped.contains("2 agents  succeeded: a, b\n    one\n"), "{grouped}");
    let (code, _, err) = operator.call(&["actions", "show", id, "--agent", "nobody"]).await;
    assert!(code == 2 && err.contains("no command for \"nobody\""), "{code} {err}");
    let one = operator.prints(&["actions", "show", &id[..18], "--agent", "b", "--full"]).await;
    assert!(one.contains("b  succeeded") && !one.contains("a  succeeded") && one.contains("    oops"), "{one}");
    let none = operator.prints(&["actions", "show", id, "--status", "failed"]).await;
    assert!(!none.contains("    one") && none.contains("2 succeeded"), "{none}");
    // Long outputs are cut unless they are asked for.
    let long = operator.prints(&["run", "--target", "TRUE", "--full", "--", "seq", "300"]).await;
    assert_eq!(long.matches("    300\n").count(), 2, "{long}");
    let page = server.call("GET", "/v1/actions", None).await.1;
    let id = page["actions"][0]["id"].as_str().unwrap();
    let cut = operator.prints(&["actions", "show", id]).await;
    assert!(cut.contains("    6\n    … 290 lines (--full)\n    297\n") && !cut.contains("    7\n"), "{cut}");

    // A hostile name, in every list and message.
    let name = "x\u{1b}[2J\n=1+1";
    let run = ["run", "--target", "TRUE", "--name", name, "--detach", "-o", "json", "--", "true"];
    let id: Value = serde_json::from_str(&operator.prints(&run).await).unwrap();
    let id = id["id"].as_str().unwrap();
    server.until_status(id, "completed").await;
    for arguments in [
        &["actions", "list"][..],
        &["actions", "list", "-o", "csv"],
        &["actions", "list", "-o", "json"],
        &["actions", "show", id],
        &["audit"],
        &["audit", "-o", "csv"],
    ] {
        let out = operator.prints(arguments).await;
        assert!(!out.contains(|letter: char| letter.is_control() && letter != '\n'), "{arguments:?}: {out:?}");
    }
    let tokens = operator.prints(&["token", "list", "-o", "csv"]).await;
    assert!(tokens.starts_with("id,role,name,created_at,expires_at,revoked_at\n"), "{tokens}");
    let list = operator.prints(&["actions", "list"]).await;
    assert!(list.lines().all(|line| line == line.trim_end()), "{list:?}");
}

#[actix_rt::test]
async fn exit_codes_say_how_it_went() {
    mostly_waits();
    let (server, agents) = fleet().await;
    let operator = Operator::of(&server);
    let code = async |arguments: &[&str]| operator.call(arguments).await;
    let nobody = ["run", "--target", "name = 'nobody'", "--allow-empty", "--", "true"];
    assert_eq!(code(&nobody).await.0, 0);
    let (empty, _, err) = code(&[&nobody[..3], &nobody[4..]].concat()).await;
    assert!(empty == 5 && err.contains("no agent matches the target: name = 'nobody'"), "{empty}: {err}");
    let (failed, out, _) = code(&["run", "--target", "TRUE", "--", "false"]).await;
    assert!(failed == 1 && out.contains("failed"), "{failed}: {out}");
    for arguments in [
        &["run"][..],
        &["run", "--", "true"],
        &["run", "file.json", "--", "true"],
        &["run", "--target", "TRUE", "--name", "n", "nowhere.json"],
        &["run", "/nowhere.json"],
        &["run", "--target", "TRUE", "-o", "xml", "--", "true"],
        &["run", "--target", "TRUE", "--timeout", "5M", "--", "true"],
        &["run", "--target", "labels.role = ", "--", "true"],
        &["actions", "show", "not-a-uuid"],
        &["actions", "show", "ffffffff"],
        &["actions", "list", "--server", "127.0.0.1:7401"],
        &["actions", "list", "--token-file", "/nowhere"],
        &["actons"],
    ] {
        let (usage, out, err) = code(arguments).await;
        assert_eq!(usage, 2, "{arguments:?}: {out}{err}");
    }
    assert!(code(&["actons"]).await.2.contains("'actions'"), "it says what may be meant");
    let err = code(&["run", "--target", "labels.role = ", "--", "true"]).await.2;
    assert!(err.contains("--target") && err.contains("line 1, column 15"), "{err}");
    let file = server.folder.path().join("wrong.json");
    let file = file.to_str().unwrap();
    for (document, place) in [
        ("{\n  \"name\": \"n\",\n  \"name\": \"m\"}", "line 3 column 3"),
        ("{\"name\": \"n\", \"colour\": 1}", "colour"),
        ("{\"name\": ", "line 1 column 9"),
    ] {
        std::fs::write(file, document).unwrap();
        let (refused, _, err) = code(&["run", file]).await;
        assert!(refused == 6 && err.contains(file) && err.contains(place), "{refused}: {err}");
    }
    let nowhere = Operator { server: "http://127.0.0.1:1".into(), token: "x".into() };
    let (unreachable, _, err) = nowhere.call(&["actions", "list"]).await;
    assert!(unreachable == 3 && err.contains("nothing listens"), "{unreachable}: {err}");
    let stranger = Operator { token: "x".into(), ..Operator::of(&server) };
    assert_eq!(stranger.call(&["actions", "list"]).await.0, 6);
    drop(agents);
    // Nobody is there to take it.
    let (expired, out, _) = code(&["run", "--target", "TRUE", "--expires-after", "10s", "--", "true"]).await;
    assert!(expired == 4 && out.contains("2 expired"), "{expired}: {out}");
    let id = operator.prints(&["run", "--target", "TRUE", "--detach", "--", "true"]).await;
    let id = id.trim();
    // An action that is cancelled while its agents are still being looked for has none.
    eventually("both commands", || async { (server.action(id).await["counts"]["pending"] == 2).then_some(()) }).await;
    let follow = ["actions", "follow", id];
    let followed = operator.call(&follow);
    let cancelled = async {
        let out = operator.prints(&["actions", "cancel", id]).await;
        assert_eq!(out, format!("{id} is cancelled\n"));
    };
    let ((code, out, _), ()) = tokio::join!(followed, cancelled);
    assert!(code == 4 && out.contains("2 cancelled"), "{code}: {out}");
}

#[actix_rt::test]
async fn ctrl_c_ends_the_following_and_not_the_action() {
    let server = Server::start(ServerOptions::default()).await;
    let token = server.enroll("wire", json!({})).await;
    let operator = Operator::of(&server);
    let child = operator.command(&["run", "--target", "TRUE", "--name", "long", "--", "true"]).spawn().unwrap();
    let id = eventually("the action", || async {
        let (_, page) = server.call("GET", "/v1/actions", None).await;
        page["actions"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains(&format!("odoshi actions follow {id}")), "{err}");
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let commands = agent.commands().await;
    agent.succeed(&commands[0]).await;
    server.until_status(&id, "completed").await;
    assert_eq!(operator.call(&["actions", "follow", &id]).await.0, 0);
}

#[actix_rt::test]
async fn actions_are_listed_steered_and_retried() {
    let server = Server::start(ServerOptions::default()).await;
    let token = server.enroll("wire", json!({})).await;
    let operator = Operator::of(&server);
    let id = operator.prints(&["run", "--target", "TRUE", "--name", "steered", "--detach", "--", "true"]).await;
    let id = id.trim();
    server.until_status(id, "running").await;
    assert_eq!(operator.prints(&["actions", "pause", id]).await, format!("{id} is paused\n"));
    let list = operator.prints(&["actions", "list", "--status", "paused"]).await;
    assert!(list.contains(id) && list.contains("steered") && list.contains("TOTAL"), "{list}");
    assert_eq!(operator.prints(&["actions", "list", "--status", "completed", "-o", "jsonl"]).await, "");
    assert_eq!(operator.prints(&["actions", "resume", id]).await, format!("{id} is running\n"));
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let commands = agent.commands().await;
    let mut failed = crate::support::success(&commands[0]);
    failed["status"] = "failed".into();
    agent.send(json!({ "type": "results", "results": [failed] })).await;
    server.until_status(id, "completed").await;
    let shown: Value = serde_json::from_str(&operator.prints(&["actions", "show", id, "-o", "json"]).await).unwrap();
    assert_eq!(shown["commands"][0]["status"], "failed");
    let retry = ["actions", "retry", id];
    let retried = operator.call(&retry);
    let worked = async {
        let commands = agent.commands().await;
        agent.succeed(&commands[0]).await;
    };
    let ((code, out, err), ()) = tokio::join!(retried, worked);
    assert!(code == 0 && out.contains("1 succeeded"), "{code}: {out}{err}");
    let csv = operator.prints(&["actions", "list", "-o", "csv"]).await;
    assert_eq!((csv.lines().count(), csv.starts_with("id,status,created_at,counts.total")), (3, true), "{csv}");
}

#[actix_rt::test]
async fn targets_are_previewed_and_agents_shown() {
    let server = Server::start(ServerOptions::default()).await;
    for n in 0..30 {
        server.enroll(&format!("a{n:02}"), json!({ "role": if n == 0 { "db" } else { "web" } })).await;
    }
    let operator = Operator::of(&server);
    assert_eq!(operator.prints(&["preview", "labels.role = 'db'"]).await, "1 agent matches\na00\n");
    let many = operator.prints(&["preview", "TRUE"]).await;
    assert!(many.starts_with("30 agents match\na00\na01\n") && many.ends_with("…\n"), "{many}");
    let (code, _, err) = operator.call(&["preview", "label.role = 'db'"]).await;
    assert!(code == 6 && err.contains("labels.KEY"), "{code}: {err}");
    let list = operator.prints(&["agents", "list", "--target", "labels.role = 'db'"]).await;
    assert!(list.contains("NAME") && list.contains("a00") && !list.contains("a01"), "{list}");
    let json: Value = serde_json::from_str(&operator.prints(&["agents", "list", "-o", "json"]).await).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 30);
    let shown: Value = serde_json::from_str(&operator.prints(&["agents", "show", "a00"]).await).unwrap();
    assert_eq!((&shown["name"], &shown["labels"]["role"]), (&json!("a00"), &json!("db")));
    assert_eq!(operator.call(&["agents", "show", "nobody"]).await.0, 6);
    let address = ["--transport", "webhook", "--address", "https://example.com/hook", "--label", "role=api"];
    let added = operator.prints(&[&["agents", "add", "hook"], &address[..]].concat()).await;
    let added: Value = serde_json::from_str(&added).unwrap();
    assert!(added["agent"] == "hook" && added["token"].is_string() && added["secret"].is_string(), "{added}");
    let (code, _, err) = operator.call(&["agents", "add", "nowhere"]).await;
    assert!(code == 2 && err.contains("--transport"), "{code}: {err}");
    for (transport, address) in
        [("webhook", None), ("webhook", Some("ops@b.c")), ("smtp", None), ("smtp", Some("no")), ("nats", Some("x"))]
    {
        let address: Vec<&str> = address.into_iter().flat_map(|address| ["--address", address]).collect();
        let (code, _, err) =
            operator.call(&[&["agents", "add", "nowhere", "--transport", transport], &address[..]].concat()).await;
        assert!(code == 6 && err.contains("address"), "{transport} {address:?} {code}: {err}");
    }
    assert_eq!(operator.call(&["agents", "add", "x", "--transport", "webhook", "--label", "no"]).await.0, 2);
    assert_eq!(operator.prints(&["agents", "label", "a00", "zone=b", "role="]).await, "a00: {\"zone\":\"b\"}\n");
    assert_eq!(operator.prints(&["agents", "disable", "a00"]).await, "a00 is disabled\n");
    assert_eq!(operator.prints(&["agents", "disable", "a00", "--undo"]).await, "a00 is not disabled\n");
    assert_eq!(operator.prints(&["agents", "remove", "a00"]).await, "a00 is removed\n");
    assert_eq!(operator.call(&["agents", "remove", "a00"]).await.0, 6);
    assert_eq!(operator.call(&["agents", "label", "a01", "zone"]).await.0, 2);
}

#[actix_rt::test]
async fn schedules_are_added_previewed_steered_and_removed() {
    let server = Server::start(ServerOptions::default()).await;
    let operator = Operator::of(&server);
    let nightly = ["schedules", "add", "nightly", "--cron", "30 2 * * *", "--timezone", "Europe/Stockholm"];
    let flags = ["--target", "labels.role = 'web'", "--on-gap", "skip", "--misfire", "all", "--limit", "3"];
    let added = operator.prints(&[&nightly[..], &flags[..], &["--", "uptime", "-p"][..]].concat()).await;
    assert!(added.starts_with("nightly: next at "), "{added}");
    let shown: Value = serde_json::from_str(&operator.prints(&["schedules", "show", "nightly"]).await).unwrap();
    assert_eq!(shown["schedule"]["misfire"]["limit"], 3);
    assert_eq!(shown["schedule"]["action"]["name"], "uptime -p");
    assert_eq!(shown["schedule"]["action"]["operations"][0]["parameters"]["argv"], json!(["uptime", "-p"]));
    let (code, _, err) = operator.call(&[&nightly[..], &flags[..], &["--", "uptime"][..]].concat()).await;
    assert!(code == 6 && err.contains("already"), "{code}: {err}");
    assert_eq!(operator.call(&[&nightly[..], &["--", "uptime"][..]].concat()).await.0, 2, "a target is missing");

    // What a file says, and again with other content.
    let file = server.folder.path().join("hourly.json");
    let mut document = json!({"name": "hourly", "every": "1h", "action": {"name": "n", "target": "TRUE",
        "operations": [{"module": "ping"}]}});
    std::fs::write(&file, document.to_string()).unwrap();
    operator.prints(&["schedules", "add", file.to_str().unwrap()]).await;
    document["every"] = "2h".into();
    std::fs::write(&file, document.to_string()).unwrap();
    assert_eq!(operator.call(&["schedules", "add", file.to_str().unwrap()]).await.0, 6);
    operator.prints(&["schedules", "add", "--replace", file.to_str().unwrap()]).await;
    let list = operator.prints(&["schedules", "list"]).await;
    assert!(list.contains("every 2h") && list.contains("30 2 * * *") && list.contains("Europe/Stockholm"), "{list}");
    let lines = operator.prints(&["schedules", "list", "-o", "jsonl"]).await;
    assert_eq!(lines.lines().count(), 2);
    let rows = operator.prints(&["schedules", "list", "-o", "csv"]).await;
    assert_eq!(rows.lines().next(), Some("name,when,timezone,next_at,last_at,paused,error"));

    // In spring 2027, clocks go forward on 28 March.
    let after = ["--after", "2027-03-27T12:00:00Z", "--count", "1"];
    let preview = operator.prints(&[&["schedules", "preview", "nightly"][..], &after[..]].concat()).await;
    assert!(preview.contains("2027-03-28 02:30:00") && preview.contains("skipped"), "{preview}");
    assert!(preview.contains("2027-03-29 02:30:00 +02:00"), "{preview}");
    let times = ["schedules", "preview", "--cron", "30 2 * * *", "--timezone", "Europe/Stockholm", "-o", "json"];
    let preview = operator.prints(&[&times[..], &after[..]].concat()).await;
    let preview: Value = serde_json::from_str(&preview).unwrap();
    assert_eq!(preview["occurrences"][0]["note"], "shifted");
    assert!(preview["tzdata"]["version"].is_string());
    let of_file = operator.prints(&["schedules", "preview", "--file", file.to_str().unwrap(), "--count", "2"]).await;
    assert_eq!(of_file.lines().count(), 3, "{of_file}");
    assert_eq!(operator.call(&["schedules", "preview"]).await.0, 2);

    assert_eq!(operator.prints(&["schedules", "pause", "hourly"]).await, "hourly is paused\n");
    let id = operator.prints(&["schedules", "trigger", "hourly"]).await;
    server.until_status(id.trim(), "completed").await;
    assert!(operator.prints(&["schedules", "resume", "hourly"]).await.starts_with("hourly is not paused, next at "));
    assert_eq!(operator.prints(&["schedules", "remove", "hourly"]).await, "hourly is removed\n");
    let (code, _, err) = operator.call(&["schedules", "show", "hourly"]).await;
    assert!(code == 6 && err.contains("schedule hourly not found"), "{code}: {err}");
}
