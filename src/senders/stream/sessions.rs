//! Writes which agents are connected here: connects and disconnects of many sessions share one
//! transaction.

use crate::context::Node;
use crate::metrics::Metrics;
use crate::runtime::batcher::Verdict;
use crate::runtime::{Batcher, Sink, Writer};
use crate::store::{Opened, SessionOpening, StoreResult};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The actor.
pub type Sessions = Batcher<SessionSink>;

/// The actor's handle for the stream sender.
pub type SessionWriter = Writer<SessionChange, Option<Opened>>;

/// A connection was opened or closed.
#[derive(Clone, Copy, Debug)]
pub enum SessionChange {
    /// The agent is connected.
    Opened {
        /// What the store needs to know.
        opening: SessionOpening,
        /// The connection's number in this process; later ones are higher.
        serial: u64,
    },
    /// The connection is gone.
    Closed {
        /// The agent.
        agent_no: i64,
        /// The connection's number in this process.
        serial: u64,
        /// Its epoch, if the store has answered. Without one, all of the agent's sessions at this
        /// process are closed.
        epoch: Option<i64>,
    },
}

/// Connects that are not written yet, as (agent, serial), and whether a disconnect or a newer
/// connect has overtaken them.
///
/// A batch that failed is set aside while others are written. A retried connect must not bring back
/// a connection that is gone, nor replace a newer one.
#[derive(Clone, Debug, Default)]
pub struct Opening(Arc<Mutex<BTreeMap<(i64, u64), bool>>>);

impl Opening {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(i64, u64), bool>> {
        // The map is consistent after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers changes that are about to be written.
    fn begin(&self, changes: &[SessionChange]) {
        let mut opening = self.lock();
        for change in changes {
            match *change {
                SessionChange::Opened { opening: SessionOpening { agent_no, after, .. }, serial } => {
                    // A repeated opening is older than a first one.
                    if after.is_none() {
                        opening
                            .range_mut((agent_no, 0)..(agent_no, serial))
                            .for_each(|(_, overtaken)| *overtaken = true);
                    }
                    opening.entry((agent_no, serial)).or_default();
                }
                SessionChange::Closed { agent_no, serial, .. } => {
                    opening.entry((agent_no, serial)).and_modify(|overtaken| *overtaken = true);
                }
            }
        }
    }

    fn is_overtaken(&self, change: &SessionChange) -> bool {
        match change {
            SessionChange::Opened { opening, serial } => self.lock().get(&(opening.agent_no, *serial)) == Some(&true),
            SessionChange::Closed { .. } => false,
        }
    }

    /// Removes changes that are written, or never will be.
    fn end(&self, changes: &[SessionChange]) {
        let mut opening = self.lock();
        for change in changes {
            if let SessionChange::Opened { opening: SessionOpening { agent_no, .. }, serial } = *change {
                opening.remove(&(agent_no, serial));
            }
        }
    }
}

/// Writes connects and disconnects to the store.
#[derive(Clone)]
pub struct SessionSink {
    /// Store, metrics and signals.
    pub node: Arc<Node>,
    /// Empty at the start.
    pub opening: Opening,
}

impl Sink for SessionSink {
    type Item = SessionChange;
    /// The result of an opening.
    type Answer = Option<Opened>;

    const NAME: &'static str = "sessions";

    fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    async fn write(&self, changes: &[SessionChange]) -> StoreResult<Vec<Option<Opened>>> {
        self.opening.begin(changes);
        let current = changes.iter().filter(|change| !self.opening.is_overtaken(change));
        let Batch { opened, closed } = Batch::of(&current.copied().collect::<Vec<_>>());
        let openings: Vec<SessionOpening> = opened.values().map(|(opening, _)| *opening).collect();
        let mut answers = BTreeMap::new();
        if !openings.is_empty() {
            let agents: Vec<i64> = opened.keys().copied().collect();
            let moved: HashSet<i64> = self.node.store.session_elsewhere(&agents).await?.into_iter().collect();
            answers = agents.iter().copied().zip(self.node.store.session_open(&openings).await?).collect();
            // The nodes that held these agents may still have half-dead connections.
            let superseded = answers.iter().filter_map(|(agent_no, opened)| match opened {
                Opened::As(epoch) if moved.contains(agent_no) => Some((*agent_no, *epoch)),
                _ => None,
            });
            self.node.signals.sessions_moved_here(superseded);
        }
        if !closed.is_empty() {
            self.node.store.session_close(&closed).await?;
        }
        let answer = |change: &SessionChange| match change {
            SessionChange::Opened { opening, serial } => match opened.get(&opening.agent_no) {
                Some((_, newest)) if newest == serial => answers.get(&opening.agent_no).copied(),
                _ => Some(Opened::Replaced),
            },
            SessionChange::Closed { .. } => None,
        };
        Ok(changes.iter().map(answer).collect())
    }

    async fn written(&self, changes: Vec<SessionChange>, _: &[Verdict<Option<Opened>>]) {
        self.opening.end(&changes);
        crate::fault_point!("sessions.written");
    }
}

/// The changes that remain to be written: only the newest connection of an agent counts.
#[derive(Debug, Default)]
struct Batch {
    opened: BTreeMap<i64, (SessionOpening, u64)>,
    /// (agent, up to which epoch).
    closed: Vec<(i64, i64)>,
}

impl Batch {
    fn of(changes: &[SessionChange]) -> Self {
        let mut batch = Self::default();
        // Agents with closed connections whose epoch is unknown.
        let mut unknown = BTreeSet::new();
        for change in changes {
            match *change {
                SessionChange::Opened { opening, serial } => {
                    // A repeated opening is older than a first one.
                    let rank = |opening: &SessionOpening| opening.after.unwrap_or(i64::MAX);
                    let newest = batch.opened.entry(opening.agent_no).or_insert((opening, serial));
                    if rank(&opening) >= rank(&newest.0) {
                        *newest = (opening, serial);
                    }
                }
                SessionChange::Closed { agent_no, serial, epoch } => {
                    if batch.opened.get(&agent_no).is_some_and(|(_, opened)| *opened == serial) {
                        // The connection was opened and closed within the batch.
                        batch.opened.remove(&agent_no);
                    }
                    match epoch {
                        Some(epoch) => batch.closed.push((agent_no, epoch)),
                        None => drop(unknown.insert(agent_no)),
                    }
                }
            }
        }
        // The rows of connections opened here replace the old ones.
        let gone = unknown.into_iter().filter(|agent_no| !batch.opened.contains_key(agent_no));
        batch.closed.extend(gone.map(|agent_no| (agent_no, i64::MAX)));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(agent_no: i64, serial: u64, after: Option<i64>) -> SessionChange {
        SessionChange::Opened { opening: SessionOpening { agent_no, token: None, after, instance: None }, serial }
    }

    /// (agent, serial) of the openings, and (agent, epoch) of the closings.
    type Left = (Vec<(i64, u64)>, Vec<(i64, i64)>);

    fn left(changes: &[SessionChange]) -> Left {
        let batch = Batch::of(changes);
        (batch.opened.into_iter().map(|(agent, (_, serial))| (agent, serial)).collect(), batch.closed)
    }

    #[test]
    fn a_connect_that_is_tried_again_after_its_disconnect_or_a_newer_connect_is_overtaken() {
        let opening = Opening::default();
        let (first, second) = (opened(1, 5, None), opened(1, 6, None));
        let closed = SessionChange::Closed { agent_no: 1, serial: 6, epoch: None };
        opening.begin(&[first]);
        assert!(!opening.is_overtaken(&first));
        opening.begin(&[second]);
        assert!(opening.is_overtaken(&first) && !opening.is_overtaken(&second));
        opening.begin(&[closed]);
        opening.end(&[closed]);
        assert!(opening.is_overtaken(&second));
        opening.begin(&[opened(1, 7, None), opened(1, 8, Some(3))]);
        assert!(!opening.is_overtaken(&opened(1, 7, None)), "one that is opened once more is older");
        opening.end(&[first, second, opened(1, 7, None), opened(1, 8, Some(3))]);
        // A disconnect of a connect that is already written leaves nothing behind.
        opening.begin(&[closed]);
        assert!(opening.lock().is_empty());
    }

    #[test]
    fn the_newest_connection_of_an_agent_is_written_and_one_that_came_and_went_is_not() {
        let closed = |agent_no, serial, epoch| SessionChange::Closed { agent_no, serial, epoch };
        assert_eq!(left(&[opened(1, 1, None), opened(2, 2, None), opened(1, 3, None)]), (vec![(1, 3), (2, 2)], vec![]));
        assert_eq!(left(&[opened(1, 1, None), opened(1, 2, Some(9))]).0, [(1, 1)], "the second one is older");
        assert_eq!(left(&[opened(1, 1, None), closed(1, 1, None)]), (vec![], vec![(1, i64::MAX)]));
        assert_eq!(left(&[opened(1, 2, None), closed(1, 1, None)]), (vec![(1, 2)], vec![]));
        assert_eq!(left(&[opened(1, 2, None), closed(1, 1, Some(4))]), (vec![(1, 2)], vec![(1, 4)]));
    }
}
