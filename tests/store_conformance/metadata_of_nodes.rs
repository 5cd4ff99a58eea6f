//! Metadata that several nodes write to one PostgreSQL at the same time.

use crate::Backend;
use crate::block_on;
use crate::postgres::{Postgres, open};
use crate::support::{agents, property};
use odoshi::domain::metadata::Value;
use odoshi::domain::target::Target;
use odoshi::domain::time::Timestamp;
use odoshi::store::Metadata;
use odoshi::store::postgres::PostgresStore;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

fn value(number: usize, collected_at: Timestamp) -> Value {
    Value { value: Some(number.to_string()), error: None, collected_at, clamped: false }
}

#[test]
fn an_older_value_that_another_node_inserts_meanwhile_keeps_no_newer_one_out() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let agent = agents(backend.store(), 1).await[0];
        // Between a node's attempt to update and its insert there is time.
        backend
            .execute(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(77); \
                 RETURN NULL; END $$; \
                 CREATE TRIGGER wait AFTER UPDATE ON agent_metadata FOR EACH STATEMENT EXECUTE FUNCTION wait()",
            )
            .await;
        let mut gate = backend.session();
        gate.say("SELECT pg_advisory_lock(77);");
        backend.until("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND granted", 1).await;
        let node = std::sync::Arc::new(open(&backend.url()).await);
        let now = backend.store().now();
        let older = now.minus(Duration::from_secs(60));
        let writing = tokio::spawn({
            let node = node.clone();
            let values = crate::metadata::by_agent(vec![(agent, "k".to_owned(), value(2, now))]);
            // A write that waits too long is tried again.
            async move { while node.metadata_write(values.clone(), vec![]).await.is_err() {} }
        });
        backend.until_locked_out().await;
        let insert = format!(
            "INSERT INTO agent_metadata (agent_no, key, value, collected_at, clamped, written_at) \
             VALUES ({agent}, 'k', '1', {}, FALSE, {})",
            older.0, older.0
        );
        backend.execute(&insert).await;
        gate.say("SELECT pg_advisory_unlock(77);");
        writing.await.unwrap();
        let mut stored = BTreeMap::new();
        look(&node, &mut stored).await;
        assert_eq!(stored, [((agent, "k".to_owned()), now)].into());
    });
}

/// Several nodes report the same agents in any order, one behind the other, while every third write fails and is tried
/// again: the newest value of each key stays, and nobody ever sees a value go back.
#[test]
fn whichever_node_writes_last_the_newest_value_stays() {
    const STEP: i64 = 1_000;
    block_on(async {
        let backend = Postgres::fresh().await;
        let fleet = agents(backend.store(), 3).await;
        backend
            .execute(
                "CREATE SEQUENCE tries; CREATE FUNCTION fail_now_and_then() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF nextval('tries') % 3 = 0 THEN RAISE 'not now' USING ERRCODE = '40001'; END IF; RETURN NULL; END $$; \
                 CREATE TRIGGER fail_now_and_then BEFORE INSERT ON agent_metadata FOR EACH STATEMENT \
                 EXECUTE FUNCTION fail_now_and_then()",
            )
            .await;
        let nodes = [open(&backend.url()).await, open(&backend.url()).await, open(&backend.url()).await];
        let start = backend.store().now().minus(Duration::from_secs(3_600));
        let at = |step: i64| Timestamp(start.0 + step * STEP);
        let mut newest: BTreeMap<(i64, String), (i64, usize)> = BTreeMap::new();
        let mut number = 0;
        let batch = prop::collection::btree_map((0..3_usize, 0..4_u8), 0..60_i64, 1..8);
        let plans = prop::collection::vec(prop::collection::vec(batch, 1..8), 3);
        let shared = std::cell::RefCell::new((&mut newest, &mut number));
        property(12, plans, async |plans: Vec<Vec<BTreeMap<(usize, u8), i64>>>| {
            let write = async |node: &PostgresStore, batches: Vec<BTreeMap<(usize, u8), i64>>| {
                for batch in batches {
                    let mut rows = Vec::new();
                    for ((agent, key), step) in batch {
                        let (agent_no, key) = (fleet[agent], format!("k{key}"));
                        let mut shared = shared.borrow_mut();
                        *shared.1 += 1;
                        let number = *shared.1;
                        let known = shared.0.entry((agent_no, key.clone())).or_insert((step, number));
                        // Of equally old ones, the last one that is written stays, and that may be any.
                        if step > known.0 {
                            *known = (step, number);
                        }
                        rows.push((agent_no, key, value(number, at(step))));
                    }
                    let values = crate::metadata::by_agent(rows);
                    while let Err(error) = node.metadata_write(values.clone(), vec![]).await {
                        assert!(error.is_transient(), "{error}");
                    }
                }
            };
            let mut plans = plans.into_iter();
            let mut plan = || plans.next().unwrap();
            let watch = async {
                let mut seen = BTreeMap::new();
                loop {
                    look(&nodes[0], &mut seen).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let writes = async {
                tokio::join!(write(&nodes[0], plan()), write(&nodes[1], plan()), write(&nodes[2], plan()));
            };
            tokio::select! {
                () = writes => {}
                () = watch => {}
            }
            let mut stored = BTreeMap::new();
            look(&nodes[1], &mut stored).await;
            let wanted = shared.borrow().0.iter().map(|(key, (step, _))| (key.clone(), at(*step))).collect();
            prop_assert_eq!(stored, wanted);
            Ok(())
        });
    });
}

/// Reads the times of all values. None may be older than the one that was seen before.
async fn look(node: &PostgresStore, seen: &mut BTreeMap<(i64, String), Timestamp>) {
    let page = node.metadata_since(&Target::All, None, Timestamp(-1), 0, 100).await.unwrap();
    for agent in page.agents {
        for (key, view) in agent.values {
            let before = seen.insert((agent.agent_no, key), view.collected_at);
            assert!(before.is_none_or(|before| before <= view.collected_at), "a value went back");
        }
    }
}
