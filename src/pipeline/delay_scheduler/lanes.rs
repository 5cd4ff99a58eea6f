//! The commands in memory, in a lane per transport. Each lane has its own queue and its own credits,
//! so that a slow or dead sender holds up no other transport.

use crate::domain::action::Action;
use crate::domain::delay::{DelayQueue, InsertError, WhenFull};
use crate::domain::time::Timestamp;
use crate::store::Due;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maximum number of chunks of a transport that the router has not answered yet.
const CHUNKS_AT_A_TIME: usize = 4;

/// A command in memory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) action: Arc<Action>,
    pub(super) transport: Arc<str>,
    pub(super) due: Due,
}

/// The result of an insert.
pub(super) enum Inserted {
    /// It is in memory.
    Taken,
    /// It is in memory, and this one went out for it.
    Displaced(Box<Entry>),
    /// There is no room, and all others are due earlier.
    Full(Box<Entry>),
}

struct Lane {
    queue: DelayQueue<(i64, i64), Entry>,
    /// Chunks that the sender has not answered yet.
    chunks: usize,
}

/// See the module.
pub(super) struct Lanes {
    /// Maximum number of commands in one lane.
    capacity: usize,
    by_transport: BTreeMap<Arc<str>, Lane>,
    stopped: Option<Timestamp>,
}

impl Lanes {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, by_transport: BTreeMap::new(), stopped: None }
    }

    /// The number of commands in memory.
    pub(super) fn len(&self) -> usize {
        self.by_transport.values().map(|lane| lane.queue.len()).sum()
    }

    /// How many more commands the fullest lane has room for.
    pub(super) fn room(&self) -> usize {
        self.by_transport.values().map(|lane| lane.queue.room()).min().unwrap_or(self.capacity)
    }

    pub(super) fn insert(&mut self, entry: Entry, at: Timestamp) -> Inserted {
        let (key, priority) = ((entry.due.action_no, entry.due.agent_no), entry.action.priority);
        let (capacity, stopped) = (self.capacity, self.stopped);
        let lane = self.by_transport.entry(entry.transport.clone()).or_insert_with(|| {
            let mut queue = DelayQueue::new(capacity, WhenFull::Displace);
            if let Some(at) = stopped {
                queue.stop(at);
            }
            Lane { queue, chunks: 0 }
        });
        match lane.queue.insert(key, at, priority, entry) {
            Ok(None) | Err(InsertError::Known(_) | InsertError::Stopped(_)) => Inserted::Taken,
            Ok(Some(displaced)) => Inserted::Displaced(Box::new(displaced.value)),
            Err(InsertError::Full(entry)) => Inserted::Full(Box::new(entry)),
        }
    }

    /// Whether a transport's sender is behind: commands are due, and it has answered for none of
    /// its chunks.
    pub(super) fn is_behind(&self, transport: &str, now: Timestamp) -> bool {
        let is_behind =
            |lane: &Lane| lane.chunks >= CHUNKS_AT_A_TIME && lane.queue.next_due().is_some_and(|due| due <= now);
        self.by_transport.get(transport).is_some_and(is_behind)
    }

    /// Whether commands are due that their sender hasn't taken, of any transport.
    pub(super) fn has_backlog(&self, now: Timestamp) -> bool {
        self.by_transport.values().any(|lane| lane.chunks > 0 || lane.queue.next_due().is_some_and(|due| due <= now))
    }

    /// Transports with credits left.
    pub(super) fn with_credits(&self) -> Vec<Arc<str>> {
        let free = self.by_transport.iter().filter(|(_, lane)| lane.chunks < CHUNKS_AT_A_TIME);
        free.map(|(transport, _)| transport.clone()).collect()
    }

    /// Up to `limit` commands of a transport that are due.
    pub(super) fn pop_due(&mut self, transport: &str, now: Timestamp, limit: usize) -> Vec<Entry> {
        let Some(lane) = self.by_transport.get_mut(transport).filter(|lane| lane.chunks < CHUNKS_AT_A_TIME) else {
            return Vec::new();
        };
        lane.queue.pop_due(now, limit).into_iter().map(|entry| entry.value).collect()
    }

    /// A chunk goes out.
    pub(super) fn spend(&mut self, transport: &str) {
        if let Some(lane) = self.by_transport.get_mut(transport) {
            lane.chunks += 1;
        }
    }

    /// A chunk was answered.
    pub(super) fn give_credit(&mut self, transport: &str) {
        if let Some(lane) = self.by_transport.get_mut(transport) {
            lane.chunks = lane.chunks.saturating_sub(1);
        }
    }

    /// Chunks that are not answered yet, of all transports.
    pub(super) fn chunks(&self) -> usize {
        self.by_transport.values().map(|lane| lane.chunks).sum()
    }

    /// When the next command is due, of any transport.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.by_transport.values().filter_map(|lane| lane.queue.next_due()).min()
    }

    /// The same, of transports with credits left.
    pub(super) fn next_to_send(&self) -> Option<Timestamp> {
        let free = self.by_transport.values().filter(|lane| lane.chunks < CHUNKS_AT_A_TIME);
        free.filter_map(|lane| lane.queue.next_due()).min()
    }

    /// Removes the commands for which this is true.
    pub(super) fn cancel_where(&mut self, is_over: impl Fn(&(i64, i64)) -> bool) {
        for lane in self.by_transport.values_mut() {
            lane.queue.cancel_where(|key, _| is_over(key));
        }
    }

    /// Takes no more commands in.
    pub(super) fn stop(&mut self, now: Timestamp) {
        self.stopped = Some(now);
        for lane in self.by_transport.values_mut() {
            lane.queue.stop(now);
        }
    }
}
