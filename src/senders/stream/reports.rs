//! What an agent reports of itself on its connection: metadata, and that it is there.
//!
//! One report at a time is with the actor of metadata. What comes meanwhile is merged into the next
//! one, of each key the newest value. So an agent has a bounded place in memory however slow the store
//! is, and its results never wait for its metadata.

use super::records::wait;
use crate::context::Node;
use crate::domain::metadata::{self, AgentClock, AgentReport, INTERVAL_MIN, Values};
use crate::domain::protocol::{MetadataItem, MetadataStored, RefusedKey};
use crate::domain::time::{Span, Timestamp};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// Maximum number of frames whose values wait for an answer. At this number the agent isn't read.
const FRAMES: usize = 1024;
/// How often the store hears that a connected agent is there.
const SEEN_EVERY: Duration = Duration::from_secs(70);
/// How often a report is put while the actor of metadata restarts.
const TRIES: u32 = 6;

/// Values on their way to the actor.
pub(super) struct Waiting {
    values: Values,
    /// The frames that they are of, each with what is refused of it already.
    frames: Vec<(i64, Vec<RefusedKey>)>,
    /// The memory that they take.
    permit: OwnedSemaphorePermit,
    /// When the last of them came.
    at: Timestamp,
}

/// See the module.
pub(super) struct Reports {
    agent_no: i64,
    clock: AgentClock,
    waiting: Option<Waiting>,
    is_flying: bool,
    frames: usize,
    told_at: Option<Instant>,
    interval: Duration,
}

impl Reports {
    /// Of an agent whose clock is so, and which was asked to report at this interval.
    pub(super) fn new(agent_no: i64, clock: AgentClock, interval: Duration) -> Self {
        Self { agent_no, clock, waiting: None, is_flying: false, frames: 0, told_at: None, interval }
    }

    /// Whether the agent must not be read for now.
    pub(super) fn is_full(&self) -> bool {
        self.frames >= FRAMES
    }

    /// Takes a frame. Without memory for it, its values stay with the agent.
    pub(super) fn take(
        &mut self,
        node: &Node,
        seq: i64,
        items: Vec<MetadataItem>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let Some(permit) = permit else { return node.metrics.metadata().deferred() };
        let at = node.store.now();
        let (values, refused) = metadata::read(items, self.clock, at);
        node.metrics.metadata().refused(refused.len());
        self.frames += 1;
        match &mut self.waiting {
            None => self.waiting = Some(Waiting { values, frames: vec![(seq, refused)], permit, at }),
            Some(waiting) => {
                let merge = |(key, value)| metadata::merge(&mut waiting.values, key, value);
                let coalesced = values.into_iter().map(merge).filter(|replaced| *replaced).count();
                node.metrics.metadata().coalesced(coalesced);
                waiting.frames.push((seq, refused));
                waiting.permit.merge(permit);
                waiting.at = at;
            }
        }
    }

    /// The next report, if none is with the actor.
    pub(super) fn next(&mut self) -> Option<Waiting> {
        if self.is_flying {
            return None;
        }
        let next = self.waiting.take()?;
        self.is_flying = true;
        self.told_at = Some(Instant::now());
        Some(next)
    }

    /// A report is stored, except for these keys. Returns the answers to its frames.
    pub(super) fn stored(&mut self, done: Reported, interval: Duration) -> Vec<MetadataStored> {
        self.is_flying = false;
        self.frames = self.frames.saturating_sub(done.frames.len());
        let Some(over) = done.refused else {
            // The actor is gone. The agent reports again.
            return Vec::new();
        };
        let metadata_interval = (interval != self.interval).then_some(Span(interval));
        self.interval = interval;
        let answer = |(seq, mut rejected): (i64, Vec<RefusedKey>)| {
            rejected.extend(over.iter().cloned());
            MetadataStored { seq, rejected, metadata_interval }
        };
        done.frames.into_iter().map(answer).collect()
    }

    /// Tells the store now and then that the agent is there.
    pub(super) fn seen(&mut self, node: &Node) {
        if self.told_at.is_some_and(|told| told.elapsed() < SEEN_EVERY) {
            return;
        }
        self.told_at = Some(Instant::now());
        node.seen(self.agent_no, false);
    }
}

/// What has become of a report.
pub(super) struct Reported {
    frames: Vec<(i64, Vec<RefusedKey>)>,
    /// The keys that the store has no room for. `None` if nothing could be stored.
    refused: Option<Vec<RefusedKey>>,
}

/// Has a report stored. Tries again while the actor restarts.
pub(super) async fn report(node: &Node, agent_no: i64, waiting: Waiting) -> Reported {
    let Waiting { values, frames, permit: _permit, at } = waiting;
    if values.is_empty() {
        return Reported { frames, refused: Some(Vec::new()) };
    }
    let report = AgentReport { agent_no, values: values.into(), at, checked_in: false };
    let refused = put_patiently(node, report).await;
    Reported { frames, refused }
}

/// Stores what an agent reports that has no connection here, and returns the answer to it. `None` if nothing could
/// be stored.
pub(crate) async fn store_metadata(
    node: &Node,
    agent_no: i64,
    seq: i64,
    items: Vec<MetadataItem>,
) -> Option<MetadataStored> {
    let at = node.store.now();
    let (values, mut rejected) = metadata::read(items, AgentClock::default(), at);
    node.metrics.metadata().refused(rejected.len());
    rejected.extend(put_patiently(node, AgentReport { agent_no, values: values.into(), at, checked_in: true }).await?);
    let interval = node.pace.interval();
    let metadata_interval = (interval > INTERVAL_MIN).then_some(Span(interval));
    Some(MetadataStored { seq, rejected, metadata_interval })
}

/// Puts a report. Returns the keys that are refused, or `None` if nothing could be stored.
pub(crate) async fn put_patiently(node: &Node, report: AgentReport) -> Option<Vec<RefusedKey>> {
    for attempt in 0..TRIES {
        if let Ok(answers) = node.reporter.put(vec![report.clone()]).await {
            let refuse_all = |reason: String| {
                report.values.keys().map(|key| RefusedKey { key: key.clone(), reason: reason.clone() }).collect()
            };
            let answer = answers.into_iter().next()?;
            return Some(answer.unwrap_or_else(|refused| refuse_all(refused.to_string())));
        }
        tokio::time::sleep(wait(attempt)).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{REFUSED, TestNode};
    use serde_json::value::RawValue;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn item(key: &str, value: u32) -> MetadataItem {
        let value = Some(RawValue::from_string(value.to_string()).expect("a number"));
        MetadataItem { key: key.into(), value, error: None, collected_at: None }
    }

    fn permit(budget: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        budget.clone().try_acquire_many_owned(1).ok()
    }

    async fn stored(node: &TestNode) -> Vec<(String, String)> {
        let of = node.store.metadata_of(&["agent-00000".to_owned()], None).await.unwrap();
        let values = of.into_iter().flat_map(|agent| agent.values);
        values.map(|(key, view)| (key, view.value.expect("a value").get().to_owned())).collect()
    }

    #[actix_rt::test]
    async fn what_comes_while_a_report_is_written_is_merged_into_the_next_and_each_frame_is_answered() {
        let node = TestNode::new().await;
        let agent_no = node.agents(1).await[0];
        let budget = Arc::new(Semaphore::new(3));
        let mut reports = Reports::new(agent_no, AgentClock::default(), Duration::from_secs(10));
        reports.take(&node.node, 1, vec![item("a", 1), item("", 1)], permit(&budget));
        let first = reports.next().expect("a report");
        reports.take(&node.node, 2, vec![item("a", 2), item("b", 2)], permit(&budget));
        reports.take(&node.node, 3, vec![item("a", 3)], permit(&budget));
        reports.take(&node.node, 4, vec![item("a", 4)], permit(&budget));
        assert!(reports.next().is_none(), "one at a time");
        let interval = Duration::from_secs(10);
        let answers = reports.stored(report(&node.node, agent_no, first).await, interval);
        assert_eq!((answers[0].seq, answers[0].rejected.len(), answers.len()), (1, 1, 1));
        assert_eq!(stored(&node).await, [("a".to_owned(), "1".to_owned())]);
        let second = reports.next().expect("a report");
        let answers = reports.stored(report(&node.node, agent_no, second).await, 2 * interval);
        let told = Some(Span(2 * interval));
        assert_eq!(answers.iter().map(|a| (a.seq, a.metadata_interval)).collect::<Vec<_>>(), [(2, told), (3, told)]);
        assert_eq!(stored(&node).await, [("a", "3"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!((reports.frames, budget.available_permits()), (0, 3), "there was no room for the fourth");
    }

    #[actix_rt::test]
    async fn keys_beyond_the_limit_are_refused_whatever_was_reported_before() {
        let node = TestNode::new().await;
        let agent_no = node.agents(1).await[0];
        let put = async |from: usize, to: usize| {
            let items = (from..to).map(|n| item(&format!("k{n}"), 1)).collect();
            let (values, _) = metadata::read(items, AgentClock::default(), node.store.now());
            let report = AgentReport { agent_no, values: values.into(), at: node.store.now(), checked_in: false };
            put_patiently(&node.node, report).await.expect("it is there").len()
        };
        assert_eq!(put(0, 200).await, 0);
        assert_eq!(put(150, 260).await, 4);
        assert_eq!(put(0, 256).await, 0, "known keys are taken");
    }

    #[actix_rt::test]
    async fn a_report_that_the_store_refuses_is_answered_with_its_error() {
        let node = TestNode::new().await;
        let agent_no = node.agents(1).await[0];
        node.break_inserts("agent_metadata", "TRUE", REFUSED);
        let (values, _) = metadata::read(vec![item("a", 1)], AgentClock::default(), node.store.now());
        let report = AgentReport { agent_no, values: values.into(), at: node.store.now(), checked_in: false };
        let refused = put_patiently(&node.node, report).await.expect("it is answered");
        assert!(refused[0].key == "a" && refused[0].reason.contains(REFUSED), "{refused:?}");
    }
}
