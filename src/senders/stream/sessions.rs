//! Writes which agents are connected here: the connects and disconnects of many sessions in one transaction.

use crate::domain::hint::Hint;
use crate::metrics::Metrics;
use crate::pipeline::batcher::{Batcher, Refused, Sink};
use crate::pipeline::outcomes::Upstream;
use crate::store::{Store, StoreResult};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The actor.
pub type Sessions = Batcher<SessionSink>;

/// A connection came or went.
#[derive(Clone, Copy, Debug)]
pub enum SessionChange {
    /// It is here.
    Opened {
        /// The agent.
        agent_no: i64,
        /// A later connection has a higher one.
        epoch: i64,
    },
    /// It is gone.
    Closed {
        /// The agent.
        agent_no: i64,
        /// The connection that it was.
        epoch: i64,
    },
}

/// Connects and disconnects, on their way into the store.
#[derive(Clone)]
pub struct SessionSink {
    /// Where they are written.
    pub store: Arc<dyn Store>,
    /// Who tells other nodes.
    pub upstream: Upstream,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Sink for SessionSink {
    type Item = SessionChange;
    type Answer = ();

    const NAME: &'static str = "sessions";

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn write(&self, changes: &[SessionChange]) -> StoreResult<Vec<()>> {
        // The newest connection of an agent is all that counts; a connection that came and went within one batch is
        // closed, which forgets it if it was ever written.
        let (mut opened, mut closed) = (BTreeMap::new(), BTreeMap::new());
        for change in changes {
            match change {
                SessionChange::Opened { agent_no, epoch } => {
                    let newest = opened.entry(*agent_no).or_insert(*epoch);
                    *newest = (*newest).max(*epoch);
                }
                SessionChange::Closed { agent_no, epoch } => {
                    closed.insert((*agent_no, *epoch), ());
                    if opened.get(agent_no) == Some(epoch) {
                        opened.remove(agent_no);
                    }
                }
            }
        }
        if !opened.is_empty() {
            let agents: Vec<i64> = opened.keys().copied().collect();
            let moved = self.store.session_elsewhere(&agents).await?;
            self.store.session_open(&opened.iter().map(|(agent, epoch)| (*agent, *epoch)).collect::<Vec<_>>()).await?;
            // Where they were, their connections may half live on.
            let told = moved.into_iter().map(|agent_no| Hint::Moved { agent_no, epoch: opened[&agent_no] });
            self.upstream.tell(told.collect());
        }
        if !closed.is_empty() {
            self.store.session_close(&closed.into_keys().collect::<Vec<_>>()).await?;
        }
        Ok(vec![(); changes.len()])
    }

    async fn written(&self, _: Vec<SessionChange>, _: &[Result<(), Refused>]) {
        crate::fault_point!("sessions.written");
    }
}
