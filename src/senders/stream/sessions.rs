//! Writes which agents are connected here: the connects and disconnects of many sessions in one transaction.

use crate::domain::hint::Hint;
use crate::metrics::Metrics;
use crate::pipeline::batcher::{Batcher, Refused, Sink};
use crate::pipeline::outcomes::Upstream;
use crate::store::{Store, StoreResult};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Connects, as (agent, epoch), that are not written yet, and whether their connection is gone already. A batch that failed
/// is set aside, and so a disconnect may be written before its connect, which must not bring the connection back then.
#[derive(Clone, Debug, Default)]
pub struct Opening(Arc<Mutex<HashMap<(i64, i64), bool>>>);

impl Opening {
    fn lock(&self) -> MutexGuard<'_, HashMap<(i64, i64), bool>> {
        // Whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are about to be written.
    fn begin(&self, changes: &[SessionChange]) {
        let mut opening = self.lock();
        for change in changes {
            match *change {
                SessionChange::Opened { agent_no, epoch } => {
                    opening.entry((agent_no, epoch)).or_default();
                }
                SessionChange::Closed { agent_no, epoch } => {
                    opening.entry((agent_no, epoch)).and_modify(|gone| *gone = true);
                }
            }
        }
    }

    fn is_gone(&self, agent_no: i64, epoch: i64) -> bool {
        self.lock().get(&(agent_no, epoch)) == Some(&true)
    }

    /// These are written, or never will be.
    fn end(&self, changes: &[SessionChange]) {
        let mut opening = self.lock();
        for change in changes {
            if let SessionChange::Opened { agent_no, epoch } = *change {
                opening.remove(&(agent_no, epoch));
            }
        }
    }
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
    /// Empty at first.
    pub opening: Opening,
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
        self.opening.begin(changes);
        let (mut opened, mut closed) = (BTreeMap::new(), BTreeMap::new());
        for change in changes {
            match change {
                SessionChange::Opened { agent_no, epoch } if self.opening.is_gone(*agent_no, *epoch) => {}
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

    async fn written(&self, changes: Vec<SessionChange>, _: &[Result<(), Refused>]) {
        self.opening.end(&changes);
        crate::fault_point!("sessions.written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_that_is_written_after_its_disconnect_brings_nothing_back() {
        let opening = Opening::default();
        let (opened, closed) =
            (SessionChange::Opened { agent_no: 1, epoch: 5 }, SessionChange::Closed { agent_no: 1, epoch: 5 });
        opening.begin(&[opened]);
        assert!(!opening.is_gone(1, 5));
        // The connect failed, and is tried again after this.
        opening.begin(&[closed]);
        opening.end(&[closed]);
        opening.begin(&[opened]);
        assert!(opening.is_gone(1, 5));
        opening.end(&[opened]);
        // A disconnect whose connect is written leaves nothing behind.
        opening.begin(&[closed]);
        assert!(opening.lock().is_empty());
    }
}
