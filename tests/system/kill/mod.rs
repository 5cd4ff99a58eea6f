//! `kill -9` in the middle of the work, again and again: nothing is lost, nothing is done twice, every count is exact.

use crate::support::{AgentProcess, On, Server, ServerOptions, by_length, eventually};
use phases::{PHASES, Phases};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

mod phases;

const AGENTS: usize = 25;
/// By default and in a long run; with [`AGENTS`] agents, 2,000 commands and 5,000.
const ACTIONS: [usize; 2] = [80, 200];
const KILLS: [usize; 2] = [8, 20];
/// Kills go on until each phase was hit, but not for ever.
const MOST_KILLS: usize = 60;
/// The longest time without any progress after the last kill.
const STANDSTILL: Duration = Duration::from_secs(180);

/// The seed of this run's random moments.
fn seed() -> u64 {
    let seed = std::env::var("ODOSHI_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    println!("ODOSHI_TEST_SEED={seed}");
    seed
}

/// Small pages and batches, and transactions that stay open for a while before their commit: many places to be hit in.
fn options(on: On) -> ServerOptions {
    // 25 agents and a server that sync a disk all the time would measure the disk.
    ServerOptions { in_memory: true, ..on.options() }
        .with("RUST_LOG", "odoshi=trace")
        .with("ODOSHI__RESOLVER__PAGE", "4")
        .with("ODOSHI__STORE__BATCH__MAX_ITEMS", "32")
        .with("FAILPOINTS", "agent_search=sleep(4);command_insert=sleep(4);outcome_record=sleep(4)")
}

/// Drops actions for as long as it is wanted, by file and by HTTP, whether or not a server is there.
struct Producer {
    url: String,
    token: String,
    spool: PathBuf,
    http: reqwest::Client,
    dropped: Cell<usize>,
    /// Names of actions that were answered `202`, or whose file is in `new/`.
    promised: RefCell<HashSet<String>>,
    /// No more kills to come.
    last: Cell<bool>,
}

impl Producer {
    fn new(server: &Server) -> Self {
        Self {
            url: server.url.clone(),
            token: server.admin_token(),
            spool: server.spool(""),
            http: reqwest::Client::new(),
            dropped: Cell::new(0),
            promised: RefCell::default(),
            last: Cell::new(false),
        }
    }

    fn done(&self) -> bool {
        self.dropped.get() >= by_length(ACTIONS[0], ACTIONS[1]) && self.last.get()
    }

    async fn run(self: Rc<Self>) {
        let mut posts = Vec::new();
        while !self.done() {
            let n = self.dropped.get();
            let (name, id) = (format!("s{n:04}"), Uuid::now_v7());
            // It takes a little time, and leaves a line for each time that it runs.
            let script = "sleep 0.0$1; echo \"$0\" >> \"$AGENT_FOLDER/runs\"";
            let argv = json!(["sh", "-c", script, name, (n % 5 * 2).to_string()]);
            let mut document = json!({ "id": id, "name": name, "target": "TRUE",
                "operations": [{ "module": "exec", "parameters": { "argv": argv } }] });
            if n.is_multiple_of(4) {
                document["spread"] = json!("2s");
            }
            match n % 3 {
                0 => posts.push(actix_rt::spawn(self.clone().post(name, document))),
                kind => {
                    if kind == 1 {
                        // Its id comes from the file.
                        document.as_object_mut().unwrap().remove("id");
                    }
                    let tmp = self.spool.join("tmp").join(format!("{name}.json"));
                    std::fs::write(&tmp, document.to_string()).unwrap();
                    std::fs::rename(tmp, self.spool.join("new").join(format!("{name}.json"))).unwrap();
                    self.promised.borrow_mut().insert(name);
                }
            }
            self.dropped.set(n + 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for post in posts {
            post.await.unwrap();
        }
    }

    /// Says it again until somebody answers that it is durable.
    async fn post(self: Rc<Self>, name: String, document: Value) {
        eventually("an answer to a submitted action", || async {
            let request = self.http.post(format!("{}/v1/actions", self.url)).bearer_auth(&self.token).json(&document);
            let status = request.send().await.ok()?.status().as_u16();
            assert!(matches!(status, 202 | 503), "{status}");
            (status == 202).then_some(())
        })
        .await;
        self.promised.borrow_mut().insert(name);
    }
}

/// All actions that the server knows: name → (id, status, counts).
async fn actions(server: &Server) -> BTreeMap<String, Value> {
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let (status, page) = server.call("GET", &format!("/v1/actions?limit=1000{after}"), None).await;
        assert_eq!(status, 200, "{page}");
        for action in page["actions"].as_array().unwrap() {
            let name = action["name"].as_str().unwrap().to_owned();
            assert!(all.insert(name.clone(), action.clone()).is_none(), "two actions are called {name}");
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}

/// Waits until everything is completed, as long as something happens all the time.
async fn until_completed(server: &Server, producer: &Producer) -> BTreeMap<String, Value> {
    let (mut before, mut since) = (-1, Instant::now());
    let mut longest = Duration::ZERO;
    loop {
        let finished = server.sql().number("SELECT count(*) AS n FROM outcomes WHERE is_final");
        let ended = server.sql().number("SELECT count(*) AS n FROM actions WHERE ended_at IS NOT NULL");
        longest = longest.max(since.elapsed());
        if (finished + ended) != before {
            (before, since) = (finished + ended, Instant::now());
        }
        let standstill = since.elapsed();
        let all = actions(server).await;
        let open = all.values().filter(|action| action["status"] != "completed").count();
        if open == 0 && all.len() >= producer.promised.borrow().len() {
            println!("the longest standstill was {longest:?}");
            return all;
        }
        assert!(standstill < STANDSTILL, "{finished} commands are finished, {open} actions are not, and nothing moves");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts the fleet, and waits until the store knows all of it.
async fn fleet(server: &Server) -> Vec<AgentProcess> {
    let token = server.enroll_token().await;
    let agents = (0..AGENTS)
        .map(|n| AgentProcess::start(&server.url, &format!("a{n:02}"), &[], server.folder.path(), &token))
        .collect();
    eventually("all agents to be connected", || async {
        let connected = server.sql().number("SELECT count(*) AS n FROM agent_sessions");
        (connected == AGENTS as i64).then_some(())
    })
    .await;
    agents
}

pub async fn kill_9_at_any_moment_loses_nothing_and_repeats_nothing(on: On) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut server = Server::start(options(on)).await;
    let mut agents = fleet(&server).await;
    let producer = Rc::new(Producer::new(&server));
    let producing = actix_rt::spawn(producer.clone().run());

    let mut table = Vec::new();
    let mut hit: HashMap<&str, usize> = HashMap::new();
    let (started, kills) = (Instant::now(), by_length(KILLS[0], KILLS[1]));
    while table.len() < MOST_KILLS && (table.len() < kills || hit.len() < PHASES.len()) {
        // From the middle of its start to well into its work; where starting takes all of that, from its work on.
        if table.len() >= kills {
            server.ready().await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(150..2_000))).await;
        server.kill();
        let phases = Phases::of(&server.log_text());
        for phase in phases.under_way() {
            *hit.entry(phase).or_default() += 1;
        }
        table.push((started.elapsed(), phases));
        if random.random_bool(0.5) {
            let victim = &mut agents[random.random_range(0..AGENTS)];
            victim.kill();
            victim.restart();
        }
        server.spawn();
    }
    let last_kill = Instant::now();
    producer.last.set(true);
    println!("{:>4} {:>7}  {}", "kill", "after", Phases::header());
    for (n, (after, phases)) in table.iter().enumerate() {
        println!("{:>4} {:>6.1}s  {phases}", n + 1, after.as_secs_f64());
    }
    println!("hit: {hit:?}");
    server.ready().await;
    println!("ready again {:?} after the last kill", last_kill.elapsed());
    producing.await.unwrap();
    let all_dropped = Instant::now();
    println!("{} actions were dropped", producer.dropped.get());

    let actions = until_completed(&server, &producer).await;
    println!(
        "all completed {:?} after the last kill, {:?} after the last action",
        last_kill.elapsed(),
        all_dropped.elapsed()
    );

    assert_eq!(hit.len(), PHASES.len(), "no kill crashed into some phase: {hit:?}");
    let promised = producer.promised.take();
    assert_eq!(promised.len(), producer.dropped.get());
    assert_eq!(actions.keys().collect::<HashSet<_>>(), promised.iter().collect::<HashSet<_>>());
    assert_all_counted(&server, &actions);
    assert_each_ran_once(&server, &actions).await;
    assert_spool_is_done(&server, &promised).await;
    for start in 1..=server.starts {
        let log = std::fs::read_to_string(server.log(start)).unwrap();
        let bad = log.lines().find(|line| line.contains(" ERROR ") || line.contains("panicked"));
        assert_eq!(bad, None, "in the log of start {start}");
    }
}

/// One row, one final outcome, nothing open, and counts that are what SQL counts.
fn assert_all_counted(server: &Server, actions: &BTreeMap<String, Value>) {
    let mut sql = server.sql();
    assert_eq!(sql.exceptions(), []);
    assert_eq!(sql.number("SELECT count(*) AS n FROM open_commands"), 0);
    let rows = sql.groups(
        "SELECT a.name AS key, count(DISTINCT c.agent_no) AS kind, count(*) AS n FROM actions a \
        JOIN commands c ON c.action_no = a.no GROUP BY a.no",
    );
    assert_eq!(rows.len(), actions.len());
    assert!(rows.iter().all(|(_, agents, rows)| (*agents, *rows) == (AGENTS as i64, AGENTS as i64)), "{rows:?}");
    let finals = sql.groups(
        "SELECT a.name AS key, o.status AS kind, count(*) AS n FROM actions a \
        JOIN outcomes o ON o.action_no = a.no WHERE o.is_final GROUP BY a.no, o.status",
    );
    let mut counted: HashMap<String, Value> = HashMap::new();
    for (name, status, n) in finals {
        let counts = counted.entry(name).or_insert_with(|| {
            json!({ "total": AGENTS, "resolved": true, "pending": 0, "sent": 0, "succeeded": 0, "failed": 0,
                "timed_out": 0, "undeliverable": 0, "expired": 0, "cancelled": 0 })
        });
        let states = ["pending", "sent", "succeeded", "failed", "timed_out", "undeliverable", "expired", "cancelled"];
        counts[states[status as usize]] = n.into();
    }
    for (name, action) in actions {
        assert_eq!(&action["counts"], &counted[name], "counts of {name}");
    }
}

/// The world outside says the same as the server: a line for each command that succeeded, and never a second one.
async fn assert_each_ran_once(server: &Server, actions: &BTreeMap<String, Value>) {
    let mut runs: HashMap<(String, String), usize> = HashMap::new();
    for n in 0..AGENTS {
        let agent = format!("a{n:02}");
        let lines = std::fs::read_to_string(server.folder.path().join(&agent).join("runs")).unwrap();
        for action in lines.lines() {
            *runs.entry((action.to_owned(), agent.clone())).or_default() += 1;
        }
    }
    let twice: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
    let (mut succeeded, mut interrupted) = (0, 0);
    for (name, action) in actions {
        let commands = server.commands(action["id"].as_str().unwrap()).await;
        assert_eq!(commands.len(), AGENTS);
        for command in commands {
            let agent = command["agent"].as_str().unwrap().to_owned();
            if command["status"] == "succeeded" {
                succeeded += 1;
                assert!(runs.contains_key(&(name.clone(), agent)), "succeeded without a run: {name}, {command}");
            } else {
                interrupted += 1;
                assert_eq!(command["status"], "failed", "{name}: {command}");
                assert!(command["error"].as_str().unwrap().contains("interrupted"), "{name}: {command}");
            }
            assert_eq!(command["runs"], 1, "{name}: {command}");
        }
    }
    println!("{succeeded} commands succeeded, {interrupted} were interrupted, {} lines were left", runs.len());
}

/// Every file is in `done/`.
async fn assert_spool_is_done(server: &Server, promised: &HashSet<String>) {
    // A file is moved after the commit of what is in it.
    eventually("all files to be put away", || async {
        let empty = ["new", "cur"].iter().all(|folder| server.spool(folder).read_dir().unwrap().next().is_none());
        empty.then_some(())
    })
    .await;
    let names = |folder: &str| -> HashSet<String> {
        let files = std::fs::read_dir(server.spool(folder)).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    for folder in ["new", "cur", "failed"] {
        assert_eq!(names(folder), HashSet::new(), "{folder}/");
    }
    let number = |name: &str| name[1..].parse::<usize>().unwrap();
    let files: HashSet<String> =
        promised.iter().filter(|name| number(name) % 3 != 0).map(|name| format!("{name}.json")).collect();
    assert_eq!(names("done"), files);
}
