//! Writes which agents are connected here: the connects and disconnects of many sessions in one transaction.

use crate::context::Node;
use crate::metrics::Metrics;
use crate::runtime::batcher::Verdict;
use crate::runtime::{Batcher, Sink, Writer};
use crate::store::{Opened, SessionOpening, StoreResult};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The actor.
pub type Sessions = Batcher<SessionSink>;

/// The way into it.
pub type SessionWriter = Writer<SessionChange, Option<Opened>>;

/// A connection came or went.
#[derive(Clone, Copy, Debug)]
pub enum SessionChange {
    /// It is here.
    Opened {
        /// What the store needs to know.
        opening: SessionOpening,
        /// A later connection to this process has a higher one.
        serial: u64,
    },
    /// It is gone.
    Closed {
        /// The agent.
        agent_no: i64,
        /// The connection that it was.
        serial: u64,
        /// The same, if the store has said so; without it, all that this process has had of the agent.
        epoch: Option<i64>,
    },
}

/// Connects, as (agent, serial), that are not written yet, and whether a disconnect or a newer connect has overtaken them.
///
/// A batch that failed is set aside while others are written: a connect that is tried again must not bring back a connection
/// that has gone, nor take the place of a newer one.
#[derive(Clone, Debug, Default)]
pub struct Opening(Arc<Mutex<BTreeMap<(i64, u64), bool>>>);

impl Opening {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(i64, u64), bool>> {
        // Whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are about to be written.
    fn begin(&self, changes: &[SessionChange]) {
        let mut opening = self.lock();
        for change in changes {
            match *change {
                SessionChange::Opened { opening: SessionOpening { agent_no, after, .. }, serial } => {
                    // One that is opened once more is older than one that is opened for the first time.
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

    /// These are written, or never will be.
    fn end(&self, changes: &[SessionChange]) {
        let mut opening = self.lock();
        for change in changes {
            if let SessionChange::Opened { opening: SessionOpening { agent_no, .. }, serial } = *change {
                opening.remove(&(agent_no, serial));
            }
        }
    }
}

/// Connects and disconnects, on their way into the store.
#[derive(Clone)]
pub struct SessionSink {
    /// Where they are written, counted and signalled.
    pub node: Arc<Node>,
    /// Empty at first.
    pub opening: Opening,
}

impl Sink for SessionSink {
    type Item = SessionChange;
    /// What became of one that was opened.
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
            // Where they were, their connections may half live on.
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

/// What is left to be written of many changes: the newest connection of an agent is all that counts.
#[derive(Debug, Default)]
struct Batch {
    opened: BTreeMap<i64, (SessionOpening, u64)>,
    /// (agent, up to which epoch).
    closed: Vec<(i64, i64)>,
}

impl Batch {
    fn of(changes: &[SessionChange]) -> Self {
        let mut batch = Self::default();
        // Those without an epoch.
        let mut unknown = BTreeSet::new();
        for change in changes {
            match *change {
                SessionChange::Opened { opening, serial } => {
                    // One that is opened once more is older than one that is opened for the first time.
                    let rank = |opening: &SessionOpening| opening.after.unwrap_or(i64::MAX);
                    let newest = batch.opened.entry(opening.agent_no).or_insert((opening, serial));
                    if rank(&opening) >= rank(&newest.0) {
                        *newest = (opening, serial);
                    }
                }
                SessionChange::Closed { agent_no, serial, epoch } => {
                    if batch.opened.get(&agent_no).is_some_and(|(_, opened)| *opened == serial) {
                        // It came and went.
                        batch.opened.remove(&agent_no);
                    }
                    match epoch {
                        Some(epoch) => batch.closed.push((agent_no, epoch)),
                        None => drop(unknown.insert(agent_no)),
                    }
                }
            }
        }
        // What is written anew takes their place.
        let gone = unknown.into_iter().filter(|agent_no| !batch.opened.contains_key(agent_no));
        batch.closed.extend(gone.map(|agent_no| (agent_no, i64::MAX)));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(agent_no: i64, serial: u64, after: Option<i64>) -> SessionChange {
        SessionChange::Opened { opening: SessionOpening { agent_no, token: None, after }, serial }
    }

    /// (agent, serial) of those to be opened, and (agent, epoch) of those to be closed.
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
        // A disconnect whose connect is written leaves nothing behind.
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
