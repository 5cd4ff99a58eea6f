//! Metadata: what agents report all the time, over each door, to everybody who looks.

use crate::cluster;
use crate::nodes::Cluster;
use crate::support::{AgentProcess, On, Server, ServerOptions, WireAgent, by_length, eventually, mostly_waits};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message;

/// A stream of server-sent events.
struct Events {
    answer: reqwest::Response,
    text: String,
    /// The last id.
    id: String,
}

impl Events {
    async fn open(server: &Server, token: &str, target: &str, last_id: Option<&str>) -> Self {
        let url = format!("{}/v1/metadata/events", server.url);
        let url = reqwest::Url::parse_with_params(&url, [("target", target)]).unwrap();
        let mut request = reqwest::Client::new().get(url).bearer_auth(token);
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        Self { answer, text: String::new(), id: String::new() }
    }

    /// The next event's agent and values.
    async fn next(&mut self) -> (String, BTreeMap<String, Value>) {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                if let Some(id) = event.lines().find_map(|line| line.strip_prefix("id: ")) {
                    id.clone_into(&mut self.id);
                }
                if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                    let data: Value = serde_json::from_str(data).unwrap();
                    let items = data["items"].as_array().unwrap().iter();
                    let items = items.map(|item| (item["key"].as_str().unwrap().to_owned(), item["value"].clone()));
                    return (data["agent"].as_str().unwrap().to_owned(), items.collect());
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(300), self.answer.chunk()).await;
            self.text.push_str(std::str::from_utf8(&chunk.expect("an event").unwrap().expect("no end")).unwrap());
        }
    }

    /// Reads until this value is seen.
    async fn until(&mut self, agent: &str, key: &str, value: &Value) {
        loop {
            let (of, values) = self.next().await;
            if of == agent && values.get(key) == Some(value) {
                return;
            }
        }
    }
}

async fn report(agent: &mut WireAgent, seq: i64, items: Value) -> Value {
    agent.send(json!({ "type": "metadata", "seq": seq, "items": items })).await;
    let stored = agent.expect("metadata_stored").await;
    assert_eq!(stored["seq"], seq, "{stored}");
    stored
}

async fn values(server: &Server, agent: &str) -> Value {
    let (status, answer) = server.call("GET", &format!("/v1/agents/{agent}/metadata"), None).await;
    assert_eq!(status, 200, "{answer}");
    answer["metadata"].clone()
}

async fn matching(server: &Server, target: &str) -> i64 {
    let (status, answer) = server.call("POST", "/v1/targets/preview", Some(json!({ "target": target }))).await;
    assert_eq!(status, 200, "{answer}");
    answer["count"].as_i64().unwrap()
}

pub async fn what_an_agent_reports_is_stored_shown_and_matched(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let at = "2026-01-02T03:04:05.000Z";
    let items = json!([{ "key": "load", "value": 0.5, "collected_at": at }, { "key": "fan", "error": "no sensor" },
        { "key": "disk.free", "value": "7 GB" }]);
    let stored = report(&mut agent, 7, items).await;
    assert!(stored.get("rejected").is_none(), "{stored}");
    let shown = values(&server, "a").await;
    assert_eq!(shown["load"], json!({ "value": 0.5, "error": null, "collected_at": at }));
    assert_eq!((&shown["fan"]["value"], &shown["fan"]["error"]), (&Value::Null, &json!("no sensor")));
    assert_eq!(
        matching(&server, r#"metadata.load < 1 AND metadata."disk.free" LIKE '7%' AND metadata.fan IS NULL"#).await,
        1
    );
    let (_, list) = server.call("GET", "/v1/agents?metadata=load,none", None).await;
    assert_eq!(list["agents"][0]["metadata"], json!({ "load": shown["load"] }));
    assert!(server.call("GET", "/v1/agents", None).await.1["agents"][0].get("metadata").is_none());

    // What exceeds a limit is named, and the rest is stored; a time in the future becomes the time of arrival.
    let long = "x".repeat(5_000);
    let items = json!([{ "key": "load", "value": 2, "collected_at": "2999-01-01T00:00:00Z" },
        { "key": "long", "value": long }, { "key": "", "value": 1 }]);
    let stored = report(&mut agent, 8, items).await;
    let rejected = stored["rejected"].as_array().unwrap();
    assert_eq!(rejected.iter().map(|rejected| &rejected["key"]).collect::<Vec<_>>(), ["long", ""], "{stored}");
    let shown = values(&server, "a").await;
    assert_eq!((&shown["load"]["value"], &shown["load"]["clamped"]), (&json!(2), &json!(true)));
    assert!(shown["load"]["collected_at"].as_str().unwrap().starts_with("20"), "{shown}");
    assert_eq!(shown.as_object().unwrap().len(), 3);
    // Of several frames at once, each is answered, and the newest value stays.
    for seq in 10..40 {
        agent.send(json!({ "type": "metadata", "seq": seq, "items": [{ "key": "n", "value": seq }] })).await;
    }
    let mut open: BTreeSet<i64> = (10..40).collect();
    while !open.is_empty() {
        open.remove(&agent.expect("metadata_stored").await["seq"].as_i64().unwrap());
    }
    assert_eq!(values(&server, "a").await["n"]["value"], 39);

    // Over plain HTTP.
    let body = json!({ "items": [{ "key": "by_http", "value": [1, 1.10] }, { "key": "", "value": 1 }] });
    let (status, answer) = server.call_as(&token, "POST", "/v1/agent/metadata", Some(body)).await;
    assert_eq!((status, answer["rejected"].as_array().unwrap().len()), (200, 1), "{answer}");
    assert_eq!(values(&server, "a").await["by_http"]["value"], json!([1, 1.1]));
    assert_eq!(server.call("POST", "/v1/agent/metadata", Some(json!({ "items": [] }))).await.0, 403);
    assert_eq!(server.call_as(&token, "POST", "/v1/agent/metadata", Some(json!({ "items": 1 }))).await.0, 422);
    assert_eq!(server.call("GET", "/v1/agents/nobody/metadata", None).await.0, 404);
    assert_eq!(server.call("GET", "/v1/agents?metadata=a,,b", None).await.0, 422);
    assert_eq!(server.call("GET", "/v1/metadata/events?target=nonsense", None).await.0, 422);

    // The same name later is a new agent.
    assert_eq!(server.call("DELETE", "/v1/agents/a", None).await.0, 204);
    server.enroll("a", json!({})).await;
    assert_eq!(values(&server, "a").await, json!({}));
}

pub async fn an_answered_report_survives_a_kill_and_a_stop_writes_what_waits(on: On) {
    let mut server = Server::start(on.options().with("ODOSHI__METADATA__FLUSH_INTERVAL", "3s")).await;
    let token = server.enroll("a", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    for number in 0..3 {
        report(&mut agent, number, json!([{ "key": "n", "value": number }])).await;
        server.kill();
        server.restart().await;
        assert_eq!(values(&server, "a").await["n"]["value"], number);
        agent = WireAgent::persistently(&server.url, &token, 16).await;
    }
    // The first one is written at once, and the second waits for its turn when the server stops.
    report(&mut agent, 10, json!([{ "key": "n", "value": 10 }])).await;
    agent.send(json!({ "type": "metadata", "seq": 11, "items": [{ "key": "n", "value": 11 }] })).await;
    agent.send(json!({ "type": "received", "commands": [{ "action": uuid::Uuid::nil(), "run": 1 }] })).await;
    // The cancel of what nobody knows says that the frame before it has been taken.
    agent.expect("cancel").await;
    server.terminate().await;
    server.restart().await;
    assert_eq!(values(&server, "a").await["n"]["value"], 11);
}

pub async fn watchers_see_a_snapshot_and_then_what_changes(on: On) {
    let server = Server::start(on.options().with("ODOSHI__HTTP__TOKEN_STREAMS", "1000")).await;
    let admin = server.admin_token();
    let mut agents = Vec::new();
    for name in ["a", "b", "c"] {
        let token = server.enroll(name, json!({ "role": if name == "c" { "db" } else { "web" } })).await;
        let mut agent = WireAgent::hello(&server.url, &token, 16).await;
        report(&mut agent, 1, json!([{ "key": "load", "value": 1 }, { "key": "zone", "value": name }])).await;
        agents.push(agent);
    }
    let target = "labels.role = 'web'";
    let mut watch = Events::open(&server, &admin, target, None).await;
    let snapshot: BTreeMap<String, _> = [watch.next().await, watch.next().await].into();
    let of = |name: &str| BTreeMap::from([("load".to_owned(), json!(1)), ("zone".to_owned(), json!(name))]);
    assert_eq!(snapshot, [("a".to_owned(), of("a")), ("b".to_owned(), of("b"))].into());
    report(&mut agents[2], 2, json!([{ "key": "load", "value": 2 }])).await;
    report(&mut agents[1], 2, json!([{ "key": "load", "value": 3 }])).await;
    watch.until("b", "load", &json!(3)).await;
    // Some who don't read, and some whose target matches nobody, hold up nobody.
    let mut idle = Vec::new();
    for number in 0..20 {
        let target = if number % 2 == 0 { "TRUE" } else { "name = 'nobody'" };
        idle.push(Events::open(&server, &admin, target, None).await);
    }
    let others: Vec<i64> = (10..30).collect();
    for value in &others {
        report(&mut agents[0], *value, json!([{ "key": "load", "value": value }])).await;
    }
    watch.until("a", "load", &json!(29)).await;
    // After a break, what was missed comes, and not everything.
    let id = watch.id.clone();
    drop(watch);
    report(&mut agents[0], 40, json!([{ "key": "missed", "value": true }])).await;
    let mut watch = Events::open(&server, &admin, target, Some(&id)).await;
    watch.until("a", "missed", &json!(true)).await;
    // One that matches later is seen from its next report on.
    assert_eq!(server.call("PATCH", "/v1/agents/c", Some(json!({ "labels": { "role": "web" } }))).await.0, 200);
    report(&mut agents[2], 50, json!([{ "key": "load", "value": 50 }])).await;
    watch.until("c", "load", &json!(50)).await;
    let metrics = server.metrics().await;
    assert!(metrics.contains("odoshi_metadata_values_total"), "{metrics}");
}

pub async fn the_reference_agent_reports_what_its_programs_print(on: On) {
    mostly_waits();
    let server = Server::start(on.options()).await;
    let folder = server.folder.path().to_owned();
    let counter = folder.join("counter");
    std::fs::write(&counter, "1").unwrap();
    let settings = format!(
        "[[metadata]]\nkey = \"counter\"\ncommand = [\"cat\", \"{}\"]\ninterval = \"1s\"\njitter = \"0s\"\n\
         [[metadata]]\nkey = \"text\"\ncommand = [\"echo\", \"up 3 days\"]\ninterval = \"1h\"\n\
         [[metadata]]\nkey = \"broken\"\ncommand = [\"/bin/sh\", \"-c\", \"echo no sensor >&2; exit 4\"]\ninterval = \"1h\"\n\
         [[metadata]]\nkey = \"slow\"\ncommand = [\"sleep\", \"600\"]\ninterval = \"1h\"\ntimeout = \"1s\"\n",
        counter.display()
    );
    let token = server.enroll_token().await;
    let _agent = AgentProcess::start_with(&server.url, "a", &[], &folder, &token, &settings);
    let shown = eventually("all values", || async {
        let (status, answer) = server.call("GET", "/v1/agents/a/metadata", None).await;
        let shown = answer["metadata"].clone();
        (status == 200 && shown.as_object()?.len() == 4).then_some(shown)
    })
    .await;
    assert_eq!((&shown["counter"]["value"], &shown["text"]["value"]), (&json!(1), &json!("up 3 days")));
    assert_eq!(shown["broken"]["error"], "exit code 4: no sensor");
    assert_eq!(shown["slow"]["error"], "timed out");
    std::fs::write(&counter, "2").unwrap();
    eventually("the new value", || async { (values(&server, "a").await["counter"]["value"] == 2).then_some(()) }).await;
    assert_eq!(matching(&server, "last_seen > now() - interval '5 minutes'").await, 1);
}

pub async fn an_agent_joins_a_live_action_by_what_it_reports(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("a", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    report(&mut agent, 1, json!([{ "key": "battery", "value": 80 }])).await;
    let document = json!({ "name": "n", "target": "metadata.battery < 20", "membership": "live",
        "operations": [{ "module": "ping" }] });
    let id = server.submit(document).await;
    eventually("its agents to be found", || async { (server.action(&id).await["status"] == "running").then_some(()) })
        .await;
    assert_eq!(server.action(&id).await["counts"]["total"], 0);
    report(&mut agent, 2, json!([{ "key": "battery", "value": 19 }])).await;
    let commands = agent.commands().await;
    assert_eq!(commands[0]["action"], json!(id));
}

pub async fn a_connected_agent_is_seen_and_one_that_checks_in_too(on: On) {
    let server = Server::start(on.options()).await;
    let (one, two) = (server.enroll("one", json!({})).await, server.enroll("two", json!({})).await);
    server.enroll("never", json!({})).await;
    let _agent = WireAgent::hello(&server.url, &one, 16).await;
    let (status, _) = server.call_as(&two, "GET", "/v1/agent/commands", None).await;
    assert_eq!(status, 200);
    let recent = "last_seen > now() - interval '5 minutes'";
    eventually("both to be seen", || async { (matching(&server, recent).await == 2).then_some(()) }).await;
    eventually("both to be online", || async { (matching(&server, "status = 'online'").await == 2).then_some(()) })
        .await;
}

/// Blocks on what talks to PostgreSQL's own programs, elsewhere.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Waits for the answer to a report; false if the connection ends before it.
async fn is_answered(agent: &mut WireAgent, seq: i64) -> bool {
    loop {
        match agent.next().await {
            Ok(frame) if frame["type"] == "metadata_stored" && frame["seq"] == seq => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// What an agent has reported, and what of it was answered.
#[derive(Default)]
struct Reported {
    sent: i64,
    stored: i64,
}

pub async fn nothing_acknowledged_is_lost_to_kills_and_restarts_of_the_database(on: On) {
    let (agents, faults) = (10, by_length(4, 20));
    let cluster = if on == On::Postgres { Some(aside(|| cluster::own(&[])).await) } else { None };
    let mut server = Server::start(ServerOptions { cluster, ..on.options() }).await;
    let ended = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for number in 0..agents {
        let token = server.enroll(&format!("a{number}"), json!({})).await;
        let (url, ended) = (server.url.clone(), ended.clone());
        let reported = Rc::new(RefCell::new(Reported::default()));
        let of_task = reported.clone();
        let task = actix_rt::spawn(async move {
            let mut agent = WireAgent::persistently(&url, &token, 16).await;
            let mut seq = 0;
            // In the end the newest value is answered.
            while !ended.load(Ordering::SeqCst) || of_task.borrow().stored < of_task.borrow().sent {
                if !ended.load(Ordering::SeqCst) {
                    of_task.borrow_mut().sent += 1;
                }
                let value = of_task.borrow().sent;
                seq += 1;
                let items: Vec<Value> = (0..5).map(|key| json!({ "key": format!("k{key}"), "value": value })).collect();
                let frame = json!({ "type": "metadata", "seq": seq, "items": items }).to_string();
                let sent = futures_util::SinkExt::send(&mut agent.socket, Message::text(frame)).await;
                let is_stored = sent.is_ok() && is_answered(&mut agent, seq).await;
                if is_stored {
                    of_task.borrow_mut().stored = value;
                } else {
                    agent = WireAgent::persistently(&url, &token, 16).await;
                }
            }
        });
        tasks.push((format!("a{number}"), reported, task));
    }
    for fault in 0..faults {
        let before: i64 = tasks.iter().map(|(_, reported, _)| reported.borrow().stored).sum();
        let total = || tasks.iter().map(|(_, reported, _)| reported.borrow().stored).sum::<i64>();
        eventually("some answers", || async { (total() > before + 2 * agents).then_some(()) }).await;
        match cluster {
            Some(cluster) if fault % 2 == 1 => {
                aside(|| cluster.kill()).await;
                aside(|| cluster.resume()).await;
            }
            _ => {
                server.kill();
                server.restart().await;
            }
        }
        for (name, reported, _) in &tasks {
            // What was answered before the look is there, and what was not reported is not.
            let least = reported.borrow().stored;
            let shown = eventually("the values", || async {
                let (status, answer) = server.call("GET", &format!("/v1/agents/{name}/metadata"), None).await;
                (status == 200).then_some(answer["metadata"].clone())
            })
            .await;
            let most = reported.borrow().sent;
            for (key, view) in shown.as_object().unwrap() {
                let value = view["value"].as_i64().unwrap();
                assert!((least..=most).contains(&value), "{name} {key}: {value} is not in {least}..={most}");
            }
        }
    }
    ended.store(true, Ordering::SeqCst);
    for (name, reported, task) in tasks {
        task.await.unwrap();
        let value = reported.borrow().sent;
        let shown = values(&server, &name).await;
        assert!(shown.as_object().unwrap().values().all(|view| view["value"] == value), "{name}: {value} {shown}");
    }
    drop(server);
    if let Some(cluster) = cluster {
        aside(|| cluster.stop()).await;
    }
}

/// A change that is reported to one node is seen at another, whether nodes notify each other or not.
#[actix_rt::test]
async fn a_change_at_one_node_is_seen_at_another() {
    mostly_waits();
    for notify in ["true", "false"] {
        let mut cluster = Cluster::start(ServerOptions::default().with("ODOSHI__NODE__NOTIFY", notify)).await;
        let admin = cluster.servers[0].admin_token();
        let mut watch = Events::open(&cluster.servers[1], &admin, "TRUE", None).await;
        for number in 1..4 {
            report(&mut cluster.agents[0], number, json!([{ "key": "n", "value": number }])).await;
            watch.until("a0", "n", &json!(number)).await;
        }
        let sent = |metrics: &str| {
            let line = metrics.lines().find(|line| line.starts_with("odoshi_hints_total{what=\"sent\"}"));
            line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
        };
        drop(watch);
        // While nobody watches, nobody is told.
        let watchers = async || cluster.servers[0].sql().number("SELECT count(*) FROM nodes WHERE watches");
        eventually("nobody to watch", || async { (watchers().await == 0).then_some(()) }).await;
        let before: i64 = sent(&cluster.servers[0].metrics().await);
        for number in 10..13 {
            report(&mut cluster.agents[0], number, json!([{ "key": "n", "value": number }])).await;
        }
        assert_eq!(sent(&cluster.servers[0].metrics().await), before, "with node.notify = {notify}");
    }
}

/// An agent moves from one node to another while the first one can't write what it has: the newest value stays.
#[actix_rt::test]
async fn a_value_that_is_held_back_at_one_node_does_not_undo_a_newer_one() {
    mostly_waits();
    let mut cluster = Cluster::start(ServerOptions::default()).await;
    report(&mut cluster.agents[0], 1, json!([{ "key": "n", "value": 1 }])).await;
    // Nobody can change a row for some seconds; which of the two nodes is first then is open.
    let mut blocker = cluster.servers[0].sql_write();
    let blocking = std::thread::spawn(move || {
        blocker.execute("BEGIN; LOCK TABLE agent_metadata IN EXCLUSIVE MODE; SELECT pg_sleep(4); COMMIT");
    });
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'agent_metadata'::regclass AND mode = 'ExclusiveLock' \
         AND granted";
    let server = &cluster.servers[0];
    eventually("the table to be locked", || async { (server.sql().number(held) == 1).then_some(()) }).await;
    let old = json!({ "type": "metadata", "seq": 2, "items": [{ "key": "n", "value": 2, "collected_at": "2026-03-01T00:00:00Z" }] });
    cluster.agents[0].send(old).await;
    let mut moved = WireAgent::hello(&cluster.servers[1].url, &cluster.tokens[0], 16).await;
    moved.send(json!({ "type": "metadata", "seq": 3, "items": [{ "key": "n", "value": 3 }] })).await;
    assert_eq!(moved.expect("metadata_stored").await["seq"], 3);
    blocking.join().unwrap();
    eventually("the first node to have written", || async {
        let waiting = cluster.servers[0].metrics().await;
        waiting.contains("odoshi_batch_waiting{actor=\"metadata\"} 0").then_some(())
    })
    .await;
    assert_eq!(values(&cluster.servers[0], "a0").await["n"]["value"], 3);
}
