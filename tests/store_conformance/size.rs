//! How much of the database the hot statements read, on PostgreSQL: their bounds hold whatever the store is filled with.
//!
//! What is counted are the pages of tables and indexes that a call touches, as the server's statistics have it. The
//! database is filled by SQL: with the waiting rows of absent agents, and with open actions that are all delivered.

use crate::Backend;
use crate::postgres::Postgres;
use crate::support::{Taken, accept, agents, by_length, connect, in_secs, resolved};
use odoshi::domain::command::{CommandState, Event};
use odoshi::domain::target::Target;
use odoshi::domain::time::Timestamp;
use odoshi::store::{Among, Part, Store};
use serde_json::json;

/// Pages that were touched in all tables and their indexes.
const TOUCHED: &str = "SELECT coalesce(sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read, 0) + coalesce(idx_blks_hit, 0)), 0) \
     FROM pg_statio_user_tables";

/// Keeps the server from looking at the tables beside the test.
const ALONE: &str = "DO $$ DECLARE name text; BEGIN FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP \
     EXECUTE format('ALTER TABLE %I SET (autovacuum_enabled = false)', name); END LOOP; END $$";

/// A store that is filled by the test.
async fn to_fill() -> Postgres {
    let backend = Postgres::fresh().await;
    backend.execute_apart(ALONE).await;
    backend
}

/// The pages that a call touches. The server counts what a connection did when it ends, at the latest.
async fn touched(backend: &mut Postgres, call: impl AsyncFnOnce(&dyn Store)) -> i64 {
    backend.reopen_alone().await;
    let before = backend.number(TOUCHED).await;
    call(backend.store()).await;
    backend.reopen_alone().await;
    backend.number(TOUCHED).await - before
}

/// Open rows of an action that wait for this many agents that aren't connected.
async fn absent(backend: &Postgres, taken: &Taken, number: i64) {
    let rows = format!(
        "INSERT INTO open_commands (action_no, agent_no, state, run, attempts, due_at) \
         SELECT {}, 1000000 + n, 0, 1, 0, 0 FROM generate_series(1, {number}) AS n; ANALYZE open_commands",
        taken.no
    );
    backend.execute_apart(&rows).await;
}

#[test]
fn rows_that_wait_for_absent_agents_are_not_visited() {
    crate::block_on(async {
        let mut backend = to_fill().await;
        let fleet = agents(backend.store(), 200).await;
        let taken = resolved(backend.store(), json!({}), &fleet).await;
        for agent in &fleet[..100] {
            taken.postponed(backend.store(), *agent, backend.store().now()).await;
        }
        for agent in &fleet[100..] {
            taken.hold(backend.store(), *agent).await;
        }
        absent(&backend, &taken, by_length(200_000, 13_000_000)).await;
        let due = touched(&mut backend, async |store| {
            connect(store, &fleet).await;
            let page = store.command_due((Timestamp(0), 0, 0), in_secs(store, 60), 1_000).await.unwrap();
            assert_eq!((page.found.len(), page.through), (100, None));
        })
        .await;
        let with_due = touched(&mut backend, async |store| {
            assert_eq!(store.agent_with_due(&fleet, in_secs(store, 60)).await.unwrap(), fleet);
        })
        .await;
        let backlog = touched(&mut backend, async |store| {
            assert_eq!(store.command_backlog(fleet[150], in_secs(store, 60), 100).await.unwrap().len(), 1);
        })
        .await;
        // A few index steps a row, and what writing 200 sessions takes.
        assert!(due < 100 * 30 + 200 * 30, "{due} pages");
        assert!(with_due < 200 * 30, "{with_due} pages");
        assert!(backlog < 100, "{backlog} pages");
    });
}

#[test]
fn open_actions_that_are_delivered_cost_a_connecting_agent_nothing() {
    crate::block_on(async {
        let mut backend = to_fill().await;
        let fleet = agents(backend.store(), 2).await;
        let delivered = resolved(backend.store(), json!({}), &fleet).await;
        let at = backend.store().now();
        for agent in &fleet {
            delivered.tell(backend.store(), *agent, Event::Sent { run: 1, attempts: 0, at }).await;
        }
        backend.store().action_advance(vec![delivered.no], 10).await.unwrap();
        let copies = format!(
            "CREATE TEMPORARY TABLE copies AS SELECT * FROM actions WHERE no = {}; \
             ALTER TABLE copies DROP COLUMN no; UPDATE copies SET idempotency_key = NULL; DO $$ BEGIN \
             EXECUTE (SELECT format('INSERT INTO actions (%1$s) SELECT %2$s FROM copies, generate_series(1, {})', \
             string_agg(column_name, ','), string_agg(CASE column_name WHEN 'id' THEN 'gen_random_uuid()::text' \
             ELSE column_name END, ',')) FROM information_schema.columns WHERE table_name = 'copies'); END $$; \
             ANALYZE actions",
            delivered.no,
            by_length(10_000, 100_000)
        );
        backend.execute_apart(&copies).await;
        let waiting = resolved(backend.store(), json!({}), &fleet).await;
        let backlog = touched(&mut backend, async |store| {
            let backlog = store.command_backlog(fleet[1], in_secs(store, 60), 100).await.unwrap();
            assert_eq!(backlog.iter().map(|due| due.action_no).collect::<Vec<_>>(), [waiting.no]);
        })
        .await;
        let unfinished = touched(&mut backend, async |store| {
            let unfinished = store.command_unfinished_of(fleet[1], 100).await.unwrap();
            assert_eq!(unfinished, [delivered.no, waiting.no]);
        })
        .await;
        let unresolved = touched(&mut backend, async |store| {
            let new = accept(store, json!({})).await;
            let begin = (Timestamp(i64::MIN), 0);
            let unresolved = store.action_list_unresolved(in_secs(store, 60), begin, 100).await.unwrap();
            assert_eq!(unresolved.iter().map(|action| action.no).collect::<Vec<_>>(), [new.no]);
        })
        .await;
        let pages = (backlog, unfinished, unresolved);
        assert!(backlog < 100 && unfinished < 100 && unresolved < 200, "{pages:?} pages");
    });
}

#[test]
fn a_search_looks_at_no_more_agents_than_it_says() {
    crate::block_on(async {
        let mut backend = to_fill().await;
        let fleet = agents(backend.store(), 50).await;
        let taken = resolved(backend.store(), json!({}), &fleet).await;
        for agent in &fleet[..25] {
            taken.ends(backend.store(), *agent, 1, CommandState::Failed).await;
        }
        let more = format!(
            "INSERT INTO agents (name, transport, labels, reported_labels, set_labels, facts, version, enrolled_at) \
             SELECT 'more-' || n, 'stream', '{{\"role\":\"web\"}}', '{{\"role\":\"web\"}}', '{{}}', '{{}}', '1', 0 \
             FROM generate_series(1, {}) AS n; ANALYZE agents",
            by_length(100_000, 1_000_000)
        );
        backend.execute_apart(&more).await;
        let search = async |backend: &mut Postgres, text: &str, searched, expected: usize| {
            let target = Target::parse(text).unwrap();
            touched(backend, async |store| {
                let found = store.agent_search(&target, Part { after: 0, limit: 1_000, searched }).await.unwrap();
                assert_eq!(found.agents.len(), expected, "{target:?}");
            })
            .await
        };
        // One that matches nobody looks at its part, and finding the end of that is a scan of an index.
        let part = search(&mut backend, "labels.role = 'db'", 1_000, 0).await;
        let next = search(&mut backend, "labels.role = 'db'", 2_000, 0).await;
        assert!(part < 600 && next < 1_200, "{part} and {next} pages");
        // The agents of an earlier action, and a few hosts, are found without the others.
        let retry = format!("action('{0}') = 'failed' OR action('{0}') = 'timed_out'", taken.id);
        let retry = search(&mut backend, &retry, 1_000, 25).await;
        let names =
            search(&mut backend, "labels.role = 'web' AND name IN ('more-500', 'more-70000', 'x')", 1_000, 2).await;
        assert!(retry < 50 * 30 && names < 100, "{retry} and {names} pages");
        let among = Among { target: Some(Target::parse("labels.role = 'db'").unwrap()), disabled: None };
        let counted = touched(&mut backend, async |store| {
            assert_eq!(store.agent_count(&among, 0, 1_000).await.unwrap().agents, 0);
        })
        .await;
        let listed = touched(&mut backend, async |store| {
            assert!(store.agent_list(&among, None, 100, 1_000).await.unwrap().agents.is_empty());
        })
        .await;
        let some = "labels.role = 'web' AND name IN ('more-500', 'more-70000')";
        let some = Among { target: Some(Target::parse(some).unwrap()), disabled: None };
        let few = touched(&mut backend, async |store| {
            assert_eq!(store.agent_list(&some, None, 100, 1_000).await.unwrap().agents.len(), 2);
        })
        .await;
        assert!(few < 200, "{few} pages");
        // In the order of names, agents are all over the table.
        assert!(counted < 600 && listed < 5_000, "{counted} and {listed} pages");
    });
}
