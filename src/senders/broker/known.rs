//! Which agents there are at a broker, and which may speak (remembered for a few seconds).

use crate::domain::agent::check_name;
use crate::domain::target::Target;
use crate::store::{Store, StoreResult};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer of the store holds. An agent that was just added is heard after this time, and
/// one that was removed is heard as long; what it says of its commands is then rejected by the store.
const HOLDS: Duration = Duration::from_secs(5);
/// Agents that are remembered. With more, all are forgotten.
const MOST: usize = 20_000;

/// Agents read at once.
const PAGE: usize = 2_000;

/// The names of all agents of a transport that may get commands.
pub(crate) async fn agents_of(store: &dyn Store, transport: &str) -> StoreResult<Vec<String>> {
    let Ok(target) = Target::parse(&format!("transport = '{transport}'")) else { return Ok(Vec::new()) };
    let (mut names, mut after) = (Vec::new(), 0);
    loop {
        let page = store.agent_match(&target, after, PAGE).await?;
        let nos: Vec<i64> = page.iter().map(|(agent_no, _)| *agent_no).collect();
        let Some(last) = nos.last() else { return Ok(names) };
        after = *last;
        names.extend(store.agent_contacts(&nos).await?.into_iter().map(|agent| agent.name));
    }
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its key.
    Allowed(i64),
    /// Why it may not speak.
    Refused(&'static str),
}

/// See the module.
pub(super) struct KnownAgents {
    transport: &'static str,
    agents: Mutex<HashMap<String, (Standing, Instant)>>,
}

impl KnownAgents {
    pub(super) fn new(transport: &'static str) -> Self {
        Self { transport, agents: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Standing, Instant)>> {
        // The map is consistent after every step.
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn look_up(&self, store: &dyn Store, name: &str) -> StoreResult<Standing> {
        if let Some((standing, since)) = self.lock().get(name)
            && since.elapsed() < HOLDS
        {
            return Ok(standing.clone());
        }
        let standing = self.read(store, name).await?;
        let mut agents = self.lock();
        if agents.len() >= MOST {
            agents.clear();
        }
        agents.insert(name.to_owned(), (standing.clone(), Instant::now()));
        Ok(standing)
    }

    async fn read(&self, store: &dyn Store, name: &str) -> StoreResult<Standing> {
        // A checked name holds no quote.
        let target = check_name(name).ok().and_then(|()| Target::parse(&format!("name = '{name}'")).ok());
        let Some(target) = target else { return Ok(Standing::Refused("the sender has no agent's name")) };
        Ok(match store.agent_match(&target, 0, 1).await?.pop() {
            Some((no, transport)) if *transport == *self.transport => Standing::Allowed(no),
            Some(_) => Standing::Refused("the agent has another transport"),
            None => match store.agent_view(name).await? {
                Some(_) => Standing::Refused("the agent is disabled"),
                None => Standing::Refused("there is no such agent"),
            },
        })
    }
}
