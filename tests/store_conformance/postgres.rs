//! PostgreSQL under the conformance suite: a database of its own in the server that the suite's process shares.

use crate::Backend;
use crate::cluster::{self, Cluster};
use crate::mutations::Mutation;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, SmallInt};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use odoshi::config::Config;
use odoshi::domain::command::CommandState;
use odoshi::domain::counts::Counts;
use odoshi::store::postgres::PostgresStore;
use odoshi::store::{Nodes, Store};
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OnceCell};

/// See [`Backend`].
pub struct Postgres {
    cluster: &'static Cluster,
    database: String,
    store: Option<PostgresStore>,
    /// A connection beside the store's own.
    aside: Mutex<AsyncPgConnection>,
}

#[derive(QueryableByName)]
struct Group {
    #[diesel(sql_type = SmallInt)]
    status: i16,
    #[diesel(sql_type = BigInt)]
    commands: i64,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// A store on a database of the shared server, ready to be used.
pub async fn open(url: &str) -> PostgresStore {
    let store = unprepared(url);
    store.prepare().await.unwrap();
    store
}

/// The same, not ready yet.
pub fn unprepared(url: &str) -> PostgresStore {
    with(&[("store.url", url), ("store.pool_size", "4")])
}

/// The same, with so many connections for the pipeline, and two each for sessions and people.
pub fn small(url: &str, connections: usize) -> PostgresStore {
    assert!(connections < 12, "or the other pools would be larger");
    with(&[("store.url", url), ("store.pool_size", &connections.to_string())])
}

/// The same, which takes whoever hasn't said within a second that he lives for dead.
pub fn impatient(url: &str) -> PostgresStore {
    with(&[("store.url", url), ("store.pool_size", "4"), ("node.heartbeat", "200ms"), ("node.dead_after", "1s")])
}

/// The same, which says so many milliseconds apart that it lives, and takes nobody for dead.
pub fn beating(url: &str, millis: u64) -> PostgresStore {
    let heartbeat = format!("{millis}ms");
    with(&[("store.url", url), ("store.pool_size", "4"), ("node.heartbeat", &heartbeat), ("node.dead_after", "1h")])
}

fn with(flags: &[(&str, &str)]) -> PostgresStore {
    let flags: Vec<(String, String)> = flags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let settings = Config::load_with(None, std::iter::empty(), &flags).unwrap();
    PostgresStore::new(&settings).unwrap()
}

/// A database with all tables, and nothing in them.
async fn template(cluster: &'static Cluster) -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let database = cluster.database();
            open(&cluster.url(&database)).await.node_stop().await.unwrap();
            // The server may not have noticed yet that the store is closed.
            let gone =
                format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'");
            while cluster.psql("postgres", &gone) != "0" {}
            database
        })
        .await
}

impl Postgres {
    async fn numbers(&self, query: &str) -> Vec<i64> {
        let rows: Vec<Number> = sql_query(query).load(&mut *self.aside.lock().await).await.unwrap();
        rows.into_iter().map(|row| row.number).collect()
    }

    /// Where its database is.
    pub fn url(&self) -> String {
        self.cluster.url(&self.database)
    }

    /// What the server has written to its log.
    pub fn log(&self) -> String {
        self.cluster.log()
    }

    /// Does something to its database.
    pub async fn execute(&self, statements: &str) {
        self.aside.lock().await.batch_execute(statements).await.unwrap();
    }

    /// The same over a connection of its own, which has ended after it.
    pub async fn execute_apart(&self, statements: &str) {
        let begin = self.clock().await;
        let mut apart = AsyncPgConnection::establish(&self.url()).await.unwrap();
        apart.batch_execute(statements).await.unwrap();
        drop(apart);
        let others = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
             AND application_name = '' AND backend_start > to_timestamp({begin} / 1000000.0)"
        );
        self.until(&others, 0).await;
    }

    /// Opens the store anew, and waits until all connections of the one before have ended.
    pub async fn reopen_alone(&mut self) {
        let begin = self.clock().await;
        self.reopen().await;
        let older = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
             AND backend_start < to_timestamp({begin} / 1000000.0)"
        );
        self.until(&older, 0).await;
    }

    /// The server's time, in microseconds.
    async fn clock(&self) -> i64 {
        self.number("SELECT extract(epoch FROM clock_timestamp()) * 1000000").await
    }

    /// The one number that a query answers.
    pub async fn number(&self, query: &str) -> i64 {
        self.numbers(&format!("SELECT ({query})::bigint AS number")).await[0]
    }

    /// Waits until a query answers this number.
    pub async fn until(&self, query: &str, wanted: i64) {
        let started = Instant::now();
        while self.number(query).await != wanted {
            assert!(started.elapsed() < Duration::from_secs(240), "{query} is never {wanted}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until somebody is in a transaction and does nothing.
    pub async fn until_held(&self) {
        let held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
        self.until(held, 1).await;
    }

    /// Waits until somebody waits for a lock.
    pub async fn until_locked_out(&self) {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        self.until(waiting, 1).await;
    }

    /// Somebody else at the same database, who does what they are told and doesn't wait.
    pub fn session(&self) -> Session {
        let mut psql = self.cluster.client("psql", &self.database);
        psql.args(["-X", "-q"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Session(psql.spawn().unwrap())
    }
}

/// See [`Postgres::session`].
pub struct Session(Child);

impl Session {
    pub fn say(&mut self, statements: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{statements}").unwrap();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Backend for Postgres {
    async fn fresh() -> Self {
        let cluster = tokio::task::spawn_blocking(cluster::shared).await.unwrap();
        let template = template(cluster).await;
        let database = tokio::task::spawn_blocking(|| cluster.database_like(template)).await.unwrap();
        let aside = Mutex::new(AsyncPgConnection::establish(&cluster.url(&database)).await.unwrap());
        let mut fresh = Self { cluster, database, store: None, aside };
        fresh.reopen().await;
        fresh
    }

    fn store(&self) -> &dyn Store {
        self.store.as_ref().unwrap()
    }

    async fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(&self.cluster.url(&self.database)).await);
    }

    fn set_offset(&self, millis: i64) {
        self.store.as_ref().unwrap().set_offset(millis);
    }

    async fn group_by(&self, action_no: i64) -> Counts {
        let groups: Vec<Group> = sql_query(format!(
            "SELECT coalesce((SELECT status FROM outcomes o WHERE o.action_no = c.action_no \
               AND o.agent_no = c.agent_no AND o.is_final ORDER BY run DESC LIMIT 1), \
               (SELECT 1 FROM open_commands p WHERE p.action_no = c.action_no AND p.agent_no = c.agent_no \
               AND p.state = 2), 0)::smallint AS status, count(*) AS commands \
             FROM commands c WHERE c.action_no = {action_no} GROUP BY 1"
        ))
        .load(&mut *self.aside.lock().await)
        .await
        .unwrap();
        let mut counts = Counts::default();
        for group in groups {
            counts.add_new(group.commands);
            for _ in 0..group.commands {
                counts.move_one(CommandState::Pending, CommandState::from_code(group.status).unwrap());
            }
        }
        counts
    }

    async fn late_runs(&self, action_no: i64, agent_no: i64) -> Vec<i64> {
        self.numbers(&format!(
            "SELECT run::bigint AS number FROM late_results WHERE action_no = {action_no} AND agent_no = {agent_no} \
             ORDER BY run"
        ))
        .await
    }

    async fn open_rows(&self, action_no: i64) -> Vec<i64> {
        let query = "SELECT agent_no AS number FROM open_commands WHERE action_no =";
        self.numbers(&format!("{query} {action_no} ORDER BY agent_no")).await
    }

    async fn rows_of(&self, action_no: i64) -> i64 {
        let tables = ["commands", "outcomes", "open_commands", "late_results", "action_counts", "purges"];
        let counts = tables.map(|table| format!("(SELECT count(*) FROM {table} WHERE action_no = {action_no})"));
        self.numbers(&format!("SELECT {} AS number", counts.join(" + "))).await[0]
    }

    async fn change_audit(&self) -> diesel::QueryResult<()> {
        self.aside.lock().await.batch_execute("UPDATE audit SET name = 'nobody'").await
    }

    async fn refuse_hook_events(&self, refused: bool) {
        let change = if refused { "ADD CONSTRAINT refused CHECK (FALSE) NOT VALID" } else { "DROP CONSTRAINT refused" };
        self.execute(&format!("ALTER TABLE hook_events {change}")).await;
    }

    async fn keeps(&self, bytes: &[u8]) -> bool {
        let dump = self.cluster.client("pg_dump", &self.database).output().unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let has = |what: &[u8]| dump.stdout.windows(what.len()).any(|window| window == what);
        has(bytes) || has(hex.as_bytes())
    }

    async fn orphan(&self, action_no: i64) {
        self.execute(&format!("DELETE FROM actions WHERE no = {action_no}")).await;
    }

    async fn sabotage(&self, mutation: Mutation) {
        let trigger = match mutation {
            Mutation::LostRow => {
                "CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF NEW.agent_no % 3 = 2 THEN RETURN NULL; END IF; RETURN NEW; END $$; \
                 CREATE TRIGGER sabotage BEFORE INSERT ON commands FOR EACH ROW EXECUTE FUNCTION sabotage()"
            }
            Mutation::LateOverwrite => {
                "CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 UPDATE outcomes SET results = NEW.results, status = NEW.status WHERE action_no = NEW.action_no \
                 AND agent_no = NEW.agent_no AND run = NEW.run; RETURN NEW; END $$; \
                 CREATE TRIGGER sabotage AFTER INSERT ON late_results FOR EACH ROW EXECUTE FUNCTION sabotage()"
            }
            Mutation::DoubleCount => {
                "CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 NEW.succeeded := 2 * NEW.succeeded; RETURN NEW; END $$; \
                 CREATE TRIGGER sabotage BEFORE INSERT ON action_counts FOR EACH ROW EXECUTE FUNCTION sabotage()"
            }
        };
        self.aside.lock().await.batch_execute(trigger).await.unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.store = None;
        // Hundreds of them would fill the disk.
        let query = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        if let Err(error) = self.cluster.try_psql("postgres", &query) {
            eprintln!("a test's database stays: {error}");
        }
    }
}
