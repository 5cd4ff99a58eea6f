//! What only PostgreSQL can do to a store: deadlocks, serialization failures, other nodes.

use crate::Backend;
use crate::block_on;
use crate::postgres::{Postgres, beating, impatient, open, small, unprepared};
use crate::support::{accept, action, agents, connect, matching, named, page, resolved};
use odoshi::domain::command::CommandState;
use odoshi::domain::target::Target;
use odoshi::domain::time::Timestamp;
use odoshi::store::{Inserted, Nodes, Store};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough for what must not happen to have happened.
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
fn a_deadlock_is_tried_again() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = backend.store();
        let fleet = agents(store, 2).await;
        let [one, two] = [resolved(store, json!({}), &fleet).await, resolved(store, json!({}), &fleet).await];
        for taken in [one, two] {
            taken.ends(store, fleet[0], 1, CommandState::Succeeded).await;
        }
        // Somebody locks the second action, and the first one when the store waits for the second. They find out last.
        let mut other = backend.session();
        other.say("SET deadlock_timeout = '60s'; BEGIN;");
        other.say(&format!("UPDATE actions SET name = 'x' WHERE no = {};", two.no));
        backend.until_held().await;
        let advance = store.action_advance(vec![one.no, two.no], 10);
        let cross = async {
            backend.until_locked_out().await;
            other.say(&format!("UPDATE actions SET name = 'x' WHERE no = {}; COMMIT;", one.no));
        };
        let (advanced, ()) = tokio::join!(advance, cross);
        assert_eq!(advanced.unwrap(), [fleet[0], fleet[0]]);
        let deadlocks = backend.log().matches("deadlock detected").count();
        assert!(deadlocks >= 1, "there was no deadlock");
        let open = store.action_list_open(0, 10).await.unwrap();
        assert!(open.iter().all(|action| action.dispatched_through == fleet[0]), "{open:?}");
    });
}

#[test]
fn a_serialization_failure_is_tried_again() {
    block_on(async {
        let backend = Postgres::fresh().await;
        backend
            .execute(
                "CREATE SEQUENCE tries; CREATE FUNCTION fail_twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF nextval('tries') <= 2 THEN RAISE 'could not serialize' USING ERRCODE = '40001'; END IF; \
                 RETURN NEW; END $$; \
                 CREATE TRIGGER fail_twice BEFORE INSERT ON actions FOR EACH ROW EXECUTE FUNCTION fail_twice()",
            )
            .await;
        accept(backend.store(), json!({})).await;
        assert_eq!(backend.number("SELECT last_value FROM tries").await, 3);
        assert_eq!(backend.number("SELECT count(*) FROM actions").await, 1);
    });
}

#[test]
fn a_page_that_meets_a_command_writes_the_others_and_counts_what_it_wrote() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = backend.store();
        let fleet = agents(store, 4).await;
        let taken = accept(store, json!({})).await;
        // Nothing but another node's early page could have done so, and it would have counted it.
        backend.execute(&format!("INSERT INTO commands VALUES ({}, {}, NULL)", taken.no, fleet[1])).await;
        let inserted = store.command_insert(vec![page(taken.no, 0, &fleet, true)]).await.unwrap();
        assert_eq!(inserted, [Inserted::Written]);
        assert_eq!(backend.group_by(taken.no).await.total, 4);
        assert_eq!(store.action_view(taken.id).await.unwrap().unwrap().counts.total, 3);
    });
}

#[test]
fn a_value_that_the_database_cannot_keep_is_refused_and_not_tried_for_ever() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let mut agent = named("a", "stream");
        agent.enrollment.version = "\0".into();
        let refused = backend.store().agent_insert(vec![agent]).await.unwrap_err();
        assert!(!refused.is_transient(), "{refused}");
    });
}

#[test]
fn tables_that_somebody_reads_are_brought_up_to_date_later_and_an_older_node_goes_on_meanwhile() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = backend.store();
        store.node_start("older", &[]).await.unwrap();
        let fleet = agents(store, 2).await;
        // As they were before a change of which this version's inserts need nothing.
        let version = "'20261127100000'";
        let down = include_str!("../../migrations/postgres/2026-11-27-100000_enroll_nonces/down.sql");
        backend.execute(&format!("{down} DELETE FROM __diesel_schema_migrations WHERE version = {version}")).await;
        let applied = "SELECT count(*) FROM __diesel_schema_migrations";
        let before = backend.number(applied).await;
        // A dump, which takes its time.
        let mut dump = backend.session();
        dump.say("BEGIN; LOCK TABLE nodes, agents, tokens IN ACCESS SHARE MODE;");
        backend.until_held().await;
        let newer = unprepared(&backend.url());
        for _ in 1..4 {
            let refused = newer.prepare().await.unwrap_err();
            assert!(refused.is_transient() && refused.to_string().contains("lock timeout"), "{refused}");
            accept(store, json!({})).await;
        }
        assert_eq!(backend.number(applied).await, before);
        dump.say("COMMIT;");
        tokio::time::timeout(Duration::from_secs(240), async {
            while newer.prepare().await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .expect("it is brought up to date");
        assert_eq!(backend.number(applied).await, before + 1);
        newer.node_start("newer", &["stream".into()]).await.unwrap();
        connect(store, &fleet[1..]).await;
        assert_eq!(backend.number("SELECT count(*) FROM nodes").await, 2);
    });
}

#[test]
fn who_takes_over_waits_for_a_writer_in_flight_and_later_ones_write_nothing() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = backend.store();
        store.node_start("one", &[]).await.unwrap();
        let fleet = agents(store, 2).await;
        connect(store, &fleet[..1]).await;
        let taken = accept(store, json!({})).await;
        let online = Target::parse("status = 'online'").unwrap();
        // A transaction of the first node that has locked its row and goes on for a while.
        let mut writer = backend.session();
        writer.say("BEGIN; SELECT 1 FROM nodes WHERE name = 'one' FOR KEY SHARE;");
        backend.until_held().await;
        // One that is less patient than the first node's heart beats. Its start takes over from nobody.
        let second = impatient(&backend.url());
        second.prepare().await.unwrap();
        second.node_start("two", &[]).await.unwrap();
        let nodes = "SELECT count(*) FROM nodes WHERE name = 'one'";
        assert_eq!(backend.number(nodes).await, 1);
        backend.until_locked_out().await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(backend.number(nodes).await, 1, "it must wait for the writer");
        assert_eq!(matching(store, &online).await, fleet[..1]);
        writer.say("COMMIT;");
        backend.until(nodes, 0).await;
        assert!(matching(&second, &online).await.is_empty(), "its sessions went with it");

        let late = store.action_insert(vec![action(store, json!({}))]).await.unwrap_err();
        assert!(late.is_transient() && late.to_string().contains("taken over"), "{late}");
        assert!(store.session_close(&[(fleet[0], 9)]).await.is_err());
        tokio::time::timeout(Duration::from_secs(240), store.node_lost()).await.expect("it learns of it");
        assert_eq!(crate::support::unresolved(&second, second.now(), 10).await, [taken.no]);
        assert_eq!(backend.number("SELECT count(*) FROM actions").await, 1);
    });
}

#[test]
fn what_a_node_leaves_behind_is_anothers_at_once_or_the_next_ones() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let first = backend.store();
        first.node_start("first", &[]).await.unwrap();
        let taken = accept(first, json!({})).await;
        let unresolved = async |store: &dyn Store| crate::support::unresolved(store, store.now(), 10).await;
        let second = open(&backend.url()).await;
        second.node_start("second", &[]).await.unwrap();
        assert_eq!((unresolved(first).await, unresolved(&second).await), (vec![taken.no], vec![]), "one of them");
        first.node_stop().await.unwrap();
        assert_eq!(unresolved(&second).await, [taken.no]);
        second.node_stop().await.unwrap();
        // Nobody is there; and nobody of the name of those who were.
        let third = open(&backend.url()).await;
        third.node_start("third", &[]).await.unwrap();
        assert_eq!(unresolved(&third).await, [taken.no]);
    });
}

#[test]
fn what_the_owner_has_no_sender_for_is_sent_by_one_other_node() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let owner = backend.store();
        let [pager, chat] = [vec!["stream".to_owned(), "pager".into()], vec!["pager".to_owned(), "chat".into()]];
        owner.node_start("owner", &pager).await.unwrap();
        let (second, third) = (open(&backend.url()).await, open(&backend.url()).await);
        second.node_start("second", &chat).await.unwrap();
        third.node_start("third", &chat).await.unwrap();
        owner.agent_insert(vec![named("p", "pager"), named("c", "chat")]).await.unwrap();
        let fleet = matching(owner, &Target::All).await;
        let taken = resolved(owner, json!({}), &fleet).await;
        for agent in &fleet {
            taken.postponed(owner, *agent, owner.now()).await;
        }
        let due = async |store: &dyn Store| -> Vec<i64> {
            let page = store.command_due((Timestamp(0), 0, 0), store.now(), 10).await.unwrap();
            page.found.iter().map(|(due, _)| due.agent_no).collect()
        };
        assert_eq!(due(owner).await, fleet[..1]);
        let others = [due(&second).await, due(&third).await];
        assert_eq!(others.concat(), fleet[1..], "one of them, and not both");
        // Whoever it was, the other one goes on.
        let (leaves, stays) = if others[0].is_empty() { (&third, &second) } else { (&second, &third) };
        leaves.node_stop().await.unwrap();
        assert_eq!(due(stays).await, fleet[1..]);
    });
}

#[test]
fn a_node_that_was_started_anew_does_not_wait_for_the_one_before() {
    block_on(async {
        let mut backend = Postgres::fresh().await;
        backend.store().node_start("one", &[]).await.unwrap();
        let fleet = agents(backend.store(), 1).await;
        connect(backend.store(), &fleet).await;
        // A namesake that lives is left alone.
        let second = open(&backend.url()).await;
        second.node_start("one", &[]).await.unwrap();
        assert_eq!(backend.number("SELECT count(*) FROM nodes").await, 2);
        second.node_stop().await.unwrap();
        backend.reopen().await;
        backend.store().node_start("one", &[]).await.unwrap();
        assert_eq!(backend.number("SELECT count(*) FROM nodes").await, 1);
        assert_eq!(backend.number("SELECT count(*) FROM agent_sessions").await, 0);
    });
}

/// An ended action whose outcomes alone are left to be deleted, as many as this.
async fn ended_with_outcomes(backend: &Postgres, outcomes: usize) -> i64 {
    let fleet = agents(backend.store(), 1).await;
    let taken = resolved(backend.store(), json!({}), &fleet).await;
    taken.ends(backend.store(), fleet[0], 1, CommandState::Succeeded).await;
    assert_eq!(backend.store().action_complete(vec![taken.no]).await.unwrap(), [taken.no]);
    let rows = format!(
        "INSERT INTO outcomes (action_no, agent_no, run, status, is_final, attempts, finished_at) \
         SELECT {}, 1000 + n, 1, 3, TRUE, 0, 0 FROM generate_series(2, {outcomes}) AS n",
        taken.no
    );
    backend.execute(&rows).await;
    taken.no
}

#[test]
fn an_action_is_forgotten_only_when_nothing_of_it_is_left() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = backend.store();
        let no = ended_with_outcomes(&backend, 50).await;
        let soon = store.now().plus(Duration::from_secs(60));
        // The command and the row of the action go.
        assert_eq!(store.action_purge(soon, 1).await.unwrap(), Some(1));
        // Another node deletes some outcomes: the very ones that come first.
        let mut other = backend.session();
        other.say(&format!(
            "BEGIN; DELETE FROM outcomes WHERE ctid = ANY(ARRAY(SELECT ctid FROM outcomes WHERE action_no = {no} LIMIT 20));"
        ));
        backend.until_held().await;
        let purge = store.action_purge(soon, 20);
        let commit = async {
            backend.until_locked_out().await;
            other.say("COMMIT;");
        };
        tokio::join!(purge, commit).0.unwrap();
        assert!(backend.rows_of(no).await > 1, "there is something left to be found");
        assert_eq!(backend.number("SELECT count(*) FROM purges").await, 1);
        while store.action_purge(soon, 20).await.unwrap().is_some() {}
        assert_eq!(backend.rows_of(no).await, 0);
    });
}

#[test]
fn two_nodes_that_delete_at_the_same_time_leave_nothing_behind() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let no = ended_with_outcomes(&backend, 4_000).await;
        let other = open(&backend.url()).await;
        let soon = other.now().plus(Duration::from_secs(60));
        let purge = async |store: &dyn Store| {
            for _ in 0..4_000 {
                let deleted = store.action_purge(soon, 100).await.unwrap();
                assert!(deleted.is_none_or(|deleted| deleted <= 100), "{deleted:?}");
                // The other one may be at it.
                if deleted.is_none() && backend.number("SELECT count(*) FROM purges").await == 0 {
                    return;
                }
            }
            panic!("it doesn't end");
        };
        tokio::join!(purge(backend.store()), purge(&other));
        assert_eq!(backend.rows_of(no).await, 0);
    });
}

#[test]
fn a_database_in_another_encoding_is_refused_with_what_to_do() {
    block_on(async {
        let cluster = tokio::task::spawn_blocking(crate::cluster::shared).await.unwrap();
        let refused = unprepared(&cluster.url(&cluster.database_in("LATIN1"))).prepare().await.unwrap_err();
        let text = refused.to_string();
        assert!(!refused.is_transient(), "{text}");
        assert!(text.contains("LATIN1") && text.contains("ENCODING 'UTF8'") && text.contains("template0"), "{text}");
    });
}

#[test]
fn what_an_error_is_its_code_says_and_never_its_text() {
    block_on(async {
        let backend = Postgres::fresh().await;
        backend
            .execute(
                "CREATE TABLE fault (code TEXT, said TEXT); \
                 CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE f fault; BEGIN \
                 SELECT * INTO f FROM fault; RAISE '%', f.said USING ERRCODE = f.code; END $$; \
                 CREATE TRIGGER fault BEFORE INSERT ON agents FOR EACH ROW EXECUTE FUNCTION fault()",
            )
            .await;
        let store = backend.store();
        for (code, said, transient) in [
            ("22021", "неверная последовательность байт", false),
            ("22P05", "символ не имеет представления", false),
            ("23514", "ограничение нарушено", false),
            ("54000", "превышен предел", false),
            ("0A000", "не поддерживается", false),
            ("53100", "invalid input syntax: value out of range", true),
            ("53200", "invalid byte sequence", true),
            ("55P03", "invalid input syntax", true),
            ("40P01", "invalid input syntax", true),
            ("57014", "stack depth limit exceeded", true),
            ("58030", "invalid byte sequence", true),
            ("25006", "invalid byte sequence", true),
            ("42501", "invalid byte sequence", true),
            ("XX001", "invalid byte sequence", true),
            ("ZZ999", "invalid byte sequence", true),
        ] {
            backend.execute(&format!("DELETE FROM fault; INSERT INTO fault VALUES ('{code}', '{said}')")).await;
            let error = store.agent_insert(vec![named("a", "stream")]).await.unwrap_err();
            assert_eq!(error.is_transient(), transient, "{code}: {error}");
            assert!(error.to_string().contains(code), "{code}: {error}");
        }
    });
}

#[test]
fn a_node_whose_connection_breaks_gets_its_lock_back_and_is_nobodys_prey_meanwhile() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let locks = "SELECT (classid::bigint << 32) | objid::bigint AS key, pid FROM pg_locks WHERE locktype = 'advisory' \
                     AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let others = backend.number(&format!("SELECT key FROM ({locks}) l")).await;
        let first = beating(&backend.url(), 200);
        first.prepare().await.unwrap();
        first.node_start("one", &[]).await.unwrap();
        let key = backend.number(&format!("SELECT key FROM ({locks}) l WHERE key <> {others}")).await;
        let holder = format!("SELECT pid FROM ({locks}) l WHERE key = {key}");

        // Its connection ends, and for the server somebody else holds its lock: the connection before it would, for as long
        // as the server doesn't know that it is gone.
        let mut other = backend.session();
        other.say(&format!("SELECT pg_advisory_lock({key});"));
        backend.until_locked_out().await;
        let before = backend.number(&holder).await;
        backend.execute(&format!("SELECT pg_terminate_backend({before})")).await;
        backend.until(&format!("SELECT count(*) FROM ({holder}) h WHERE pid <> {before}"), 1).await;
        let heartbeat = "SELECT heartbeat FROM nodes WHERE name = 'one'";
        let last = backend.number(heartbeat).await;
        backend.until(&format!("SELECT (({heartbeat}) <> {last})::int"), 1).await;
        let others = backend.number(&holder).await;
        drop(other);
        let held = format!("SELECT count(*) FROM ({holder}) h WHERE pid <> {others}");
        backend.until(&held, 1).await;

        // And once more: while nobody holds its lock, one of its name starts.
        let holder = backend.number(&holder).await;
        backend.execute(&format!("SELECT pg_terminate_backend({holder})")).await;
        let second = beating(&backend.url(), 4_000);
        second.prepare().await.unwrap();
        second.node_start("one", &[]).await.unwrap();
        assert_eq!(backend.number("SELECT count(*) FROM nodes WHERE name = 'one'").await, 2);
        accept(&first, json!({})).await;
    });
}

/// A store with two connections per pool, whose audit log takes a minute to be read, and an action in it.
async fn with_slow_audit(backend: &Postgres) -> Arc<dyn Store> {
    let store = small(&backend.url(), 2);
    store.prepare().await.unwrap();
    accept(&store, json!({})).await;
    let slow = "ALTER TABLE audit RENAME TO entries; \
                CREATE VIEW audit AS SELECT * FROM entries WHERE pg_sleep(60) IS NOT NULL";
    backend.execute(slow).await;
    Arc::new(store)
}

/// How many statements sleep.
const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";

#[test]
fn commands_are_inserted_and_outcomes_recorded_while_all_connections_for_people_are_stuck() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = with_slow_audit(&backend).await;
        let fleet = agents(&*store, 2).await;
        let asking = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.audit_list(None, 10).await.map(|_| ()) })
        });
        let asking: Vec<_> = asking.collect();
        backend.until(SLEEPING, 2).await;
        let started = Instant::now();
        let taken = resolved(&*store, json!({}), &fleet).await;
        connect(&*store, &fleet).await;
        taken.ends(&*store, fleet[0], 1, CommandState::Succeeded).await;
        assert_eq!(backend.group_by(taken.no).await.succeeded, 1);
        assert_eq!(backend.number(SLEEPING).await, 2, "they are stuck still");
        assert!(started.elapsed() < Duration::from_secs(25), "the time limit has set them free");
        asking.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn a_question_that_nobody_waits_for_any_more_is_cancelled() {
    block_on(async {
        let backend = Postgres::fresh().await;
        let store = with_slow_audit(&backend).await;
        let started = Instant::now();
        {
            let asking = store.audit_list(None, 10);
            tokio::select! {
                answer = asking => panic!("{answer:?}"),
                () = backend.until(SLEEPING, 1) => {}
            }
        }
        backend.until(SLEEPING, 0).await;
        assert!(started.elapsed() < Duration::from_secs(25), "the time limit has ended it");
        // Its connection is not used again, and its place is free.
        let views = (0..4).map(|_| store.action_list(None, None, None, 10));
        for answer in futures_util::future::join_all(views).await {
            assert_eq!(answer.unwrap().len(), 1);
        }
    });
}
