//! A node dies, and all of its agents come to the others at once.

use crate::cluster;
use crate::support::{On, Server, ServerOptions, WireAgent, by_length, eventually};
use futures_util::StreamExt;
use futures_util::stream::iter;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Actions whose commands each of them has to get.
const BACKLOG: usize = 3;

#[actix_rt::test]
async fn thousands_of_agents_that_come_at_once_have_their_backlog_soon() {
    let agents = by_length(2_000, 10_000);
    // A socket here and one in a server for each of them; the servers raise their own limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > agents as u64 + 1_000, "the limit of open files is {hard}: too low for {agents} agents");
    let database = tokio::task::spawn_blocking(|| cluster::own(&[])).await.unwrap();
    let options = ServerOptions { cluster: Some(database), ..On::Postgres.options() };
    let options = options.with("ODOSHI__NODE__HEARTBEAT", "500ms").with("ODOSHI__NODE__DEAD_AFTER", "30s");
    let mut died = Server::start(options.clone().with("ODOSHI__NODE__NAME", "died")).await;
    let name = Some(died.database().to_owned());
    let mut others = Vec::new();
    for node in ["one", "two"] {
        let options = ServerOptions { database: name.clone(), ..options.clone() };
        others.push(Server::start(options.with("ODOSHI__NODE__NAME", node)).await);
    }

    let (http, enroll) = (reqwest::Client::new(), died.enroll_token().await);
    let tokens: Vec<String> = iter(0..agents)
        .map(|number| {
            let call = http.post(format!("{}/v1/agent/enroll", died.url)).bearer_auth(&enroll);
            let call =
                call.json(&json!({ "name": format!("a{number}"), "labels": {}, "facts": {}, "version": "wire" }));
            async move {
                // A busy server says 503: it has not enrolled the agent then.
                eventually("an agent to be enrolled", || async {
                    let answer = call.try_clone().unwrap().send().await.unwrap();
                    if answer.status() == 503 {
                        return None;
                    }
                    let answer: serde_json::Value = answer.json().await.unwrap();
                    Some(answer["token"].as_str().unwrap().to_owned())
                })
                .await
            }
        })
        .buffered(64)
        .collect()
        .await;
    let connect = |url: String, token: String| async move { WireAgent::persistently(&url, &token, 16).await };
    // Each answers its pings.
    let old: Vec<_> = iter(&tokens)
        .map(|token| connect(died.url.clone(), token.clone()))
        .buffer_unordered(256)
        .map(|mut agent| actix_rt::spawn(async move { agent.expect_close().await }))
        .collect()
        .await;
    let sessions = "SELECT count(*) AS n FROM agent_sessions";
    eventually("all to be connected", || async { (died.sql().number(sessions) == agents as i64).then_some(()) }).await;

    died.kill();
    old.iter().for_each(|agent| agent.abort());
    let admin = died.admin_token();
    for number in 0..BACKLOG {
        let document = json!({ "name": format!("n{number}"), "target": "TRUE", "operations": [{ "module": "ping" }] });
        let (status, answer) = others[0].call_as(&admin, "POST", "/v1/actions", Some(document)).await;
        assert_eq!(status, 202, "{answer}");
    }
    let rows = "SELECT count(*) AS n FROM commands";
    let all = (agents * BACKLOG) as i64;
    eventually("all commands to be written", || async { (died.sql().number(rows) == all).then_some(()) }).await;

    let load = || {
        let numbers = database.psql(died.database(), "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database");
        (numbers.parse::<f64>().unwrap(), database.cpu())
    };
    let (transactions, cpu) = load();
    let begun = Instant::now();
    let mut waits: Vec<Duration> = iter(tokens.iter().enumerate())
        .map(|(number, token)| {
            let url = &others[number % others.len()].url;
            async move {
                let mut agent = WireAgent::persistently(url, token, 16).await;
                let (mut got, mut stored, mut waited) = (BTreeSet::new(), BTreeSet::new(), Duration::ZERO);
                // Its commands may come in several frames, and what is stored may be said in between. It stays until it has
                // heard that all its results are kept.
                while stored.len() < BACKLOG {
                    let frame = agent.next().await.expect("a frame and no close");
                    match frame["type"].as_str() {
                        Some("commands") => {
                            for command in frame["commands"].as_array().unwrap() {
                                got.insert(command["action"].as_str().unwrap().to_owned());
                                agent.succeed(command).await;
                            }
                            waited = begun.elapsed();
                        }
                        Some("stored") => {
                            let runs = frame["commands"].as_array().unwrap();
                            stored.extend(runs.iter().map(|run| run["action"].as_str().unwrap().to_owned()));
                        }
                        _ => {}
                    }
                }
                assert_eq!(got, stored);
                waited
            }
        })
        .buffer_unordered(agents)
        .collect()
        .await;
    let (all_over, (transactions_after, cpu_after)) = (begun.elapsed(), load());
    waits.sort_unstable();
    println!(
        "{agents} agents at once had {BACKLOG} commands each: half after {:.1?}, all after {:.1?}; all results were stored \
         after {all_over:.1?}; the database made {:.0} transactions and took {:.1?} of CPU",
        waits[agents / 2],
        waits[agents - 1],
        transactions_after - transactions,
        cpu_after - cpu,
    );
    let size =
        "SELECT sum(pg_total_relation_size(oid))::bigint AS n FROM pg_class WHERE relname IN ('commands', 'outcomes')";
    println!(
        "a node with {} agents takes {} MB; a command and its outcome take {} bytes in the database",
        agents / others.len(),
        others[0].memory("VmRSS") / 1_024,
        died.sql().number(size) / all,
    );
    let open = "SELECT count(*) AS n FROM actions WHERE ended_at IS NULL";
    eventually("the actions to be completed", || async { (died.sql().number(open) == 0).then_some(()) }).await;
    assert_eq!(died.sql().number("SELECT coalesce(sum(succeeded), 0) AS n FROM action_counts"), all);
    assert_eq!(died.sql().exceptions(), []);
}
