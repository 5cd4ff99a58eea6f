//! What happens to a database, under load: it is stopped, killed, cut off, silent, slow; answers to commits are lost. The run
//! ends by itself, nothing is lost, nothing is run twice, and memory stays bounded meanwhile.

use crate::cluster::{self, Cluster};
use crate::support::{Fleet, Line, On, Proxy, Server, ServerOptions, WireAgent, by_length, eventually, mostly_waits};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

const AGENTS: usize = 15;
/// How many seconds each fault lasts, by default and in a long run.
const FAULT: [u64; 2] = [10, 20];
/// How much the server may grow while its database is away, in kilobytes.
const GROWTH: u64 = 100 * 1024;

/// Actions that arrive all the time, by file and by call.
struct Load<'a> {
    server: &'a Server,
    admin: String,
    http: reqwest::Client,
    ids: RefCell<Vec<String>>,
    refused: Cell<usize>,
    stop: Cell<bool>,
}

impl<'a> Load<'a> {
    fn new(server: &'a Server) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        let (ids, refused, stop) = (RefCell::default(), Cell::new(0), Cell::new(false));
        Self { admin: server.admin_token(), server, http, ids, refused, stop }
    }

    async fn run(&self) {
        let mut posts = FuturesUnordered::new();
        for n in 0.. {
            if self.stop.get() {
                break;
            }
            let id = Uuid::now_v7().to_string();
            let operation = json!({ "module": "tally", "parameters": id });
            let document = json!({ "id": id, "name": format!("n{n}"), "target": "TRUE", "operations": [operation] });
            if n % 2 == 0 {
                self.server.drop_file(&format!("{id}.json"), &document.to_string());
            } else {
                posts.push(self.post(document));
            }
            self.ids.borrow_mut().push(id);
            let next = tokio::time::sleep(Duration::from_millis(100));
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = &mut next => break,
                    Some(()) = posts.next() => {}
                }
            }
        }
        while posts.next().await.is_some() {}
    }

    /// Says it again until it is accepted.
    async fn post(&self, document: Value) {
        eventually("an action to be accepted", || async {
            let request = self.http.post(format!("{}/v1/actions", self.server.url)).bearer_auth(&self.admin);
            let answer = request.json(&document).send().await.ok()?;
            match answer.status().as_u16() {
                202 => Some(()),
                503 => {
                    assert!(answer.headers().contains_key("retry-after"));
                    self.refused.set(self.refused.get() + 1);
                    None
                }
                other => panic!("{other}: {}", answer.text().await.unwrap()),
            }
        })
        .await;
    }
}

/// A server on a database of its own in this cluster, reached through this port.
async fn server_through(cluster: &'static Cluster, port: u16) -> Server {
    let mut server = Server::prepare(On::Postgres.options());
    server.set("ODOSHI__STORE__URL", &cluster.url_through(port, server.database()));
    // With something at debug, no warning is left out: they are counted.
    server.set("RUST_LOG", "info,odoshi::store::postgres::transaction=debug");
    server.restart().await;
    server
}

/// Loads the server, lets the outage happen, and holds it to what is promised.
pub async fn survives(what: &str, server: &Server, outage: impl Future<Output = ()>) {
    let fleet = Fleet::start(AGENTS, &server.url, &server.enroll_token().await, server.folder.path());
    eventually("all agents to be enrolled", || async {
        (server.sql().number("SELECT count(*) AS n FROM agents") == AGENTS as i64).then_some(())
    })
    .await;
    let load = Load::new(server);
    let before = server.memory("VmHWM");
    let faults = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        outage.await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        load.stop.set(true);
        Instant::now()
    };
    let ((), over) = tokio::join!(load.run(), faults);
    let ids = load.ids.take();
    for id in &ids {
        server.until_status(id, "completed").await;
    }
    let ended = over.elapsed();
    let grown = server.memory("VmHWM") - before;
    println!(
        "{what}: {} actions, {} calls refused, all completed {ended:?} after the last action, grown by {grown} kB",
        ids.len(),
        load.refused.get()
    );
    assert!(grown < GROWTH, "{what}: it grew by {grown} kB");

    let tally = fleet.tally.lock().unwrap().clone();
    let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
    for ((agent, id), times) in &tally {
        assert_eq!(*times, 1, "{what}: {agent} ran {id} {times} times");
        *runs.entry(id.trim_matches('"')).or_default() += 1;
    }
    for id in &ids {
        assert_eq!(runs.get(id.as_str()), Some(&AGENTS), "{what}: {id}");
        let counts = &server.action(id).await["counts"];
        assert_eq!((&counts["total"], &counts["succeeded"]), (&json!(AGENTS), &json!(AGENTS)), "{what}: {id}");
    }
    let mut sql = server.sql();
    assert_eq!(sql.exceptions(), [], "{what}");
    assert_eq!(sql.number("SELECT count(*) AS n FROM actions"), ids.len() as i64, "{what}");
    assert_eq!(sql.number("SELECT count(*) AS n FROM open_commands"), 0, "{what}");
    let rows = (ids.len() * AGENTS) as i64;
    for table in ["commands", "outcomes"] {
        assert_eq!(sql.number(&format!("SELECT count(*) AS n FROM {table}")), rows, "{what}: {table}");
    }
    // A file is moved after the commit of what is in it.
    eventually("all files to be put away", || async {
        let files = |folder: &&str| std::fs::read_dir(server.spool(folder)).unwrap().count();
        (["new", "cur", "failed"].iter().map(files).sum::<usize>() == 0).then_some(())
    })
    .await;
    assert!(!server.log_text().contains(cluster::PASSWORD), "{what}: the password is in the log");
    assert!(!server.log_text().contains("panicked"), "{what}: {}", server.log_text());
}

/// A fault of the line for a while, during which the server says that it isn't ready.
async fn line_fault(what: &str, line: Line) {
    let cluster = aside(cluster::shared).await;
    let proxy = Proxy::to(cluster.port);
    let server = server_through(cluster, proxy.port).await;
    survives(what, &server, async {
        proxy.set(line);
        let slow = matches!(line, Line::Slow(..));
        let started = Instant::now();
        if !slow {
            eventually("readyz to say so", || async {
                server.readyz().await.filter(|(status, _)| *status == 503).map(|_| ())
            })
            .await;
        }
        let lasts = Duration::from_secs(by_length(FAULT[0], FAULT[1]));
        tokio::time::sleep(lasts.saturating_sub(started.elapsed())).await;
        proxy.set(Line::Open);
        eventually("readyz to be content", || async {
            server.readyz().await.filter(|(status, _)| *status == 200).map(|_| ())
        })
        .await;
    })
    .await;
}

#[actix_rt::test]
async fn connections_that_are_reset_cost_nothing() {
    line_fault("reset", Line::Reset).await;
}

#[actix_rt::test]
async fn a_black_hole_costs_nothing() {
    mostly_waits();
    line_fault("black hole", Line::BlackHole).await;
}

#[actix_rt::test]
async fn a_slow_line_costs_nothing() {
    mostly_waits();
    line_fault("slow line", Line::Slow(Duration::from_millis(50), 500_000)).await;
}

#[actix_rt::test]
async fn an_answer_to_a_commit_that_is_lost_is_looked_up_and_nothing_is_done_twice() {
    let cluster = aside(cluster::shared).await;
    let proxy = Proxy::to(cluster.port);
    let server = server_through(cluster, proxy.port).await;
    survives("lost answers", &server, async {
        for _ in 0..12 {
            proxy.cut_commits(3);
            eventually("commits to be cut off", || async { (proxy.commits_to_cut() == 0).then_some(()) }).await;
        }
    })
    .await;
    let lost = server.log_text().matches("the answer to a commit was lost").count();
    println!("{lost} answers were lost");
    assert!(lost >= 12, "{lost}");
}

#[actix_rt::test]
async fn a_second_signal_ends_a_server_at_once_that_would_wait_for_its_database() {
    let cluster = aside(cluster::shared).await;
    let proxy = Proxy::to(cluster.port);
    let mut server = Server::prepare(On::Postgres.options());
    server.set("ODOSHI__STORE__URL", &cluster.url_through(proxy.port, server.database()));
    // Longer than the test waits for its end.
    server.set("ODOSHI__SHUTDOWN_TIMEOUT", "10m");
    server.restart().await;
    let token = server.enroll("a", json!({})).await;
    let _agent = WireAgent::hello(&server.url, &token, 16).await;
    proxy.set(Line::BlackHole);
    let pid = nix::unistd::Pid::from_raw(server.pid());
    let terminate = || nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    terminate();
    eventually("it to drain", || async { server.log_text().contains("drains and stops").then_some(()) }).await;
    // Time is what is tested: that it waits, and then that it doesn't.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(server.is_running(), "it did not wait: {}", server.log_text());
    terminate();
    let status = server.wait().await;
    assert_eq!(status.code(), Some(1), "{}", server.log_text());
    assert!(server.log_text().contains("a second signal came before"), "{}", server.log_text());
}

/// Blocks on what talks to PostgreSQL's own programs, elsewhere.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[actix_rt::test]
async fn a_database_that_is_stopped_or_killed_in_the_middle_and_started_again_costs_nothing() {
    let cluster = aside(|| cluster::own(&[])).await;
    let server = Server::start(ServerOptions { cluster: Some(cluster), ..On::Postgres.options() }).await;
    survives("stopped and killed", &server, async {
        aside(|| cluster.stop()).await;
        eventually("readyz to say so", || async {
            server.readyz().await.filter(|(status, _)| *status == 503).map(|_| ())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        aside(|| cluster.resume()).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        for _ in 0..3 {
            aside(|| cluster.kill()).await;
            aside(|| cluster.resume()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    drop(server);
    aside(|| cluster.stop()).await;
}

#[actix_rt::test]
async fn a_database_that_is_away_at_the_start_is_waited_for() {
    let cluster = aside(|| cluster::own(&[])).await;
    let mut server = Server::prepare(ServerOptions { cluster: Some(cluster), ..On::Postgres.options() });
    aside(|| cluster.stop()).await;
    server.spawn();
    let (status, readiness) = eventually("the server to answer", || server.readyz()).await;
    assert_eq!((status, &readiness["ready"], &readiness["store"]), (503, &json!(false), &json!("not available")));
    let http = reqwest::Client::new();
    assert_eq!(http.get(format!("{}/healthz", server.url)).send().await.unwrap().status(), 200);
    let call = http.get(format!("{}/v1/actions", server.url)).bearer_auth("odoshi_any").send().await.unwrap();
    assert_eq!((call.status().as_u16(), call.headers().contains_key("retry-after")), (503, true));
    let id = Uuid::now_v7().to_string();
    let document = json!({ "id": id, "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    server.drop_file("early.json", &document.to_string());
    // Nothing is to happen to it, and that takes a while to be seen.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(server.spool("done").read_dir().unwrap().next().is_none());

    aside(|| cluster.resume()).await;
    server.ready().await;
    // The store is there a moment before the first token is.
    let token = server.data().join("admin.token");
    eventually("the first token", || async { token.exists().then_some(()) }).await;
    eventually("the file to be taken", || async { server.spool("done").join("early.json").exists().then_some(()) })
        .await;
    server.until_status(&id, "completed").await;
    drop(server);
    aside(|| cluster.stop()).await;
}

#[actix_rt::test]
async fn what_no_waiting_can_mend_ends_the_start_with_a_reason() {
    let cluster = aside(cluster::shared).await;
    let good = cluster.url("postgres");
    let wrong_password = good.replace("pass%20word", "hunter2");
    for (url, reason) in [
        (wrong_password, "password authentication failed"),
        (cluster.url("nowhere"), "database \"nowhere\" does not exist"),
        (format!("{good}?sslmode=maybe"), "sslmode"),
        (format!("{good}?sslrootcert=/nowhere.pem&sslmode=verify-full"), "/nowhere.pem"),
        (good.replace("@127.0.0.1:", "@127.0.0.1:x"), "store.url"),
    ] {
        let mut server = Server::prepare(ServerOptions::default());
        server.set("ODOSHI__STORE__URL", &url);
        server.spawn();
        let status = server.wait().await;
        let log = server.log_text();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(reason), "{reason:?} is not in {log}");
        assert!(!log.contains("hunter2") && !log.contains(cluster::PASSWORD) && !log.contains("word%2F7"), "{log}");
    }
}

#[actix_rt::test]
async fn a_pool_that_is_exhausted_is_503_and_passes() {
    let mut server = Server::prepare(On::Postgres.options().with("ODOSHI__STORE__POOL_SIZE", "2"));
    server.restart().await;
    let (cluster, database) = (aside(cluster::shared).await, server.database().to_owned());
    // Somebody locks a table that every call needs, until somebody has waited for a connection in vain.
    let mut psql = cluster.client("psql", &database);
    let mut locks = psql.args(["-X", "-q"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let say = "BEGIN; LOCK TABLE tokens IN ACCESS EXCLUSIVE MODE;\n";
    std::io::Write::write_all(locks.stdin.as_mut().unwrap(), say.as_bytes()).unwrap();
    let refused = async {
        eventually("a call to be refused", || async {
            let calls = (0..8).map(|_| async {
                let request = reqwest::Client::new().get(format!("{}/v1/actions", server.url));
                request.bearer_auth(server.admin_token()).send().await.unwrap().status().as_u16()
            });
            let statuses = join_all(calls).await;
            assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
            (statuses.contains(&503) && server.log_text().contains("no connection")).then_some(())
        })
        .await;
    };
    refused.await;
    drop(locks.stdin.take());
    aside(move || locks.wait().unwrap()).await;
    eventually("calls to be answered again", || async {
        (server.call("GET", "/v1/actions", None).await.0 == 200).then_some(())
    })
    .await;
}

#[actix_rt::test]
async fn two_servers_may_start_at_once_on_an_empty_database() {
    let mut first = Server::prepare(On::Postgres.options());
    let mut second = Server::prepare(ServerOptions::default());
    second.set("ODOSHI__STORE__URL", &first.store_url());
    let url = first.store_url();
    let migrate = || {
        let mut migrate = std::process::Command::new(crate::support::program());
        let output = migrate.arg("migrate").env("ODOSHI__STORE__URL", url.clone());
        output.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let migrations = [migrate(), migrate()];
    first.spawn();
    second.spawn();
    first.ready().await;
    second.ready().await;
    for migration in migrations {
        let output = aside(move || migration.wait_with_output().unwrap()).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("is up to date"), "{text}");
        assert!(!text.contains("word%2F7"), "{text}");
    }
    // Both are nodes, and what one accepts the other shows.
    assert_eq!(first.sql().number("SELECT count(*) AS n FROM nodes"), 2);
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    // Whoever was there first made the first token.
    let made = |server: &Server| server.data().join("admin.token").exists();
    let admin = if made(&first) { first.admin_token() } else { second.admin_token() };
    let (_, accepted) = first.call_as(&admin, "POST", "/v1/actions", Some(document)).await;
    eventually("the other one to show it", || async {
        let path = format!("/v1/actions/{}", accepted["id"].as_str().unwrap());
        let (_, view) = second.call_as(&admin, "GET", &path, None).await;

        (view["status"] == "completed").then_some(())
    })
    .await;

    assert!(first.terminate().await.success() && second.terminate().await.success());
}

#[actix_rt::test]
async fn who_was_taken_over_writes_nothing_more_and_ends() {
    // It is to find out by a write of its own, and not by a heartbeat before.
    let options = On::Postgres.options().with("ODOSHI__NODE__HEARTBEAT", "1h").with("ODOSHI__NODE__DEAD_AFTER", "3h");
    let mut server = Server::start(options).await;
    let token = server.enroll("wire", json!({})).await;
    let mut agent = crate::support::WireAgent::hello(&server.url, &token, 16).await;
    // As another node does that thinks it dead.
    let (cluster, database) = (aside(cluster::shared).await, server.database().to_owned());
    aside(move || cluster.psql(&database, "DELETE FROM nodes; DELETE FROM agent_sessions")).await;
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    let call = reqwest::Client::new().post(format!("{}/v1/actions", server.url)).bearer_auth(server.admin_token());
    // A write of its own may have ended it before.
    if let Ok(answer) = call.json(&document).send().await {
        assert_eq!(answer.status(), 503);
    }
    assert_eq!(agent.expect_close().await, 1012, "agents are told to go elsewhere");
    assert_eq!(server.wait().await.code(), Some(1), "the service manager must start it anew");
    assert!(server.log_text().contains("another node has taken over"), "{}", server.log_text());
    assert_eq!(server.sql().number("SELECT count(*) AS n FROM actions"), 0);
    server.restart().await;
}

#[actix_rt::test]
async fn a_transaction_that_holds_up_vacuum_is_told_of_with_its_pid() {
    let server = Server::start(On::Postgres.options().with("ODOSHI__STORE__WARN_TRANSACTION", "2s")).await;
    let (cluster, database) = (cluster::shared(), server.database().to_owned());
    let mut psql = cluster.client("psql", &database);
    psql.args(["-X", "-q", "-A", "-t"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut forgetful = psql.spawn().unwrap();
    let say = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM agents; SELECT pg_backend_pid();\n";
    std::io::Write::write_all(forgetful.stdin.as_mut().unwrap(), say.as_bytes()).unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(forgetful.stdout.take().unwrap()));
    let pid = tokio::task::spawn_blocking(move || lines.nth(1).unwrap().unwrap()).await.unwrap();
    eventually("the log to name it", || async {
        let log = server.log_text();
        let ours = format!("pid={pid} ");
        log.lines().find(|line| line.contains("vacuum waits for it") && line.contains(&ours)).map(|_| ())
    })
    .await;
    drop(forgetful.stdin.take());
    forgetful.wait().unwrap();
}
