//! The wall clock of the database is set while everybody works: what it says is the time by which commands are due, and
//! nothing else. Who is alive, and which connection of an agent is the newest, doesn't depend on it.

use crate::cluster;
use crate::nodes::{Cluster, NODES};
use crate::support::{Server, ServerOptions, WireAgent, eventually};
use odoshi::domain::time::Timestamp;
use serde_json::{Value, json};

/// Servers on a database whose clock can be set. A node that is merely slow isn't silent for so long.
async fn nodes_on_a_clock() -> (Cluster, &'static cluster::Cluster) {
    let database = tokio::task::spawn_blocking(cluster::own_with_clock).await.unwrap();
    let options = ServerOptions { cluster: Some(database), ..ServerOptions::default() };
    let options = options.with("ODOSHI__NODE__HEARTBEAT", "500ms").with("ODOSHI__NODE__DEAD_AFTER", "10s");
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
    let (mut cluster, database) = nodes_on_a_clock().await;
    let incarnations = "SELECT incarnation AS key, 0 AS kind, 0 AS n FROM nodes ORDER BY 1";
    let before = cluster.servers[0].sql().groups(incarnations);
    for seconds in [20, 3_600, 0] {
        jump(database, &cluster.servers, seconds).await;
        assert_eq!(names(&cluster, 1).await, ["node-0", "node-1", "node-2"], "after {seconds}");
    }
    // Time enough for each to have taken over from the others.
    beaten(&cluster.servers, Timestamp::of_this_machine().0 + 15_000, 0).await;
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
