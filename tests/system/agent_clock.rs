//! Expiry at an agent: its wall clock may say anything, and what it finds expired it answers so.

use crate::support::{AgentProcess, Line, On, Proxy, Server, WireAgent, eventually, success};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Makes a program see the wall clock that a file says, as an offset; its other clocks are those of the machine.
struct WallClock(PathBuf);

impl WallClock {
    fn new(folder: &Path, offset: &str) -> Self {
        let clock = Self(folder.join("wall-clock"));
        clock.step(offset);
        clock
    }

    /// From now on the clock is this far from the machine's, such as `-20d`.
    fn step(&self, offset: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }

    fn environment(&self) -> Vec<(String, String)> {
        let library = std::fs::read_dir("/usr/lib")
            .unwrap()
            .map(|folder| folder.unwrap().path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.exists())
            .expect("libfaketime is installed (scripts/test installs it)");
        [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DONT_RESET", "1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

fn document(extra: Value) -> Value {
    let mut document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    for (key, value) in extra.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

async fn until_online(server: &Server, agent: &str) {
    eventually("the agent to be online", || async {
        let (_, view) = server.call("GET", &format!("/v1/agents/{agent}"), None).await;
        (view["status"] == "online").then_some(())
    })
    .await;
}

/// Waits until an action's time is over.
async fn until_expired(server: &Server, id: &str) {
    let view = server.action(id).await;
    let expires_at: DateTime<Utc> = view["action"]["expires_at"].as_str().unwrap().parse().unwrap();
    eventually("the action's time to be over", || async { (Utc::now() > expires_at).then_some(()) }).await;
}

pub async fn commands_run_whatever_happens_to_the_wall_clock_of_their_agent(on: On) {
    let server = Server::start(on.options()).await;
    let clock = WallClock::new(server.folder.path(), "-20d");
    let enroll = server.enroll_token().await;
    let mut agent =
        AgentProcess::start_in(&server.url, "stepped", server.folder.path(), &enroll, "", clock.environment());
    until_online(&server, "stepped").await;
    for offset in ["+0", "-20d", "+20d"] {
        clock.step(offset);
        let id = server.submit(document(json!({ "expires_after": "1h", "name": offset }))).await;
        let view = server.until_status(&id, "completed").await;
        assert_eq!(view["counts"]["succeeded"], 1, "with the clock at {offset}: {view}");
    }
    // It starts anew while its clock is wrong, and has to do with what it knew before.
    agent.kill();
    agent.restart();
    let id = server.submit(document(json!({ "expires_after": "1h" }))).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
}

pub async fn a_command_that_arrives_after_its_expiry_is_not_run_and_is_expired(on: On) {
    let server = Server::start(on.options()).await;
    let clock = WallClock::new(server.folder.path(), "+0");
    let proxy = Proxy::to(server.url.rsplit(':').next().unwrap().parse().unwrap());
    let url = format!("http://127.0.0.1:{}", proxy.port);
    let enroll = server.enroll_token().await;
    let _agent = AgentProcess::start_in(&url, "late", server.folder.path(), &enroll, "", clock.environment());
    until_online(&server, "late").await;
    let argv = json!(["sh", "-c", "touch $AGENT_FOLDER/ran"]);
    let operations = json!([{ "module": "exec", "parameters": { "argv": argv } }]);
    let mut lasts = 3;
    loop {
        until_online(&server, "late").await;
        clock.step("+0");
        proxy.set(Line::BlackHole);
        let expires_after = format!("{lasts}s");
        let id = server.submit(document(json!({ "expires_after": expires_after, "operations": operations }))).await;
        until_expired(&server, &id).await;
        clock.step("-2h");
        proxy.set(Line::Open);
        let view = until_over(&server, &id).await;
        // On a machine that is busy it may have expired before there was a command.
        if view["status"] == "expired" {
            lasts *= 4;
            continue;
        }
        assert_eq!(view["counts"]["expired"], 1, "{view}");
        break;
    }
    let next = server.submit(document(json!({}))).await;
    server.until_status(&next, "completed").await;
    assert!(!server.folder.path().join("late/ran").exists(), "it ran after its expiry");
}

/// Waits until an action has ended, whichever way.
async fn until_over(server: &Server, id: &str) -> Value {
    eventually("the action to end", || async {
        let view = server.action(id).await;
        (view["status"] == "completed" || view["status"] == "expired").then_some(view)
    })
    .await
}

fn expired(command: &Value) -> Value {
    let mut result = success(command);
    result["status"] = "expired".into();
    result["results"] = json!([]);
    json!({ "type": "results", "results": [result] })
}

pub async fn an_agent_says_that_a_command_has_expired_and_is_believed_when_it_has(on: On) {
    let server = Server::start(on.options()).await;
    let token = server.enroll("judge", json!({})).await;
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    // What it has received is `sent`, and would have timed out much later.
    let mut lasts = 2;
    let (id, command) = loop {
        let expires_after = format!("{lasts}s");
        let extra = json!({ "expires_after": expires_after, "timeout": "1h", "max_runs": 3 });
        let id = server.submit(document(extra)).await;
        tokio::select! {
            biased;
            mut commands = agent.commands() => break (id, commands.remove(0)),
            // On a machine that is busy it may have expired before it was delivered.
            _ = until_over(&server, &id) => lasts *= 4,
        }
    };
    let about = json!({ "action": command["action"], "run": command["run"] });
    agent.send(json!({ "type": "received", "commands": [about] })).await;
    until_expired(&server, &id).await;
    agent.send(expired(&command)).await;
    assert_eq!(agent.expect("stored").await["commands"], json!([about]));
    let view = server.until_status(&id, "completed").await;
    assert_eq!(view["counts"]["expired"], 1, "{view}");

    // One whose clock is wrong is not believed: the command is delivered again, and no attempt has failed.
    let id = server.submit(document(json!({ "max_deliveries": 1 }))).await;
    let command = agent.commands().await.remove(0);
    let said = Instant::now();
    agent.send(expired(&command)).await;
    let stored = agent.expect("stored").await;
    assert_eq!(stored["commands"], json!([]));
    assert_eq!(stored["rejected"][0]["action"], json!(id));
    assert_eq!(server.action(&id).await["counts"]["pending"], 1);
    let again = agent.commands().await.remove(0);
    assert!(said.elapsed() >= Duration::from_secs(5), "not at once");
    assert_eq!((&again["action"], &again["run"], &again["attempt"]), (&json!(id), &json!(1), &json!(1)));
    agent.succeed(&again).await;
    assert_eq!(server.until_status(&id, "completed").await["counts"]["succeeded"], 1);
}
