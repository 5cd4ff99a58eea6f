//! Three servers on one database, agents that connect anywhere, actions all the time; and meanwhile everything that happens to
//! processes, lines, databases and their clocks. Afterwards a checker holds what was counted outside, and what the tables say, to what is
//! promised.
//!
//! `ODOSHI_TEST_SEED` repeats a run's schedule of faults, `ODOSHI_TEST_CHAOS_SECS` makes it longer.

use crate::cluster::{self, Cluster};
use crate::support::{Balancer, Fleet, Line, On, Proxy, Server, by_length, eventually};
use checker::Evidence;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use odoshi::domain::time::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use uuid::Uuid;

mod checker;

const NODES: usize = 3;
const AGENTS: usize = 300;
/// For how many seconds faults come, by default and in a long run, unless `ODOSHI_TEST_CHAOS_SECS` says otherwise.
const LASTS: [u64; 2] = [45, 150];
/// The time between two actions.
const PACE: Duration = Duration::from_secs(1);
const DEAD_AFTER: Duration = Duration::from_secs(3);

/// What is done to a node, or to all.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9`; it is started again a moment later.
    Kill,
    /// Stopped until the others have taken over, and let go on: it must notice that it is no node any more.
    Freeze,
    /// Its line to the database.
    Cut(Line, Duration),
    /// The database, `kill -9`.
    Database,
    /// SIGTERM to one after the other, each started again.
    Rolling,
    /// SIGHUP, as from a terminal that is closed; it is started again when it has ended.
    HangUp,
    /// The database's clock is so many seconds off, and set right again.
    Clock(i64, Duration),
}

fn draw(random: &mut StdRng) -> Fault {
    let secs = |random: &mut StdRng, most: u64| Duration::from_millis(random.random_range(500..most * 1_000));
    match random.random_range(0..16) {
        0..=3 => Fault::Kill,
        4..=5 => Fault::Freeze,
        6 => Fault::Cut(Line::Reset, secs(random, 3)),
        7 => Fault::Cut(Line::BlackHole, secs(random, 8)),
        8 => Fault::Cut(Line::Slow(Duration::from_millis(30), 300_000), secs(random, 6)),
        9..=10 => Fault::Database,
        11 => Fault::Rolling,
        12 => Fault::HangUp,
        13 => Fault::Clock(-300, secs(random, 8)),
        // Whatever is accepted meanwhile is due by the time that was, when the clock is set right.
        _ => Fault::Clock(20, secs(random, 8)),
    }
}

struct Nodes {
    database: &'static Cluster,
    servers: RefCell<Vec<Server>>,
    lines: Vec<Proxy>,
    urls: Vec<String>,
    admin: String,
    enroll: String,
    /// Actions that were on their way while the database's clock went back: an agent may have said that it has one at an
    /// earlier time than the one at which it was delivered.
    over_a_step_back: RefCell<BTreeSet<String>>,
}

impl Nodes {
    async fn start() -> Self {
        let database = tokio::task::spawn_blocking(cluster::own_with_clock).await.unwrap();
        let lines: Vec<Proxy> = (0..NODES).map(|_| Proxy::to(database.port)).collect();
        let mut servers: Vec<Server> = Vec::new();
        let mut options = On::Postgres.options();
        options.cluster = Some(database);
        for (number, line) in lines.iter().enumerate() {
            let mut options = options.clone().with("ODOSHI__NODE__NAME", &format!("node-{number}"));
            options.database = servers.first().map(|first| first.database().to_owned());
            let mut server = Server::prepare(options);
            server.set("ODOSHI__STORE__URL", &database.url_through(line.port, server.database()));
            server.set("ODOSHI__NODE__HEARTBEAT", "500ms");
            server.set("ODOSHI__NODE__DEAD_AFTER", &format!("{}s", DEAD_AFTER.as_secs()));
            server.restart().await;
            servers.push(server);
        }
        let urls = servers.iter().map(|server| server.url.clone()).collect();
        let (admin, enroll) = (servers[0].admin_token(), servers[0].enroll_token().await);
        Self {
            database,
            servers: RefCell::new(servers),
            lines,
            urls,
            admin,
            enroll,
            over_a_step_back: RefCell::default(),
        }
    }

    /// What a service manager does: whoever has ended is started again.
    fn keep_up(&self) {
        for server in self.servers.borrow_mut().iter_mut() {
            if !server.is_running() {
                server.spawn();
            }
        }
    }

    async fn is_ready(&self, node: usize) -> bool {
        let answer = reqwest::get(format!("{}/readyz", self.urls[node])).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    async fn all_ready(&self) {
        eventually("all nodes to be ready", || async {
            self.keep_up();
            for node in 0..NODES {
                if !self.is_ready(node).await {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    fn pid(&self, node: usize) -> Option<Pid> {
        let mut servers = self.servers.borrow_mut();
        servers[node].is_running().then(|| Pid::from_raw(servers[node].pid()))
    }

    fn actions(&self, which: &str) -> BTreeSet<String> {
        let rows =
            self.servers.borrow()[0].sql().groups(&format!("SELECT id AS key, 0 AS kind, 0 AS n FROM actions {which}"));
        rows.into_iter().map(|(id, ..)| id).collect()
    }

    /// Sets the database's clock, and waits until all nodes go by it.
    async fn step(&self, seconds: i64, is_back: bool) {
        let over = self.actions("WHERE ended_at IS NOT NULL");
        self.database.set_clock(seconds);
        eventually("all nodes to go by the database's clock", || async {
            self.keep_up();
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = Timestamp::of_this_machine().0 + seconds * 1_000;
            let others = format!(
                "SELECT count(*) AS n FROM nodes WHERE heartbeat NOT BETWEEN {} AND {}",
                now - 10_000,
                now + 5_000
            );
            (self.servers.borrow()[0].sql().number(&others) == 0).then_some(())
        })
        .await;
        if is_back {
            self.over_a_step_back.borrow_mut().extend(self.actions("").difference(&over).cloned());
        }
    }

    async fn suffer(&self, fault: Fault, node: usize) {
        match fault {
            Fault::Kill => {
                if let Some(pid) = self.pid(node) {
                    kill(pid, Signal::SIGKILL).unwrap();
                }
            }
            Fault::Freeze => {
                let Some(pid) = self.pid(node) else { return };
                kill(pid, Signal::SIGSTOP).unwrap();
                tokio::time::sleep(DEAD_AFTER + Duration::from_secs(3)).await;
                kill(pid, Signal::SIGCONT).unwrap();
            }
            Fault::Cut(line, lasts) => {
                self.lines[node].set(line);
                tokio::time::sleep(lasts).await;
                self.lines[node].set(Line::Open);
            }
            Fault::Database => {
                let database = self.database;
                tokio::task::spawn_blocking(move || {
                    database.kill();
                    database.resume();
                })
                .await
                .unwrap();
            }
            Fault::HangUp => {
                let Some(pid) = self.pid(node) else { return };
                kill(pid, Signal::SIGHUP).unwrap();
                eventually("a node to stop", || async { self.pid(node).is_none().then_some(()) }).await;
            }
            Fault::Clock(seconds, lasts) => {
                self.step(seconds, seconds < 0).await;
                tokio::time::sleep(lasts).await;
                self.step(0, seconds > 0).await;
            }
            Fault::Rolling => {
                for node in 0..NODES {
                    if let Some(pid) = self.pid(node) {
                        kill(pid, Signal::SIGTERM).unwrap();
                    }
                    eventually("a node to stop", || async { self.pid(node).is_none().then_some(()) }).await;
                    self.keep_up();
                    eventually("it to be ready again", || async {
                        self.keep_up();
                        self.is_ready(node).await.then_some(())
                    })
                    .await;
                }
            }
        }
    }
}

/// Actions that arrive all the time, by file and by call, at any node.
struct Load<'a> {
    nodes: &'a Nodes,
    http: reqwest::Client,
    ids: RefCell<Vec<String>>,
    over: Cell<bool>,
}

impl Load<'_> {
    async fn run(&self) {
        for n in 0.. {
            if self.over.get() {
                return;
            }
            let id = Uuid::now_v7().to_string();
            let operation = json!({ "module": "tally", "parameters": id });
            // The clock jumps by minutes: a result that comes in time by any other clock is in time.
            let document = json!({ "id": id, "name": format!("n{n}"), "target": "TRUE", "operations": [operation],
                "timeout": "1h" });
            if n % 3 == 0 {
                self.nodes.servers.borrow()[n % NODES].drop_file(&format!("{id}.json"), &document.to_string());
            } else {
                eventually("an action to be accepted by some node", || async {
                    let url = &self.nodes.urls[rand::rng().random_range(0..NODES)];
                    let call = self.http.post(format!("{url}/v1/actions")).bearer_auth(&self.nodes.admin);
                    let answer = call.json(&document).send().await.ok()?;
                    (answer.status() == 202).then_some(())
                })
                .await;
            }
            self.ids.borrow_mut().push(id);
            tokio::time::sleep(PACE).await;
        }
    }
}

#[actix_rt::test]
async fn nothing_is_lost_or_repeated_whatever_happens_to_three_nodes() {
    let seed = std::env::var("ODOSHI_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed: u64 = seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let lasts = std::env::var("ODOSHI_TEST_CHAOS_SECS").ok().map(|secs| secs.parse().expect("seconds"));
    let lasts = Duration::from_secs(lasts.unwrap_or_else(|| by_length(LASTS[0], LASTS[1])));
    println!("ODOSHI_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let nodes = Nodes::start().await;
    let ports = nodes.urls.iter().map(|url| url.rsplit(':').next().unwrap().parse().unwrap()).collect();
    let balancer = Balancer::over(ports);
    let folder = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(AGENTS, &balancer.url, &nodes.enroll, folder.path());
    let sql = || nodes.servers.borrow()[0].sql();
    // Their agents run on this thread, which asks PostgreSQL's client and waits: not all the time.
    let seldom = || tokio::time::sleep(Duration::from_millis(500));
    eventually("all agents to be connected", || async {
        seldom().await;
        (sql().number("SELECT count(*) AS n FROM agent_sessions") == AGENTS as i64).then_some(())
    })
    .await;

    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let load = Load { nodes: &nodes, http, ids: RefCell::default(), over: Cell::new(false) };
    let faults = async {
        let begun = Instant::now();
        while begun.elapsed() < lasts {
            tokio::time::sleep(Duration::from_millis(random.random_range(500..2_500))).await;
            let (fault, node) = (draw(&mut random), random.random_range(0..NODES));
            println!("{:>5.1} s: {fault:?}, node {node}", begun.elapsed().as_secs_f64());
            nodes.suffer(fault, node).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
            nodes.keep_up();
        }
        load.over.set(true);
    };
    tokio::join!(load.run(), faults);
    nodes.all_ready().await;
    let over = Instant::now();
    let ids = load.ids.take();
    eventually("all actions to be completed", || async {
        nodes.keep_up();
        seldom().await;
        let open = sql().number("SELECT count(*) AS n FROM actions WHERE ended_at IS NULL");
        let all = sql().number("SELECT count(*) AS n FROM actions") == ids.len() as i64;
        (all && open == 0).then_some(())
    })
    .await;
    println!("{} actions for {AGENTS} agents, all completed {:?} after the last fault", ids.len(), over.elapsed());

    let runs = fleet.tally.lock().unwrap().clone();
    let mut evidence = Evidence::gather(ids, AGENTS, runs, &mut sql());
    evidence.over_a_step_back = nodes.over_a_step_back.take();
    assert_eq!(evidence.violations(), Vec::<String>::new(), "with the seed {seed}");
}
