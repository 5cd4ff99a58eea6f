//! Three nodes on one database at work for a time: actions, cancels, live actions that new agents join, agents that are
//! removed, metadata and a schedule, all at once. Nothing breaks. What is looked for is what grows.

use crate::support::{On, Server, Sql, WireAgent, by_length, eventually, success};
use futures_util::StreamExt;
use futures_util::stream::iter;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const NODES: usize = 3;
/// Agents that stay.
const AGENTS: [usize; 2] = [60, 5_000];
const LASTS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(30 * 60)];
/// The time between two actions, and between two values of an agent.
const PACE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(4)];
const REPORTS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(20)];
/// Agents that join and are removed stay for so many actions.
const GUESTS: usize = 5;
/// How much the memory of a node may grow from the first half to the second, in kilobytes.
const GROWTH: [u64; 2] = [200 * 1024, 40 * 1024];
/// What goes with its action.
const TABLES: [&str; 5] = ["actions", "commands", "outcomes", "open_commands", "action_counts"];

/// How often each agent got each action. What comes again is answered, and not run.
type Runs = Rc<RefCell<HashMap<(String, String), usize>>>;

fn of<T: Copy>(choices: [T; 2]) -> T {
    by_length(choices[0], choices[1])
}

struct Soak {
    servers: Vec<Server>,
    admin: String,
    enroll: String,
    http: reqwest::Client,
    runs: Runs,
}

impl Soak {
    async fn start() -> Self {
        let mut servers: Vec<Server> = Vec::new();
        for number in 0..NODES {
            let mut options = On::Postgres.options().with("ODOSHI__NODE__NAME", &format!("node-{number}"));
            options.database = servers.first().map(|first| first.database().to_owned());
            let mut server = Server::prepare(options);
            server.set("ODOSHI__RETENTION__ACTIONS", by_length("1h", "3m"));
            server.restart().await;
            servers.push(server);
        }
        let (admin, enroll) = (servers[0].admin_token(), servers[0].enroll_token().await);
        Self { servers, admin, enroll, http: reqwest::Client::new(), runs: Runs::default() }
    }

    /// Calls some node; each in its turn.
    async fn call(&self, n: usize, method: &str, path: &str, body: Value) -> Value {
        eventually(&format!("{method} {path}"), || async {
            let url = format!("{}{path}", self.servers[n % NODES].url);
            let call = self.http.request(method.parse().unwrap(), url).bearer_auth(&self.admin);
            let call = if body.is_null() { call } else { call.json(&body) };
            let answer = call.send().await.ok()?;
            let status = answer.status().as_u16();
            // Of a call that is repeated, the first may have been answered in vain.
            assert!(matches!(status, 200..300 | 404 | 409 | 503), "{method} {path}: {status}");
            (status != 503).then_some(())?;
            // A removal has no body.
            Some(answer.json().await.unwrap_or(Value::Null))
        })
        .await
    }

    async fn enroll(&self, n: usize, name: &str) -> String {
        let body = json!({ "name": name, "labels": {}, "facts": {}, "version": "soak" });
        eventually("an agent to be enrolled", || async {
            let call = self.http.post(format!("{}/v1/agent/enroll", self.servers[n % NODES].url));
            let answer = call.bearer_auth(&self.enroll).json(&body).send().await.ok()?;
            (answer.status() == 201).then_some(())?;
            Some(answer.json::<Value>().await.ok()?["token"].as_str()?.to_owned())
        })
        .await
    }

    /// Enrolls an agent, and lets it run.
    async fn add(&self, n: usize, name: &str) -> JoinHandle<()> {
        let (token, url) = (self.enroll(n, name).await, self.servers[n % NODES].url.clone());
        actix_rt::spawn(live(url, token, name.to_owned(), self.runs.clone()))
    }

    fn sql(&self) -> Sql {
        self.servers[0].sql()
    }

    fn rows(&self, table: &str) -> i64 {
        self.sql().number(&format!("SELECT count(*) AS n FROM {table}"))
    }

    /// The memory of the largest node, in kilobytes.
    fn memory(&self) -> u64 {
        self.servers.iter().map(|server| server.memory("VmRSS")).max().unwrap()
    }

    /// Hands actions in until it is over. Returns the ids of those for all agents, and never cancelled.
    async fn load(&self, over: &Cell<bool>) -> Vec<String> {
        let (mut whole, mut guests): (Vec<String>, Vec<(String, JoinHandle<()>)>) = (Vec::new(), Vec::new());
        let document = |name: &str| json!({ "name": name, "target": "TRUE", "operations": [{ "module": "ping" }] });
        for n in 0.. {
            if over.get() {
                break;
            }
            let mut new = document(&format!("n{n}"));
            match n % 4 {
                0 => {
                    new["membership"] = "live".into();
                    new["expires_after"] = "30s".into();
                    self.call(n, "POST", "/v1/actions", new).await;
                    let name = format!("guest-{n}");
                    let task = self.add(n, &name).await;
                    guests.push((name, task));
                    if guests.len() > GUESTS {
                        let (name, task) = guests.remove(0);
                        self.call(n + 1, "DELETE", &format!("/v1/agents/{name}"), Value::Null).await;
                        task.abort();
                    }
                }
                1 => {
                    let id = self.call(n, "POST", "/v1/actions", new).await["id"].as_str().unwrap().to_owned();
                    self.call(n + 1, "POST", &format!("/v1/actions/{id}/cancel"), json!({})).await;
                }
                2 => {
                    new["spread"] = "5s".into();
                    whole.push(self.call(n, "POST", "/v1/actions", new).await["id"].as_str().unwrap().to_owned());
                }
                _ => whole.push(self.call(n, "POST", "/v1/actions", new).await["id"].as_str().unwrap().to_owned()),
            }
            tokio::time::sleep(of(PACE)).await;
        }
        // Their commands are not waited for.
        for (n, (name, task)) in guests.into_iter().enumerate() {
            self.call(n, "DELETE", &format!("/v1/agents/{name}"), Value::Null).await;
            task.abort();
        }
        whole
    }
}

/// An agent that connects for ever, runs everything at once, and reports a value now and then.
async fn live(url: String, token: String, name: String, runs: Runs) {
    loop {
        let mut agent = WireAgent::persistently(&url, &token, 16).await;
        let mut report = tokio::time::interval(of(REPORTS));
        let mut seq = 0;
        loop {
            let frame = tokio::select! {
                frame = agent.next() => frame,
                _ = report.tick() => {
                    seq += 1;
                    let now = chrono::Utc::now().to_rfc3339();
                    let item = json!({ "key": "load", "value": seq, "collected_at": now });
                    if say(&mut agent, json!({ "type": "metadata", "seq": seq, "items": [item] })).await {
                        continue;
                    }
                    break;
                }
            };
            let Ok(frame) = frame else { break };
            let mut results = Vec::new();
            for command in frame["commands"].as_array().filter(|_| frame["type"] == "commands").into_iter().flatten() {
                let action = command["action"].as_str().unwrap().to_owned();
                *runs.borrow_mut().entry((name.clone(), action)).or_default() += 1;
                results.push(success(command));
            }
            if !results.is_empty() && !say(&mut agent, json!({ "type": "results", "results": results })).await {
                break;
            }
        }
    }
}

/// Whether it could be said.
async fn say(agent: &mut WireAgent, frame: Value) -> bool {
    use futures_util::SinkExt;
    agent.socket.send(tokio_tungstenite::tungstenite::Message::text(frame.to_string())).await.is_ok()
}

#[actix_rt::test]
async fn nothing_grows_on_three_nodes_that_are_at_work() {
    let mut soak = Soak::start().await;
    let names: Vec<String> = (0..of(AGENTS)).map(|n| format!("a{n:04}")).collect();
    let stay: Vec<JoinHandle<()>> =
        iter(names.iter().enumerate()).map(|(n, name)| soak.add(n, name)).buffer_unordered(16).collect().await;
    let action = json!({ "name": "again", "target": "TRUE", "operations": [{ "module": "ping" }] });
    let schedule = json!({ "name": "soak", "every": "10s", "action": action });
    soak.call(0, "POST", "/v1/schedules", schedule).await;
    eventually("all agents to be connected", || async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (soak.rows("agent_sessions") >= names.len() as i64).then_some(())
    })
    .await;

    let over = Cell::new(false);
    // Of each half: the most memory, and the most rows.
    let watch = async {
        let (began, mut most) = (Instant::now(), [(0, 0); 2]);
        while began.elapsed() < of(LASTS) {
            tokio::time::sleep(of(LASTS) / 60).await;
            let half = &mut most[usize::from(began.elapsed() > of(LASTS) / 2)];
            let rows = soak.rows("commands");
            println!("{:>6.0?}: {} kB, {rows} commands", began.elapsed(), soak.memory());
            *half = (half.0.max(soak.memory()), half.1.max(rows));
        }
        over.set(true);
        most
    };
    let (whole, [first, second]) = tokio::join!(soak.load(&over), watch);
    soak.call(0, "DELETE", "/v1/schedules/soak", Value::Null).await;
    eventually("all actions to be over", || async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (soak.sql().number("SELECT count(*) AS n FROM actions WHERE ended_at IS NULL") == 0).then_some(())
    })
    .await;

    assert!(second.0 < first.0 + of(GROWTH), "memory in kB, commands: {first:?}, then {second:?}");
    let is_kept = by_length(false, true);
    assert!(!is_kept || second.1 < first.1 + first.1 / 4, "memory in kB, commands: {first:?}, then {second:?}");
    // Rows of an action that is being deleted go table by table.
    eventually("rows to fit together", || async { soak.sql().exceptions().is_empty().then_some(()) }).await;
    let miscounted = "SELECT count(*) AS n FROM (SELECT action_no, sum(total) AS total, sum(succeeded) AS succeeded \
         FROM action_counts GROUP BY action_no) c WHERE total <> (SELECT count(*) FROM commands x \
         WHERE x.action_no = c.action_no) OR succeeded <> (SELECT count(*) FROM outcomes o \
         WHERE o.action_no = c.action_no AND o.is_final AND o.status = 2)";
    assert_eq!(soak.sql().number(miscounted), 0);
    let runs = soak.runs.borrow().clone();
    println!("{} of {} commands came again", runs.values().filter(|times| **times > 1).count(), runs.len());
    let missed = whole.iter().flat_map(|id| names.iter().map(move |name| (name.clone(), id.clone())));
    let missed: Vec<_> = missed.filter(|run| !runs.contains_key(run)).collect();
    assert!(missed.is_empty(), "{} runs of {} actions are missing: {:?}", missed.len(), whole.len(), missed.first());

    // Whatever was kept until now goes.
    stay.iter().for_each(JoinHandle::abort);
    for server in &mut soak.servers {
        assert!(server.terminate().await.success());
        server.set("ODOSHI__RETENTION__ACTIONS", "1ms");
    }
    soak.servers[0].restart().await;
    for table in TABLES {
        eventually(&format!("nothing to be left in {table}"), || async { (soak.rows(table) == 0).then_some(()) }).await;
    }
}
