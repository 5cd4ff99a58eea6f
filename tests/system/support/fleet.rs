//! Many reference agents in the test's own process: real connections and journals, without a process each.

use async_trait::async_trait;
use odoshi::agent::modules::{Call, Module, Outcome};
use odoshi::agent::{Agent, AgentConfig, BackoffConfig, Secret};
use odoshi::domain::time::Span;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;

/// How often each agent ran what, by (agent, parameters).
pub type Tally = Arc<Mutex<HashMap<(String, String), usize>>>;

/// Agents `a000`, `a001`, …; stopped when dropped. Their module `tally` counts its runs and answers well.
pub struct Fleet {
    pub tally: Tally,
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

impl Fleet {
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
        Self { tally, tasks }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
