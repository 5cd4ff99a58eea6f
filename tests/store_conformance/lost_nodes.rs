//! Events for hooks when a node dies, which only PostgreSQL can have.

use crate::hooks::{claim, register};
use crate::postgres::{Postgres, impatient};
use crate::{Backend, block_on};
use odoshi::domain::hook::HookEvent;
use odoshi::store::{Hooks, Nodes, Store};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A safety net: what is waited for comes within seconds.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn a_takeover_tells_the_hooks_of_the_node_that_takes_over() {
    block_on(async {
        let mut backend = Postgres::fresh().await;
        let first = backend.store();
        register(first, &[("firsts", &[HookEvent::NodeLost])]);
        first.node_start("first", &[]).await.unwrap();
        let second = impatient(&backend.url());
        register(&second, &[("h", &[HookEvent::NodeLost]), ("ends", &[HookEvent::ActionEnded])]);
        second.prepare().await.unwrap();
        second.node_start("second", &[]).await.unwrap();
        assert!(claim(&second, "h", 9).await.is_empty(), "both live");
        // The first process dies without a word; a store that takes its place has no name yet.
        backend.reopen().await;
        let began = Instant::now();
        let told = loop {
            let claims = claim(&second, "h", 9).await;
            if let [claim] = &claims[..] {
                break serde_json::from_str::<Value>(&claim.payload).unwrap();
            }
            assert!(claims.is_empty() && began.elapsed() < PATIENCE, "{claims:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((told["type"].as_str(), told["data"]["name"].as_str()), (Some("node.lost"), Some("first")));
        for key in ["incarnation", "started_at", "heartbeat"] {
            assert!(told["data"][key].is_string(), "{told}");
        }
        let names: Vec<String> = second.hook_list().await.unwrap().into_iter().map(|view| view.name).collect();
        assert_eq!(names, ["h", "ends"], "the list of the node that takes over counts");
    });
}

#[test]
fn a_node_that_stops_is_not_lost() {
    block_on(async {
        let backend = Postgres::fresh().await;
        backend.store().node_start("first", &[]).await.unwrap();
        let second = impatient(&backend.url());
        register(&second, &[("h", &[HookEvent::NodeLost])]);
        second.prepare().await.unwrap();
        second.node_start("second", &[]).await.unwrap();
        backend.store().node_stop().await.unwrap();
        backend.until("SELECT count(*) FROM nodes", 1).await;
        assert!(claim(&second, "h", 9).await.is_empty());
    });
}
