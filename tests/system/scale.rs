//! Many agents, many actions: what takes how long, and how much memory.

use crate::support::{On, PATIENCE, Server, ServerOptions, WireAgent, eventually, until_reached};
use serde_json::{Value, json};
use std::cell::Cell;
use std::cmp::Reverse;
use std::time::{Duration, Instant};

const AGENTS: i64 = 100_000;
/// How much a server may grow while it resolves and files an action for all of them, in kilobytes.
const GROWTH: u64 = 150 * 1024;
const ACTION: &str = "018f0000-0000-7000-8000-000000000001";

fn counts(state: &str, resolved: bool) -> Value {
    let mut counts = json!({ "total": AGENTS, "resolved": resolved, "pending": 0, "sent": 0, "succeeded": 0,
        "failed": 0, "timed_out": 0, "undeliverable": 0, "expired": 0, "cancelled": 0 });
    counts[state] = AGENTS.into();
    counts
}

pub async fn a_hundred_thousand_commands_are_stored_once_in_bounded_memory_and_cancelled_over_a_kill(on: On) {
    // There has to be a middle of the cancelling that a kill can hit.
    let mut server = Server::prepare(on.options().with("FAILPOINTS", "outcome_record=sleep(300)"));
    let started = Instant::now();
    server.put_agents(AGENTS as usize, "stream").await;
    println!("{AGENTS} agents were put in within {:?}", started.elapsed());
    server.restart().await;
    let before = server.memory("VmRSS");

    let (dropped, most) = (Instant::now(), Cell::new(before));
    let document = json!({ "id": ACTION, "name": "all", "target": "TRUE", "operations": [{ "module": "ping" }] });
    server.drop_file("all.json", &document.to_string());
    let mut sql = server.sql();
    let mut holds = async |what: &str, query: &str| {
        while sql.number(query) == 0 {
            most.set(most.get().max(server.memory("VmRSS")));
            assert!(dropped.elapsed() < PATIENCE, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{what}: {:?} after the file", dropped.elapsed());
    };
    holds("the last commit of commands", "SELECT count(*) AS n FROM actions WHERE resolved").await;
    let filed = "SELECT count(*) AS n FROM actions WHERE resolved AND dispatched_through = resolved_through";
    holds("the last open row, and all of it known to be written", filed).await;
    let peak = server.memory("VmHWM");
    println!("memory: {before} kB before, {} kB at most when sampled, {peak} kB at its peak", most.get());
    assert!(peak < before + GROWTH, "it grew by {} kB", peak - before);

    let mut sql = server.sql();
    assert_eq!(sql.number("SELECT count(*) AS n FROM commands"), AGENTS);
    assert_eq!(sql.number("SELECT count(DISTINCT agent_no) AS n FROM commands"), AGENTS);
    assert_eq!(sql.number("SELECT count(*) AS n FROM open_commands"), AGENTS);
    assert_eq!(server.action(ACTION).await["counts"], counts("pending", true));

    let cancelled = Instant::now();
    let (status, view) = server.call("POST", &format!("/v1/actions/{ACTION}/cancel"), None).await;
    assert_eq!((status, &view["status"]), (200, &json!("cancelled")), "{view}");
    let done = eventually("some of the commands to be cancelled", || async {
        let done = server.sql().number("SELECT count(*) AS n FROM outcomes");
        (done > 0).then_some(done)
    })
    .await;
    server.kill();
    println!("killed after {done} of {AGENTS} were cancelled, {:?} after the call", cancelled.elapsed());
    assert!(done < AGENTS, "there was no middle to be hit");
    server.unset("FAILPOINTS");
    server.restart().await;
    let view = eventually("all commands to be cancelled", || async {
        let view = server.action(ACTION).await;
        (view["counts"]["cancelled"] == AGENTS).then_some(view)
    })
    .await;
    println!("all are cancelled {:?} after the call", cancelled.elapsed());
    assert_eq!((&view["status"], &view["counts"]), (&json!("cancelled"), &counts("cancelled", true)));
    let mut sql = server.sql();
    assert_eq!(sql.exceptions(), []);
    assert_eq!(sql.number("SELECT count(*) AS n FROM outcomes WHERE is_final AND status = 7"), AGENTS);
    assert_eq!(sql.number("SELECT count(*) AS n FROM open_commands"), 0);
    eventually("the action to be over", || async {
        let over = server.sql().number("SELECT count(*) AS n FROM actions WHERE ended_at IS NOT NULL");
        (over == 1).then_some(())
    })
    .await;
}

pub async fn an_agent_that_connects_after_many_actions_gets_all_of_them_in_order_and_soon(on: On) {
    const ACTIONS: i64 = 1_440;
    let mut server = Server::prepare(ServerOptions { in_memory: true, ..on.options() });
    server.put_agents(AGENTS as usize, "stream").await;
    server.restart().await;
    let token = server.enroll("late", json!({})).await;
    let (started, now) = (Instant::now(), chrono::Utc::now());
    let order = |n: i64| (n % 3 - 1, now - chrono::Duration::seconds(10 + n * 7_919 % ACTIONS));
    for n in 0..ACTIONS {
        let (priority, valid_from) = order(n);
        // One of them is for all the others too, who stay away.
        let target = if n == 0 { "TRUE" } else { "name = 'late'" };
        let document = json!({ "name": n.to_string(), "target": target, "operations": [{ "module": "ping" }],
            "priority": priority, "valid_from": valid_from.to_rfc3339() });
        server.drop_file(&format!("{n}.json"), &document.to_string());
    }
    let waiting = "SELECT count(*) AS n FROM open_commands WHERE state = 0";
    let all = (ACTIONS + AGENTS) as usize;
    until_reached("commands that wait for their agent", all, || server.sql().number(waiting) as usize).await;
    println!("{ACTIONS} actions wait {:?} after the first file", started.elapsed());
    server.kill();
    let restarted = Instant::now();
    server.restart().await;
    println!("a server with these and {AGENTS} agents is ready {:?} after its start", restarted.elapsed());

    let connected = Instant::now();
    let mut agent = WireAgent::hello(&server.url, &token, 16).await;
    let mut names: Vec<i64> = Vec::new();
    while names.len() < ACTIONS as usize {
        for command in agent.commands().await {
            if names.is_empty() {
                println!("the first command came {:?} after hello", connected.elapsed());
            }
            let name = command["name"].as_str().unwrap().parse().unwrap();
            // A read of the store that takes longer than what has ended is remembered brings it once more.
            if names.contains(&name) {
                println!("{name} came twice");
            } else {
                names.push(name);
            }
            agent.succeed(&command).await;
        }
    }
    println!("the last command came {:?} after hello", connected.elapsed());
    let mut sorted: Vec<i64> = (0..ACTIONS).collect();
    sorted.sort_by_key(|n| (Reverse(order(*n).0), order(*n).1));
    let wrong = names.iter().zip(&sorted).position(|(came, wanted)| came != wanted);
    let around = wrong.map(|at| names[at.saturating_sub(3)..].iter().take(8).map(|n| order(*n)).collect::<Vec<_>>());
    assert_eq!(wrong, None, "out of order: {around:?}");
    let ended = "SELECT count(*) AS n FROM actions WHERE ended_at IS NOT NULL";
    until_reached("completed actions", ACTIONS as usize - 1, || server.sql().number(ended) as usize).await;
    // The one that others have yet to do stays open.
    println!("all actions were completed {:?} after hello", connected.elapsed());
    assert_eq!(server.sql().exceptions(), []);
}
