//! Many reference agents in the test's own process: real connections and journals, without a process each.

use async_trait::async_trait;
use odoshi::agent::modules::{Call, Module, Outcome};
use odoshi::agent::{Agent, AgentConfig, BackoffConfig, Secret};
use odoshi::domain::time::Span;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;

/// How often each agent ran what, by (agent, parameters).
pub type Tally = Arc<Mutex<HashMap<(String, String), usize>>>;

/// Agents `a000`, `a001`, …; stopped when dropped. Their module `tally` counts its runs and answers well.
pub struct Fleet {
    pub tally: Tally,
    waiting: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

struct Count {
    agent: String,
    tally: Tally,
}

#[async_trait]
impl Module for Count {
    async fn call(&self, call: Call) -> Outcome {
        let what = call.parameters.map(|json| json.get().to_owned()).unwrap_or_default();
        *self.tally.lock().unwrap().entry((self.agent.clone(), what)).or_default() += 1;
        Outcome::done(None)
    }
}

/// Runs until it is stopped.
struct Wait(Arc<AtomicUsize>);

#[async_trait]
impl Module for Wait {
    async fn call(&self, mut call: Call) -> Outcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        let reason = call.stop.wait().await;
        self.0.fetch_sub(1, Ordering::SeqCst);
        Outcome::stopped(reason)
    }
}

impl Fleet {
    /// Agents at a broker; `url` is that of an agent. Their module `wait` runs until it is stopped.
    pub fn at_broker(names: &[String], folder: &Path, url: impl Fn(&str) -> String) -> Self {
        let (tally, waiting) = (Tally::default(), Arc::new(AtomicUsize::new(0)));
        let tasks = names.iter().map(|name| {
            let config = AgentConfig {
                server: url(name),
                name: name.clone(),
                state_dir: folder.join(name),
                backoff: BackoffConfig { min: Span::millis(20), max: Span::millis(500) },
                ..AgentConfig::default()
            };
            let module = Count { agent: name.clone(), tally: tally.clone() };
            let agent = Agent::new(config).unwrap().with_module("tally", module);
            let agent = agent.with_module("wait", Wait(waiting.clone()));
            actix_rt::spawn(async move { agent.run(std::future::pending()).await.unwrap() })
        });
        Self { tasks: tasks.collect(), tally, waiting }
    }

    /// How many runs of `wait` are under way.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub fn start(count: usize, server: &str, enroll_token: &str, folder: &Path) -> Self {
        let tally = Tally::default();
        let tasks = (0..count)
            .map(|number| {
                let name = format!("a{number:03}");
                let module = Count { agent: name.clone(), tally: tally.clone() };
                let config = AgentConfig {
                    server: server.to_owned(),
                    state_dir: folder.join(&name),
                    name,
                    token: Some(Secret(enroll_token.to_owned())),
                    backoff: BackoffConfig { min: Span::millis(20), max: Span::millis(500) },
                    ..AgentConfig::default()
                };
                let agent = Agent::new(config).unwrap().with_module("tally", module);
                actix_rt::spawn(async move { agent.run(std::future::pending()).await.unwrap() })
            })
            .collect();
        Self { tally, waiting: Arc::default(), tasks }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
