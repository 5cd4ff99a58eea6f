//! Every actor panics while there is work, at its entrance and right after its commits; nothing may be lost by that.

use crate::support::{Fleet, On, Server, ServerOptions, eventually};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const AGENTS: usize = 12;
/// Waves of actions at most; an actor that was not hit by then has no point where it works.
const WAVES: usize = 60;
/// So many come at once; after them, each waits for the one before.
const LEAST_WAVES: usize = 4;

/// An actor or two, where they panic, and how often they must have crashed before the load ends.
///
/// `3*off->1*panic` panics the fourth time that the point is passed: not at the start, when there is no work yet.
const ACTORS: &[(&str, &str, u64)] = &[
    ("spool_loader", "spool_loader=2*off->1*panic->2*off->1*panic;spool_loader.stored=1*off->1*panic", 3),
    ("spool_loader", "spool_loader.notified=1*off->1*panic->1*off->1*panic->2*off->1*panic", 3),
    ("resolver", "resolver=3*off->1*panic->5*off->1*panic;resolver.page=2*off->1*panic->3*off->1*panic", 4),
    ("command_store", "command_store=1*off->1*panic->2*off->1*panic;command_store.written=1*panic->2*off->1*panic", 4),
    ("delay_scheduler", "delay_scheduler=4*off->1*panic->9*off->1*panic;delay_scheduler.answered=1*panic", 3),
    // A panic while a sender is waited for costs that chunk alone, and is no crash of the router.
    ("sender_router", "sender_router=1*panic->1*off->1*panic;sender_router.answered=1*off->1*panic", 2),
    ("stream_sender", "stream_sender=1*panic->1*off->1*panic;stream_sender.connect=5*off->1*panic->30*off->1*panic", 3),
    ("outcomes", "outcomes=1*off->1*panic->4*off->1*panic;outcomes.written=1*panic->5*off->1*panic->9*off->1*panic", 4),
    ("sessions", "sessions=1*off->1*panic;sessions.written=1*panic", 2),
    ("open_actions complete", "open_actions=2*off->1*panic->3*off->1*panic;complete=2*off->1*panic->3*off->1*panic", 4),
    ("advance expire", "advance=2*off->1*panic->2*off->1*panic;expire=2*off->1*panic->2*off->1*panic", 4),
    (
        "overdue retention recur",
        "overdue=2*off->1*panic->2*off->1*panic;retention=1*panic;recur=1*off->1*panic->2*off->1*panic",
        5,
    ),
    (
        "leaving_agents live_join hooks",
        "leaving_agents=2*off->1*panic;live_join=1*off->1*panic->1*off->1*panic;hooks=1*off->1*panic",
        4,
    ),
    ("peers", "peers=2*off->1*panic->3*off->1*panic", 2),
    ("session", "session=2*off->1*panic->9*off->1*panic;session.stored=3*off->1*panic->9*off->1*panic", 4),
];

fn often(on: On, points: &str) -> ServerOptions {
    on.options()
        .with("FAILPOINTS", points)
        .with("ODOSHI__SUPERVISION__MAX_RESTARTS", "100")
        .with("ODOSHI__SUPERVISION__BACKOFF_MIN", "5ms")
        .with("ODOSHI__SUPERVISION__BACKOFF_MAX", "50ms")
}

/// How often the actor has crashed. Connections aren't supervised, their agents are: those are counted in the log.
async fn crashes(server: &Server, actor: &str) -> u64 {
    match actor {
        "session" => server.log_text().matches("an agent's session crashed").count() as u64,
        _ => {
            let mut crashes = 0;
            for actor in actor.split(' ') {
                crashes += server.restarts(actor).await;
            }
            crashes
        }
    }
}

/// Three actions, of which one comes from a file and one fails and is run again.
async fn submit_wave(server: &Server, wave: usize) -> Vec<(String, &'static str)> {
    let tally = json!([{ "module": "tally", "parameters": format!("wave {wave}") }]);
    let by_file = format!("00000000-0000-7000-8000-{wave:012}");
    let document = json!({ "id": by_file, "name": "file", "target": "TRUE", "operations": tally });
    server.drop_file(&format!("wave-{wave}.json"), &document.to_string());
    let again = json!([{ "module": "tally", "parameters": format!("again {wave}") }]);
    let by_call = server.submit(json!({ "name": "call", "target": "TRUE", "operations": again })).await;
    let mut all = vec![(by_file, "succeeded"), (by_call, "succeeded")];
    if wave == 0 {
        let unknown = json!({ "name": "fails", "target": "TRUE", "max_runs": 2, "operations": [{ "module": "none" }] });
        all.push((server.submit(unknown).await, "failed"));
    }
    all
}

async fn whole_is_kept_while_it_panics(on: On, actor: &str, points: &str, wanted: u64) {
    let server = Server::start(often(on, points)).await;
    let token = server.enroll_token().await;
    let fleet = Fleet::start(AGENTS, &server.url, &token, server.folder.path());
    eventually("all agents", || async {
        // Enrolled is enough: those that are not connected yet get theirs when they are.
        let probe =
            json!({ "name": "probe", "target": "TRUE", "expires_after": "1h", "operations": [{ "module": "ping" }] });
        let view = server.until_status(&server.submit(probe).await, "completed").await;
        (view["counts"]["total"] == AGENTS).then_some(())
    })
    .await;
    let mut actions = Vec::new();
    for wave in 0.. {
        let crashed = crashes(&server, actor).await;
        assert!(wave < WAVES, "{actor}: after {wave} waves it crashed {crashed} times");
        if wave >= LEAST_WAVES && crashed >= wanted {
            break;
        }
        actions.extend(submit_wave(&server, wave).await);
        if wave >= LEAST_WAVES {
            server.until_status(&actions.last().unwrap().0, "completed").await;
        }
    }
    for (id, state) in &actions {
        let view = server.until_status(id, "completed").await;
        let mut counts = json!({ "total": AGENTS, "resolved": true, "pending": 0, "sent": 0, "succeeded": 0, "failed": 0,
            "timed_out": 0, "undeliverable": 0, "expired": 0, "cancelled": 0 });
        counts[state] = AGENTS.into();
        assert_eq!(view["counts"], counts, "{actor}: {id}");
        let commands = server.commands(id).await;
        let agents: BTreeSet<&str> = commands.iter().map(|command| command["agent"].as_str().unwrap()).collect();
        assert_eq!((commands.len(), agents.len()), (AGENTS, AGENTS), "{actor}: {id}");
        assert!(commands.iter().all(|command| command["status"] == *state), "{actor}: {commands:?}");
        if *state == "failed" {
            assert!(commands.iter().all(|command| command["runs"] == 2), "{actor}: {commands:?}");
        }
    }
    for ((agent, what), runs) in fleet.tally.lock().unwrap().iter() {
        assert_eq!(*runs, 1, "{actor}: {agent} ran {what} more than once");
    }
    // A file is moved after the commit of what is in it.
    let files = |folder: &str| std::fs::read_dir(server.spool(folder)).unwrap().count();
    eventually("all files to be put away", || async {
        (["new", "cur", "failed", "done"].map(files) == [0, 0, 0, actions.len() / 2]).then_some(())
    })
    .await;
    eventually("the server to be ready", || async {
        server.readyz().await.filter(|(status, _)| *status == 200).map(|_| ())
    })
    .await;
    println!("{actor}: {} crashes in {} actions", crashes(&server, actor).await, actions.len());
}

pub async fn nothing_is_lost_whichever_actor_panics(on: On) {
    join_all(ACTORS.iter().map(|(actor, points, wanted)| whole_is_kept_while_it_panics(on, actor, points, *wanted)))
        .await;
}

pub async fn an_actor_that_restarts_do_not_help_ends_the_server_and_the_next_start_goes_on(on: On) {
    let options = on
        .options()
        .with("FAILPOINTS", "resolver.page=1*off->panic(no luck)")
        .with("ODOSHI__SUPERVISION__MAX_RESTARTS", "3")
        .with("ODOSHI__SUPERVISION__BACKOFF_MIN", "20ms")
        // Long enough that only a drain that waits for the actor would need it.
        .with("ODOSHI__SHUTDOWN_TIMEOUT", "10m");
    let mut server = Server::start(options).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = crate::support::WireAgent::hello(&server.url, &token, 16).await;
    let document = |id: &str| json!({ "id": id, "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    let ids: Vec<String> = (1..=20).map(|n| format!("00000000-0000-7000-8000-{n:012}")).collect();
    let mut accepted = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        if n % 2 == 0 {
            server.drop_file(&format!("{id}.json"), &document(id).to_string());
            accepted.push(id);
            continue;
        }
        let admin = server.admin_token();
        let call = reqwest::Client::new().post(format!("{}/v1/actions", server.url)).bearer_auth(admin);
        // Refused from some moment on; what was answered 202 counts.
        if call.json(&document(id)).send().await.is_ok_and(|answer| answer.status() == 202) {
            accepted.push(id);
        }
    }
    let watch = async {
        while let Some((status, readiness)) = server.readyz().await {
            if status != 200 {
                return Some((status, readiness));
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        None
    };
    if let Some((status, readiness)) = watch.await {
        assert_eq!((status, &readiness["ready"]), (503, &json!(false)));
    }
    assert_eq!(agent.expect_close().await, 1012, "agents are told to go elsewhere");
    // It drains and ends, and doesn't wait for the actor that can't.
    let ended = server.wait().await;
    assert_eq!(ended.code(), Some(1), "the service manager must see that it failed");
    let log = server.log_text();
    for text in
        ["the server drains and stops", "an actor crashed too often", "the actor resolver crashed too often", "no luck"]
    {
        assert!(log.contains(text), "{text:?} is missing in {log}");
    }
    server.unset("FAILPOINTS");
    server.restart().await;
    let mut agent = crate::support::WireAgent::hello(&server.url, &token, 100).await;
    let mut open: BTreeSet<String> = accepted.iter().map(|id| (*id).clone()).collect();
    while !open.is_empty() {
        for command in agent.commands().await {
            open.remove(command["action"].as_str().unwrap());
            agent.succeed(&command).await;
        }
    }
    for id in accepted {
        let view: Value = server.until_status(id, "completed").await;
        assert_eq!((&view["counts"]["total"], &view["counts"]["succeeded"]), (&json!(1), &json!(1)));
    }
}

pub async fn a_crashed_connection_whose_agent_stays_away_does_not_hold_up_the_stop(on: On) {
    let mut server = Server::start(often(on, "session=1*panic")).await;
    let token = server.enroll("gone", json!({})).await;
    let mut agent = crate::support::WireAgent::hello(&server.url, &token, 16).await;
    server.submit(json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] })).await;
    agent.expect_close().await;
    assert!(server.terminate().await.success(), "nobody is left to wait for");
}

pub async fn nothing_of_a_call_that_crashed_is_written_by_the_next_one(on: On) {
    // It has done everything but the commit.
    let server = Server::start(on.options().with("FAILPOINTS", "action_cancel=1*panic")).await;
    let document =
        json!({ "name": "n", "target": "name = 'nobody'", "operations": [{ "module": "ping" }], "delay": "1h" });
    let id = server.submit(document.clone()).await;
    let cancel = format!("/v1/actions/{id}/cancel");
    let call = reqwest::Client::new().post(format!("{}{cancel}", server.url)).bearer_auth(server.admin_token());
    // An error, or no answer at all.
    assert!(!call.send().await.is_ok_and(|answer| answer.status().is_success()));
    for _ in 0..10 {
        server.submit(document.clone()).await;
    }
    assert_eq!(server.action(&id).await["status"], "scheduled");
    let cancels = "SELECT count(*) AS n FROM audit WHERE did = 'action.cancel'";
    assert_eq!(server.sql().number(cancels), 0);
    let (status, view) = server.call("POST", &cancel, None).await;
    assert_eq!((status, &view["status"]), (200, &json!("cancelled")), "{view}");
    assert_eq!(server.sql().number(cancels), 1);
}
