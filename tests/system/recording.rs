//! A server with a sender of the tests' own, which writes down what is handed to it and when: this program once more, in a
//! process of its own.

use crate::support::{On, Server, ServerOptions, eventually, mostly_waits};
use actix::prelude::*;
use odoshi::Odoshi;
use odoshi::config::Config;
use odoshi::senders::{Cancelled, Deferred, Deliver, Delivery, Drain, Outcome, SenderContext};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The transport that it serves.
const TRANSPORT: &str = "recording";
/// Names the file that it writes to; without it, it isn't to run.
const RECORD: &str = "ODOSHI_TEST_RECORD";

/// How it is started, with what it records in this folder.
pub fn command(data: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "recording::the_server_itself", "--nocapture"]).env(RECORD, data.join("recorded"));
    command
}

/// Appends a line to the file for each command: its action, its agent, when it was due, and when it came.
struct RecordingSender {
    context: SenderContext,
    file: File,
}

impl Actor for RecordingSender {
    type Context = Context<Self>;
}

impl Supervised for RecordingSender {}

impl Handler<Deliver> for RecordingSender {
    type Result = ResponseFuture<Vec<Deferred>>;

    fn handle(&mut self, Deliver(deliveries): Deliver, _: &mut Self::Context) -> Self::Result {
        let now = self.context.store.now();
        let line = |delivery: &Delivery| {
            let due = &delivery.due;
            format!("{} {} {} {}\n", due.action_no, due.agent_no, due.due_at.0, now.0)
        };
        let text: String = deliveries.iter().map(line).collect();
        self.file.write_all(text.as_bytes()).unwrap();
        let reports = deliveries.iter().map(|delivery| delivery.report(Outcome::Succeeded(vec![]), now)).collect();
        let context = self.context.clone();
        Box::pin(async move {
            drop(context.record(reports).await);
            Vec::new()
        })
    }
}

impl Handler<Cancelled> for RecordingSender {
    type Result = ();

    fn handle(&mut self, _: Cancelled, _: &mut Self::Context) {}
}

impl Handler<Drain> for RecordingSender {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

/// Not a test unless it is started by one: the server.
#[test]
fn the_server_itself() {
    let Some(path) = std::env::var_os(RECORD) else { return };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let config = Config::load(None, &[]).unwrap();
    actix_rt::System::new().block_on(async {
        let open = move |context| {
            let mut file = File::options().create(true).append(true).open(&path).unwrap();
            // A line that a kill cut off ends here.
            file.write_all(b"\n").unwrap();
            RecordingSender { context, file }
        };
        Odoshi::builder(config).sender(TRANSPORT, open).run().await.unwrap();
    });
}

/// One who connects to nobody, and whose commands go through the sender.
async fn add_agent(server: &Server, name: &str) {
    let body = json!({ "name": name, "transport": TRANSPORT });
    let (status, answer) = server.call("POST", "/v1/agents", Some(body)).await;
    assert_eq!(status, 201, "{answer}");
}

#[actix_rt::test]
async fn what_no_node_serves_waits_and_is_told_and_goes_out_by_one_that_does() {
    mostly_waits();
    let first = Server::start(On::Postgres.options()).await;
    add_agent(&first, "one").await;
    add_agent(&first, "two").await;
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    let id = first.submit(document).await;
    let unserved = |wanted: Value| {
        let (first, wanted) = (&first, wanted);
        async move {
            eventually("what is unserved to be told", || async {
                let (status, ready) = first.readyz().await?;
                (status == 200 && ready["unserved"] == wanted).then_some(())
            })
            .await
        }
    };
    unserved(json!({ TRANSPORT: 2 })).await;

    // The action is the first one's still; the sender is another's.
    let database = Some(first.database().to_owned());
    let options = ServerOptions { recording: true, database, ..On::Postgres.options() };
    let second = Server::start(options.with("ODOSHI__NODE__NAME", "second")).await;
    let view = first.until_status(&id, "completed").await;
    assert_eq!(view["counts"]["succeeded"], 2);
    unserved(json!({})).await;
    let lines = recorded(&second);
    assert_eq!(lines.len(), 2, "{lines:?}");
    let (_, nodes) = first.call("GET", "/v1/nodes", None).await;
    let transports = nodes["nodes"][1]["transports"].as_array().unwrap();
    assert!(transports.contains(&json!("stream")) && transports.contains(&json!(TRANSPORT)), "{nodes}");

    // What the first one is given from now on comes to the second one too, and soon.
    let id = first.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    assert_eq!(first.until_status(&id, "completed").await["counts"]["succeeded"], 2);
}

#[actix_rt::test]
async fn what_a_stopped_node_had_begun_another_one_goes_on_with() {
    mostly_waits();
    const AGENTS: usize = 300;
    let recording = ServerOptions { recording: true, ..On::Postgres.options() };
    let mut first = Server::prepare(recording.clone().with("ODOSHI__NODE__NAME", "first"));
    std::fs::create_dir_all(first.data()).unwrap();
    first.put_agents(AGENTS, TRANSPORT).await;
    first.restart().await;
    let database = Some(first.database().to_owned());
    let second = Server::start(ServerOptions { database, ..recording }.with("ODOSHI__NODE__NAME", "second")).await;
    let document = json!({ "name": "n", "target": "TRUE", "spread": "20s", "operations": [{ "module": "ping" }] });
    let (id, admin) = (first.submit(document).await, first.admin_token());
    eventually("the first node to have sent some", || async { (recorded(&first).len() > 10).then_some(()) }).await;
    assert!(first.terminate().await.success(), "{}", first.log_text());
    eventually("the action to be completed", || async {
        let (_, view) = second.call_as(&admin, "GET", &format!("/v1/actions/{id}"), None).await;
        (view["status"] == "completed").then_some(())
    })
    .await;
    let (before, after) = (recorded(&first), recorded(&second));
    println!("the first node sent {}, and the second {}", before.len(), lateness(after.iter().copied()));
    assert_eq!(before.len() + after.len(), AGENTS, "each once");
    assert!(!before.is_empty() && !after.is_empty(), "{} and {}", before.len(), after.len());
}

const COMMANDS: usize = 200_000;

/// What a server has recorded: (action, agent, when it was due, when it came). A line that a kill cut off is none.
fn recorded(server: &Server) -> Vec<[i64; 4]> {
    let text = std::fs::read_to_string(server.data().join("recorded")).unwrap();
    let line = |line: &str| -> Option<[i64; 4]> {
        let numbers: Vec<i64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
        numbers.try_into().ok()
    };
    let lines: Vec<[i64; 4]> = text.lines().filter_map(line).collect();
    for [action, agent, due, came] in &lines {
        assert!(came >= due, "action {action}, agent {agent}: at {came}, and it was due at {due}");
    }
    lines
}

/// How many, and how many milliseconds late.
fn lateness(lines: impl Iterator<Item = [i64; 4]>) -> String {
    let mut late: Vec<i64> = lines.map(|[_, _, due, came]| came - due).collect();
    late.sort_unstable();
    if late.is_empty() {
        return "no commands".into();
    }
    let at = |percent: usize| late[(late.len() * percent / 100).min(late.len() - 1)];
    format!("{} commands, late by {} ms (p50), {} ms (p99), {} ms at most", late.len(), at(50), at(99), at(100))
}

pub async fn two_hundred_thousand_commands_go_out_in_their_time_over_a_kill(on: On) {
    let mut server = Server::prepare(ServerOptions { recording: true, ..on.options() });
    std::fs::create_dir_all(server.data()).unwrap();
    server.put_agents(COMMANDS, TRANSPORT).await;
    server.restart().await;
    let spread = json!({ "name": "n", "target": "TRUE", "spread": "20s", "operations": [{ "module": "ping" }] });
    let id = server.submit(spread).await;
    eventually("the first commands", || async { (!recorded(&server).is_empty()).then_some(()) }).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    server.kill();
    let killed_at = chrono::Utc::now().timestamp_millis();
    server.restart().await;
    let view = server.until_status(&id, "completed").await;
    assert_eq!(view["counts"]["succeeded"], COMMANDS, "{view}");
    assert_eq!(server.sql().exceptions(), []);

    let lines = recorded(&server);
    let mut first: BTreeMap<i64, [i64; 4]> = BTreeMap::new();
    for line in &lines {
        first.entry(line[1]).or_insert(*line);
    }
    assert_eq!(first.len(), COMMANDS, "each was delivered");
    let dues: BTreeSet<i64> = first.values().map(|line| line[2]).collect();
    assert!(dues.last().unwrap() - dues.first().unwrap() >= 19_000, "they were spread over the time");
    println!("before the kill: {}", lateness(first.values().copied().filter(|line| line[3] <= killed_at)));
    println!("after it: {}", lateness(first.values().copied().filter(|line| line[3] > killed_at)));
    println!("{} were delivered twice", lines.len() - COMMANDS);
}

pub async fn what_is_urgent_displaces_what_has_time_and_nothing_is_lost(on: On) {
    const AGENTS: usize = 5_000;
    let options = on.options().with("ODOSHI__DELAY__CAPACITY", "500");
    let mut server = Server::prepare(ServerOptions { recording: true, ..options });
    std::fs::create_dir_all(server.data()).unwrap();
    server.put_agents(AGENTS, TRANSPORT).await;
    server.restart().await;
    let document = |more: Value| {
        let mut document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    // Many times what there is room for, much of it due far off; then what is due now.
    let far = server.submit(document(json!({ "spread": "12s" }))).await;
    let farthest = server.submit(document(json!({ "spread": "1h" }))).await;
    for id in [&far, &farthest] {
        server.until_status(id, "running").await;
    }
    let mut urgent = Vec::new();
    for _ in 0..2 {
        urgent.push(server.submit(document(json!({}))).await);
    }
    for id in &urgent {
        server.until_status(id, "completed").await;
    }
    let view = server.until_status(&far, "completed").await;
    assert_eq!(view["counts"]["succeeded"], AGENTS, "{view}");
    // What had time kept nothing waiting, for it is there still.
    assert_eq!(server.action(&farthest).await["status"], "running");
    server.call("POST", &format!("/v1/actions/{farthest}/cancel"), None).await;
    eventually("the rest to be cancelled", || async {
        let counts = &server.action(&farthest).await["counts"];
        let over = counts["cancelled"].as_u64()? + counts["succeeded"].as_u64()?;
        (over == AGENTS as u64).then_some(())
    })
    .await;
    assert_eq!(server.sql().exceptions(), []);
    let lines = recorded(&server);
    for action in [1, 3, 4] {
        let of: Vec<[i64; 4]> = lines.iter().copied().filter(|line| line[0] == action).collect();
        assert_eq!(of.len(), AGENTS, "each once: nothing was killed");
        println!("action {action}: {}", lateness(of.into_iter()));
    }
}
