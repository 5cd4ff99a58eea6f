//! Stores what agents report again and again: values of keys, and that they are there.
//!
//! Sessions, check-ins and brokers put [`AgentReport`]s. They wait for up to `metadata.flush_interval`,
//! and of the values of one key only the newest is written. A report is answered when its values, or
//! newer ones of the same keys, are durable. Then watchers, here and at other nodes, and live actions
//! whose targets mention the keys hear of it. The actor awaits only the store.
//!
//! While the store writes a batch, the next one is merged. They are written one after the other.
//!
//! While the store is away, batches are kept, and each agent has at most one report here: its session
//! merges what comes meanwhile. If writing takes longer than the flush interval, agents are asked to
//! report less often.
//!
//! Crash: see [`batcher`](crate::runtime::batcher). An agent whose report was in memory gets no answer,
//! and reports again.

use crate::context::Node;
use crate::domain::metadata::{self, AgentReport, MAX_KEYS, Values};
use crate::domain::protocol::RefusedKey;
use crate::domain::time::Timestamp;
use crate::metrics::Metrics;
use crate::runtime::batcher::Verdict;
use crate::runtime::{Batcher, Sink};
use crate::signals::MetadataWritten;
use crate::store::{NewValues, Seen, StoreResult};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Agents whose keys are remembered. With more, all are forgotten, and read again.
const MAX_KNOWN: usize = 1_000_000;
/// A `last_seen` that was written within this time is not written again. The store has the same rule;
/// this keeps its statements short.
const SEEN_AGAIN: Duration = Duration::from_secs(25);
/// The longest factor of the interval.
const MAX_PRESSURE: u32 = 64;

/// The actor.
pub type Metadata = Batcher<MetadataSink>;

/// What the store has of an agent, as far as it is known here.
#[derive(Default)]
struct Known {
    /// Hashes of its keys.
    keys: HashSet<u64>,
    seen: Option<Timestamp>,
    checked_in: Option<Timestamp>,
}

/// See the module.
#[derive(Clone)]
pub struct MetadataSink {
    node: Arc<Node>,
    state: Arc<Mutex<State>>,
    /// Held by the batch that the store writes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    known: HashMap<i64, Known>,
    hasher: RandomState,
    /// What the last write wrote, until it is signalled.
    written: Option<MetadataWritten>,
    /// How many flush intervals a write takes.
    pressure: u32,
}

/// A batch, merged.
struct Merged {
    values: BTreeMap<i64, Arc<Values>>,
    seen: Vec<Seen>,
    /// By the place of the report.
    refused: Vec<Vec<RefusedKey>>,
}

impl MetadataSink {
    /// A sink of this node that knows nothing of the store's content.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, state: Arc::default(), turn: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Its parts don't depend on each other.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the keys of agents that report for the first time.
    async fn look_up(&self, reports: &[AgentReport]) -> StoreResult<()> {
        let unknown: Vec<i64> = {
            let mut state = self.state();
            if state.known.len() > MAX_KNOWN {
                state.known.clear();
            }
            let known = &state.known;
            let new =
                reports.iter().filter(|report| !report.values.is_empty() && !known.contains_key(&report.agent_no));
            new.map(|report| report.agent_no).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        let keys = self.node.store.metadata_keys(&unknown).await?;
        let mut state = self.state();
        let State { known, hasher, .. } = &mut *state;
        for agent_no in &unknown {
            known.entry(*agent_no).or_default();
        }
        for (agent_no, key) in keys {
            known.entry(agent_no).or_default().keys.insert(hasher.hash_one(key));
        }
        Ok(())
    }

    fn merge(&self, reports: &[AgentReport]) -> (Merged, usize) {
        let mut state = self.state();
        let State { known, hasher, .. } = &mut *state;
        let mut merged =
            Merged { values: BTreeMap::new(), seen: Vec::new(), refused: Vec::with_capacity(reports.len()) };
        let mut seen: HashMap<i64, Seen> = HashMap::new();
        let mut coalesced = 0;
        for report in reports {
            let of_agent = known.entry(report.agent_no).or_default();
            let (mut values, mut refused) = (report.values.clone(), Vec::new());
            for key in report.values.keys() {
                let hash = hasher.hash_one(key);
                if of_agent.keys.contains(&hash) {
                    continue;
                }
                if of_agent.keys.len() < MAX_KEYS {
                    of_agent.keys.insert(hash);
                    continue;
                }
                refused.push(RefusedKey { key: key.clone(), reason: metadata::too_many_keys() });
                Arc::make_mut(&mut values).remove(key);
            }
            merged.refused.push(refused);
            if !values.is_empty() {
                coalesced += put(&mut merged.values, report.agent_no, values);
            }
            let entry = Seen { agent_no: report.agent_no, at: report.at, checked_in: report.checked_in };
            let latest = seen.entry(report.agent_no).or_insert(entry);
            (latest.at, latest.checked_in) = (latest.at.max(report.at), latest.checked_in || report.checked_in);
        }
        let is_new =
            |at: Timestamp, before: Option<Timestamp>| before.is_none_or(|before| at.since(before) >= SEEN_AGAIN);
        merged.seen = seen
            .into_values()
            .filter(|seen| {
                let known = known.get(&seen.agent_no);
                is_new(seen.at, known.and_then(|known| known.seen))
                    || (seen.checked_in && is_new(seen.at, known.and_then(|known| known.checked_in)))
            })
            .collect();
        merged.seen.sort_unstable_by_key(|seen| seen.agent_no);
        (merged, coalesced)
    }

    /// A write is done that took so long.
    fn done(&self, seen: &[Seen], written: MetadataWritten, took: Duration) {
        let mut state = self.state();
        for Seen { agent_no, at, checked_in } in seen {
            let known = state.known.entry(*agent_no).or_default();
            known.seen = Some(*at);
            if *checked_in {
                known.checked_in = Some(*at);
            }
        }
        let interval = self.node.config.metadata.flush_interval.0;
        state.pressure = pressure_after(state.pressure, took, interval);
        let asked = metadata::interval(self.node.presence.len(), state.pressure);
        state.written = Some(written);
        drop(state);
        self.node.metrics.metadata().set_interval(asked);
        self.node.pace.set(asked);
    }
}

/// Adds values of an agent, of which there mostly are none yet. How many were there twice.
fn put(merged: &mut BTreeMap<i64, Arc<Values>>, agent_no: i64, values: Arc<Values>) -> usize {
    match merged.entry(agent_no) {
        Entry::Vacant(place) => {
            place.insert(values);
            0
        }
        Entry::Occupied(place) => {
            let present = Arc::make_mut(place.into_mut());
            let values = values.iter().map(|(key, value)| metadata::merge(present, key.clone(), value.clone()));
            values.filter(|replaced| *replaced).count()
        }
    }
}

/// The factor of the interval after a write that took so long: it doubles while writes take longer than the flush
/// interval, and is halved when they take less than a quarter of it.
fn pressure_after(pressure: u32, took: Duration, interval: Duration) -> u32 {
    let pressure = pressure.max(1);
    match took {
        took if took > interval => (pressure * 2).min(MAX_PRESSURE),
        took if took * 4 < interval => (pressure / 2).max(1),
        _ => pressure,
    }
}

impl Sink for MetadataSink {
    type Item = AgentReport;
    type Answer = Vec<RefusedKey>;

    const NAME: &'static str = "metadata";
    const AT_ONCE: usize = 2;

    fn weight(report: &AgentReport) -> usize {
        report.values.len().max(1)
    }

    fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    async fn write(&self, reports: &[AgentReport]) -> StoreResult<Vec<Vec<RefusedKey>>> {
        self.look_up(reports).await?;
        let began = Instant::now();
        let (Merged { values, seen, refused }, coalesced) = self.merge(reports);
        let keys = self.node.signals.metadata_watch().live_keys();
        let mut written = MetadataWritten::default();
        let mut number = 0;
        for (agent_no, values) in &values {
            number += values.len();
            written.agents.push(*agent_no);
            let actions: BTreeSet<i64> = values.keys().filter_map(|key| keys.get(key)).flatten().copied().collect();
            for action_no in actions {
                written.live.entry(action_no).or_default().push(*agent_no);
            }
        }
        let values: Vec<_> = values.into_iter().map(|(agent_no, values)| NewValues { agent_no, values }).collect();
        let prepared = began.elapsed();
        let turn = self.turn.lock().await;
        let began = Instant::now();
        if !values.is_empty() || !seen.is_empty() {
            written.is_watched_elsewhere = self.node.store.metadata_write(values, seen.clone()).await?;
        }
        drop(turn);
        let metrics = self.node.metrics.metadata();
        metrics.wrote(number, coalesced, refused.iter().map(Vec::len).sum());
        self.done(&seen, written, prepared + began.elapsed());
        Ok(refused)
    }

    async fn written(&self, _: Vec<AgentReport>, _: &[Verdict<Vec<RefusedKey>>]) {
        // Called right after the write, so this is of the same batch.
        crate::fault_point!("metadata.written");
        let written = self.state().written.take();
        if let Some(written) = written {
            self.node.signals.metadata_written(written);
        }
    }
}
