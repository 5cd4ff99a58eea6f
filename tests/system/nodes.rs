//! Several servers that share one PostgreSQL database: whoever takes an action, agents of all of them get it.

use crate::support::{Balancer, Fleet, On, Server, ServerOptions, WireAgent, eventually, program};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// How many servers.
pub const NODES: usize = 3;
/// A node that isn't told looks by itself after 10 s.
const TOLD_TIMEOUT: Duration = Duration::from_secs(5);

/// A check-in that nobody wakes polls after 5 s.
const POLLED_AFTER: Duration = Duration::from_secs(4);

/// Servers on one database, and an agent connected to each. They share the first one's admin token.
pub struct Cluster {
    pub servers: Vec<Server>,
    pub agents: Vec<WireAgent>,
    pub tokens: Vec<String>,
    admin: String,
}

impl Cluster {
    pub async fn start(mut options: ServerOptions) -> Self {
        if !options.env.iter().any(|(key, _)| key == "ODOSHI__NODE__DEAD_AFTER") {
            // Nobody dies: a machine that is too busy for a heartbeat must not look like it.
            options = options.with("ODOSHI__NODE__DEAD_AFTER", "5m");
        }
        let named = |number: usize| options.clone().with("ODOSHI__NODE__NAME", &format!("node-{number}"));
        let first = Server::start(ServerOptions { on: On::Postgres, ..named(0) }).await;
        let (database, admin) = (Some(first.database().to_owned()), first.admin_token());
        let mut cluster = Self { servers: vec![first], agents: Vec::new(), tokens: Vec::new(), admin };
        for number in 1..NODES {
            let options = ServerOptions { on: On::Postgres, database: database.clone(), ..named(number) };
            cluster.servers.push(Server::start(options).await);
        }
        for number in 0..NODES {
            let token = cluster.servers[0].enroll(&format!("a{number}"), json!({})).await;
            cluster.agents.push(WireAgent::hello(&cluster.servers[number].url, &token, 16).await);
            cluster.tokens.push(token);
        }
        cluster
    }

    /// Calls one of the servers as the admin.
    pub async fn call(&self, node: usize, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.servers[node].call_as(&self.admin, method, path, body).await;
        assert!(status < 300, "{method} {path} on {node}: {status} {answer}");
        answer
    }

    pub async fn submit(&self, node: usize) -> String {
        let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
        self.call(node, "POST", "/v1/actions", Some(document)).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn until_completed(&self, node: usize, id: &str) -> Value {
        eventually(&format!("{id} to be completed"), || async {
            let view = self.call(node, "GET", &format!("/v1/actions/{id}"), None).await;
            (view["status"] == "completed").then_some(view)
        })
        .await
    }

    /// Each agent gets the action's command and says that it went well; how long the last one waited for it.
    async fn all_run(&mut self, id: &str, since: Instant) -> Duration {
        let mut longest = Duration::ZERO;
        for agent in &mut self.agents {
            let commands = agent.commands().await;
            longest = longest.max(since.elapsed());
            assert_eq!((commands.len(), commands[0]["action"].as_str()), (1, Some(id)), "{commands:?}");
            agent.succeed(&commands[0]).await;
            agent.expect("stored").await;
        }
        longest
    }

    /// How long an action that this node takes needs to all agents: of several the soonest, for the machine may be busy.
    async fn soonest_run(&mut self, node: usize) -> Duration {
        let mut soonest = Duration::MAX;
        for _ in 0..10 {
            let begun = Instant::now();
            let id = self.submit(node).await;
            soonest = soonest.min(self.all_run(&id, begun).await);
            let view = self.until_completed((node + 1) % NODES, &id).await;
            assert_eq!(view["counts"]["succeeded"], NODES);
            if soonest < TOLD_TIMEOUT {
                break;
            }
        }
        soonest
    }
}

#[actix_rt::test]
async fn an_action_reaches_the_agents_of_all_nodes_whichever_took_it() {
    let mut cluster = Cluster::start(ServerOptions::default()).await;
    for node in 0..NODES {
        let took = cluster.soonest_run(node).await;
        println!("an action taken by node {node} was with the agents of all nodes after {took:?}");
        assert!(took < TOLD_TIMEOUT, "nobody was told: {took:?}");
    }
    let mut sql = cluster.servers[0].sql();
    assert_eq!(sql.number("SELECT count(*) AS n FROM open_commands"), 0, "nobody was written down as away");

    // Paused by one node, resumed by another, cancelled by a third.
    let late = json!({ "name": "n", "target": "TRUE", "delay": "10s", "operations": [{ "module": "ping" }] });
    let id = cluster.call(0, "POST", "/v1/actions", Some(late)).await["id"].as_str().unwrap().to_owned();
    cluster.call(1, "POST", &format!("/v1/actions/{id}/pause"), None).await;
    let other = cluster.submit(1).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    cluster.all_run(&other, Instant::now()).await;
    cluster.call(2, "POST", &format!("/v1/actions/{id}/resume"), None).await;
    for agent in &mut cluster.agents {
        let commands = agent.commands().await;
        assert_eq!(commands[0]["action"], id.as_str());
        let run = json!({ "action": id, "run": 1 });
        agent.send(json!({ "type": "received", "commands": [run] })).await;
    }
    cluster.call(1, "POST", &format!("/v1/actions/{id}/cancel"), None).await;
    for agent in &mut cluster.agents {
        assert_eq!(agent.expect("cancel").await["actions"], json!([id]));
    }
    // An agent that is disabled on one node is closed by the one that it is connected to.
    cluster.call(0, "PATCH", "/v1/agents/a2", Some(json!({ "disabled": true }))).await;
    assert_eq!(cluster.agents[2].expect_close().await, 4003);
}

#[actix_rt::test]
async fn an_agent_that_has_moved_is_no_longer_connected_where_it_was() {
    let mut cluster = Cluster::start(ServerOptions::default()).await;
    // It has a command, and its old connection lives on as if nothing had happened.
    let id = cluster.submit(1).await;
    let commands = cluster.agents[0].commands().await;
    let mut moved = WireAgent::hello(&cluster.servers[1].url, &cluster.tokens[0], 16).await;
    assert_eq!(cluster.agents[0].expect_close().await, 4001);
    // What it had there comes again, unless its old connection's end says first that it is there.
    let again = moved.commands().await;
    assert_eq!(again[0]["action"], commands[0]["action"]);
    let agents = std::mem::take(&mut cluster.agents);
    cluster.agents = std::iter::once(moved).chain(agents.into_iter().skip(1)).collect();
    cluster.agents[0].succeed(&again[0]).await;
    for agent in &mut cluster.agents[1..] {
        let commands = agent.commands().await;
        agent.succeed(&commands[0]).await;
    }
    cluster.until_completed(2, &id).await;
    let took = cluster.soonest_run(2).await;
    assert!(took < TOLD_TIMEOUT, "{took:?}");
}

#[actix_rt::test]
async fn an_agent_that_asks_one_node_and_waits_is_told_of_what_another_one_has() {
    let cluster = Cluster::start(ServerOptions::default()).await;
    let token = cluster.servers[0].enroll("asks", json!({})).await;
    // By itself it would look after 5 s. Of several times one is sooner, however busy the machine is.
    let mut soonest = Duration::MAX;
    for round in 1..=10 {
        let asking = async {
            let (status, answer) = cluster.servers[2].call_as(&token, "GET", "/v1/agent/commands?wait=60s", None).await;
            let answered = Instant::now();
            assert_eq!((status, answer["commands"].as_array().map(Vec::len)), (200, Some(1)), "{answer}");
            let run = json!({ "action": answer["commands"][0]["action"], "run": 1 });
            let received = json!({ "commands": [run] });
            let (status, answer) =
                cluster.servers[2].call_as(&token, "POST", "/v1/agent/received", Some(received)).await;
            assert_eq!(status, 200, "{answer}");
            answered
        };
        let submitting = async {
            // Nobody can see from outside that it waits.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let submitted = Instant::now();
            cluster.submit(0).await;
            submitted
        };
        let (answered, submitted) = tokio::join!(asking, submitting);
        let waited = answered.saturating_duration_since(submitted);
        println!("round {round}: the agent that asked node 2 had the command that node 0 took after {waited:?}");
        soonest = soonest.min(waited);
        if soonest < POLLED_AFTER {
            break;
        }
    }
    assert!(soonest < POLLED_AFTER, "it was not told: {soonest:?}");
}

#[actix_rt::test]
async fn nodes_that_tell_each_other_nothing_find_it_by_themselves() {
    let options = ServerOptions::default().with("ODOSHI__NODE__NOTIFY", "false");
    let mut cluster = Cluster::start(options).await;
    let begun = Instant::now();
    let id = cluster.submit(0).await;
    let took = cluster.all_run(&id, begun).await;
    println!("without notifications the last agent had it after {took:?}");
    cluster.until_completed(2, &id).await;
}

#[actix_rt::test]
async fn a_node_that_is_killed_is_taken_over_and_its_agents_work_goes_on_elsewhere() {
    let quick = [("ODOSHI__NODE__HEARTBEAT", "500ms"), ("ODOSHI__NODE__DEAD_AFTER", "20s")];
    let options = quick.iter().fold(ServerOptions::default(), |options, (key, value)| options.with(key, value));
    let mut cluster = Cluster::start(options).await;
    let names = |nodes: &Value| -> Vec<String> {
        let nodes = nodes["nodes"].as_array().unwrap().iter();
        nodes.filter(|node| node["alive"] == true).map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    };
    eventually("three nodes, and an agent at each", || async {
        let nodes = cluster.call(1, "GET", "/v1/nodes", None).await;
        let agents = nodes["nodes"].as_array().unwrap().iter().all(|node| node["agents"] == 1);
        (agents && names(&nodes) == ["node-0", "node-1", "node-2"]).then_some(())
    })
    .await;

    // Its agent has one command and not the result; the other actions come while nobody knows that it is dead.
    let id = cluster.submit(0).await;
    let commands = cluster.agents[0].commands().await;
    assert_eq!(commands[0]["action"], id.as_str());
    cluster.servers[0].kill();
    let killed = Instant::now();
    let meanwhile = cluster.submit(1).await;
    eventually("the dead node to be taken over", || async {
        (names(&cluster.call(1, "GET", "/v1/nodes", None).await) == ["node-1", "node-2"]).then_some(())
    })
    .await;
    println!("a dead node was taken over after {:?}", killed.elapsed());
    cluster.agents[0] = WireAgent::hello(&cluster.servers[2].url, &cluster.tokens[0], 16).await;
    for agent in &mut cluster.agents {
        let mut ran = BTreeSet::new();
        while ran.len() < 2 {
            for command in agent.commands().await {
                agent.succeed(&command).await;
                ran.insert(command["action"].as_str().unwrap().to_owned());
            }
        }
    }
    for action in [&id, &meanwhile] {
        let view = cluster.until_completed(1, action).await;
        assert_eq!(view["counts"]["succeeded"], NODES, "{view}");
    }
    assert_eq!(cluster.servers[1].sql().exceptions(), []);

    // A dead node is listed, as not alive, until its row is taken over.
    eventually("the command line to list the other two alone", || async {
        let mut list = Command::new(program());
        list.args(["nodes", "-o", "json"])
            .env("ODOSHI_SERVER", &cluster.servers[1].url)
            .env("ODOSHI_TOKEN", &cluster.admin);
        let list = tokio::task::spawn_blocking(move || list.output().unwrap()).await.unwrap();
        let listed: Vec<Value> = serde_json::from_slice(&list.stdout).ok()?;
        let names: Vec<&str> = listed.iter().map(|node| node["name"].as_str().unwrap()).collect();
        (names == ["node-1", "node-2"]).then_some(())
    })
    .await;
}

#[actix_rt::test]
async fn a_hundred_thousand_commands_make_few_notifications() {
    const ACTIONS: usize = 200;
    const AGENTS: usize = 500;
    let cluster = Cluster::start(ServerOptions::default()).await;
    let store = cluster.servers[0].store().await;
    let named = |n| odoshi::store::NewAgent {
        enrollment: odoshi::domain::agent::Enrollment { name: format!("away-{n}"), ..Default::default() },
        transport: "stream".into(),
        address: None,
        secret: None,
    };
    store.agent_insert((0..AGENTS).map(named).collect()).await.unwrap();
    store.node_stop().await.unwrap();
    let sent = async |node: usize| {
        let text = eventually("the metrics", || async {
            let call = reqwest::Client::new().get(format!("{}/metrics", cluster.servers[node].url));
            let answer = call.bearer_auth(&cluster.admin).send().await.unwrap();
            // While the store is away nobody's token can be looked up.
            if answer.status() == 200 { answer.text().await.ok() } else { None }
        })
        .await;
        let line = text.lines().find_map(|line| line.strip_prefix("odoshi_hints_total{what=\"sent\"} ")?.parse().ok());
        line.unwrap_or(0.0)
    };
    let (mut before, begun) = (Vec::new(), Instant::now());
    for node in 0..NODES {
        before.push(sent(node).await);
    }
    let document = json!({ "name": "n", "target": "name LIKE 'away-%'", "operations": [{ "module": "ping" }] });
    for n in 0..ACTIONS {
        cluster.servers[n % NODES].drop_file(&format!("{n}.json"), &document.to_string());
    }
    eventually("all commands", || async {
        let all = cluster.servers[0].sql().number("SELECT count(*) AS n FROM commands");
        (all == (ACTIONS * AGENTS) as i64).then_some(())
    })
    .await;
    for (node, before) in before.into_iter().enumerate() {
        let (sent, seconds) = (sent(node).await - before, begun.elapsed().as_secs_f64());
        println!("node {node} sent {sent} notifications in {seconds:.1} s");
        assert!(sent >= 1.0 && sent <= 20.0 * seconds + 1.0, "{sent} in {seconds} s");
    }
}

#[actix_rt::test]
async fn what_a_killed_node_had_taken_is_done_soon_after_its_takeover() {
    const AGENTS: usize = 60;
    let quick = [("ODOSHI__NODE__HEARTBEAT", "500ms"), ("ODOSHI__NODE__DEAD_AFTER", "20s")];
    let options = quick.iter().fold(ServerOptions::default(), |options, (key, value)| options.with(key, value));
    let mut cluster = Cluster::start(options).await;
    let ports = cluster.servers.iter().map(|server| server.url.rsplit(':').next().unwrap().parse().unwrap());
    let balancer = Balancer::over(ports.collect());
    let enroll = cluster.servers[0].enroll_token().await;
    let folder = tempfile::tempdir().unwrap();
    let _fleet = Fleet::start(AGENTS, &balancer.url, &enroll, folder.path());
    eventually("all agents to be online", || async {
        let online = cluster.servers[1].sql().number("SELECT count(*) AS n FROM agent_sessions");
        (online == (AGENTS + NODES) as i64).then_some(())
    })
    .await;
    let document = json!({ "name": "n", "target": "name LIKE 'a0__'", "operations": [{ "module": "tally" }] });
    let mut ids = Vec::new();
    for _ in 0..100 {
        let accepted = cluster.call(0, "POST", "/v1/actions", Some(document.clone())).await;
        ids.push(accepted["id"].as_str().unwrap().to_owned());
    }
    cluster.servers[0].kill();
    let killed = Instant::now();
    let open = cluster.servers[1].sql().number("SELECT count(*) AS n FROM actions WHERE ended_at IS NULL");
    for id in &ids {
        let view = cluster.until_completed(1, id).await;
        assert_eq!(view["counts"]["succeeded"], AGENTS, "{view}");
    }
    let took = killed.elapsed();
    println!("{open} of 100 actions were open when their node was killed; the last result came {took:?} after that");
    assert_eq!(cluster.servers[1].sql().exceptions(), []);
}

#[cfg(feature = "failpoints")]
#[actix_rt::test]
async fn a_node_frozen_inside_of_a_transaction_holds_nobody_up_and_writes_nothing_later() {
    use nix::sys::signal::{Signal, kill};
    let quick = [("ODOSHI__NODE__HEARTBEAT", "500ms"), ("ODOSHI__NODE__DEAD_AFTER", "20s")];
    let options = quick.iter().fold(ServerOptions::default(), |options, (key, value)| options.with(key, value));
    let mut cluster = Cluster::start(options).await;
    cluster.servers[0].terminate().await;
    cluster.servers[0].set("FAILPOINTS", "command_insert=1*sleep(10000)");
    cluster.servers[0].restart().await;
    let id = cluster.submit(0).await;
    let mut sql = cluster.servers[0].sql();
    eventually("the node to be inside of a transaction", || {
        let inside = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() \
                      AND state = 'idle in transaction' AND query LIKE 'INSERT INTO action_counts%'";
        let inside = sql.number(inside);
        async move { (inside > 0).then_some(()) }
    })
    .await;
    let pid = nix::unistd::Pid::from_raw(cluster.servers[0].pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let frozen = Instant::now();
    cluster.agents[0] = WireAgent::hello(&cluster.servers[1].url, &cluster.tokens[0], 16).await;
    let took = cluster.all_run(&id, frozen).await;
    cluster.until_completed(2, &id).await;
    println!("the action of a node that froze inside of a transaction was with all agents {took:?} after that");
    eventually("it to be taken over", || async {
        let nodes = cluster.servers[1].sql().number("SELECT count(*) AS n FROM nodes");
        (nodes == (NODES - 1) as i64).then_some(())
    })
    .await;
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(cluster.servers[0].wait().await.code(), Some(1), "it is no node any more");
    assert_eq!(cluster.servers[1].sql().exceptions(), []);
    let commands = cluster.servers[1].sql().number("SELECT count(*) AS n FROM commands");
    assert_eq!(commands, NODES as i64);
}
