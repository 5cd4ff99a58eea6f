//! The wall clock of the database is set while everybody works: what it says is the time by which commands are due, and
//! nothing else. Who is alive, and which connection of an agent is the newest, doesn't depend on it.

use crate::cluster;
use crate::nodes::{Cluster, NODES};
use crate::support::{Server, ServerOptions, WireAgent, eventually, mostly_waits};
use odoshi::domain::time::Timestamp;
use serde_json::{Value, json};

/// Servers on a database whose clock can be set. A node that is merely slow isn't silent for so long.
async fn nodes_on_a_clock() -> (Cluster, &'static cluster::Cluster) {
    let database = tokio::task::spawn_blocking(cluster::own_with_clock).await.unwrap();
    let options = ServerOptions { cluster: Some(database), ..ServerOptions::default() };
    let options = options.with("ODOSHI__NODE__HEARTBEAT", "500ms").with("ODOSHI__NODE__DEAD_AFTER", "20s");
    (Cluster::start(options).await, database)
}

/// Sets the database's clock, and waits until all nodes have said by it that they live.
async fn jump(database: &cluster::Cluster, nodes: &[Server], seconds: i64) {
    let since = Timestamp::of_this_machine().0;
    database.set_clock(seconds);
    beaten(nodes, since + seconds * 1_000 - 1_000, seconds).await;
}

/// Waits until all these nodes have said by the database's clock, which is so many seconds off, that they live at this time.
async fn beaten(nodes: &[Server], time: i64, seconds: i64) {
    eventually("all nodes to have said that they live", || async {
        // A clock that was ahead is followed back.
        let until = Timestamp::of_this_machine().0 + seconds * 1_000 + 1_000;
        let beaten = format!("SELECT count(*) AS n FROM nodes WHERE heartbeat BETWEEN {time} AND {until}");
        let mut sql = nodes[0].sql();
        assert_eq!(sql.number("SELECT count(*) AS n FROM nodes"), nodes.len() as i64, "a node was taken for dead");
        (sql.number(&beaten) == nodes.len() as i64).then_some(())
    })
    .await;
}

async fn names(cluster: &Cluster, node: usize) -> Vec<String> {
    let nodes = cluster.call(node, "GET", "/v1/nodes", None).await;
    let alive = nodes["nodes"].as_array().unwrap().iter().filter(|node| node["alive"] == true);
    alive.map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

#[actix_rt::test]
async fn a_clock_that_jumps_makes_nobody_dead_and_hides_nobody_who_is() {
    mostly_waits();
    let (mut cluster, database) = nodes_on_a_clock().await;
    let incarnations = "SELECT incarnation AS key, 0 AS kind, 0 AS n FROM nodes ORDER BY 1";
    let before = cluster.servers[0].sql().groups(incarnations);
    for seconds in [20, 3_600, 0] {
        jump(database, &cluster.servers, seconds).await;
        assert_eq!(names(&cluster, 1).await, ["node-0", "node-1", "node-2"], "after {seconds}");
    }
    // Time enough for each to have taken over from the others.
    beaten(&cluster.servers, Timestamp::of_this_machine().0 + 30_000, 0).await;
    assert_eq!(cluster.servers[0].sql().groups(incarnations), before);
    assert!(cluster.servers.iter_mut().all(Server::is_running), "a node has ended");

    // One that has an action of its own dies, and the clock goes back further than anybody would wait.
    let away = json!({ "name": "n", "target": "name = 'a0'", "operations": [{ "module": "ping" }] });
    let id = cluster.call(0, "POST", "/v1/actions", Some(away)).await["id"].as_str().unwrap().to_owned();
    cluster.agents[0].commands().await;
    cluster.servers[0].kill();
    database.set_clock(-3_600);
    eventually("the dead node to be taken over", || async {
        (names(&cluster, 1).await == ["node-1", "node-2"]).then_some(())
    })
    .await;
    let orphans = "SELECT count(*) AS n FROM actions WHERE owner NOT IN (SELECT incarnation FROM nodes)";
    assert_eq!(cluster.servers[1].sql().number(orphans), 0);
    // It is due by a clock that has yet to come there; so it is set right.
    database.set_clock(0);
    let mut agent = WireAgent::hello(&cluster.servers[2].url, &cluster.tokens[0], 16).await;
    let commands = agent.commands().await;
    agent.succeed(&commands[0]).await;
    assert_eq!(cluster.until_completed(1, &id).await["counts"]["succeeded"], 1);
    assert_eq!(cluster.servers[1].sql().exceptions(), []);
}

#[actix_rt::test]
async fn an_agent_that_moves_after_the_clock_went_back_is_connected_where_it_is_now() {
    const ACTIONS: usize = 12;
    let (mut cluster, database) = nodes_on_a_clock().await;
    jump(database, &cluster.servers, -600).await;
    // Its old connection lives on, half open for all that its node knows.
    let mut moved = WireAgent::hello(&cluster.servers[1].url, &cluster.tokens[0], 16).await;
    drop(cluster.agents.remove(0));
    eventually("its old connection to have ended", || async {
        cluster.servers[0].log_text().contains("an agent's connection has ended").then_some(())
    })
    .await;
    for n in 0..ACTIONS {
        let document = json!({ "name": "n", "target": "name = 'a0'", "operations": [{ "module": "ping" }] });
        let id =
            cluster.call(n % NODES, "POST", "/v1/actions", Some(document)).await["id"].as_str().unwrap().to_owned();
        let commands = moved.commands().await;
        assert_eq!(commands.iter().map(|command| command["action"].clone()).collect::<Vec<_>>(), [json!(id)]);
        moved.succeed(&commands[0]).await;
        moved.expect("stored").await;
        let agent: Value = cluster.call(0, "GET", "/v1/agents/a0", None).await;
        assert_eq!(agent["status"], "online", "{agent}");
    }
    let sessions = "SELECT count(*) AS n FROM agent_sessions";
    assert_eq!(cluster.servers[0].sql().number(sessions), NODES as i64);
    assert_eq!(cluster.servers[1].sql().exceptions(), []);
}

#[actix_rt::test]
async fn a_connection_whose_row_is_lost_is_written_again_and_an_older_one_is_closed() {
    mostly_waits();
    let mut cluster = Cluster::start(ServerOptions::default()).await;
    // Nobody says so: the rows are changed behind the nodes' backs.
    let change = "UPDATE agents SET session_epoch = session_epoch + 1 WHERE name = 'a1'; \
                  UPDATE agent_sessions s SET epoch = epoch + 1, incarnation = (SELECT min(incarnation) FROM nodes n \
                  WHERE n.incarnation <> s.incarnation) FROM agents a WHERE a.no = s.agent_no AND a.name = 'a1'; \
                  DELETE FROM agent_sessions s USING agents a WHERE a.no = s.agent_no AND a.name = 'a0'";
    let database = cluster.servers[0].database().to_owned();
    tokio::task::spawn_blocking(move || cluster::shared().psql(&database, change)).await.unwrap();
    // For all that the others know it is away.
    let id = cluster.submit(1).await;
    assert_eq!(cluster.agents[1].expect_close().await, 4001);
    for n in [0, 2] {
        let commands = cluster.agents[n].commands().await;
        assert_eq!(commands[0]["action"], id.as_str());
        cluster.agents[n].succeed(&commands[0]).await;
    }
    eventually("the first to be online", || async {
        (cluster.call(1, "GET", "/v1/agents/a0", None).await["status"] == "online").then_some(())
    })
    .await;
}
