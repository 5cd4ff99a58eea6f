//! Watching metadata: who matches a target, and what they report from now on.
//!
//! All watchers of one target at this node share a [`Feed`]. It reads what has changed once, whoever
//! watches, and keeps the last events for a while. A watcher that falls behind by more than that reads
//! the newest state from the store instead: it never has a queue of its own.
//!
//! A feed reads when something was written, here or at another node. It polls as well, since a
//! notification may be lost.

use crate::context::Node;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::signals::{MetadataNews, Reported};
use crate::store::{AgentMetadata, MetadataView, StoreResult};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use utoipa::ToSchema;

/// Agents per read of the store.
pub const PAGE: usize = 500;
/// Maximum size of the events that a feed keeps.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// How often a feed reads in any case, while nodes notify each other and while they don't.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
const POLL_UNNOTIFIED: Duration = Duration::from_secs(5);
/// The shortest time between two reads of a feed.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The wait after a read that failed.
const RETRY: Duration = Duration::from_secs(1);
/// A value may be visible this much later than the time at which it says that it was written: as long as a
/// transaction takes at most.
const LATE: Duration = Duration::from_secs(60);
/// Values of which a feed remembers that it told them, so that it doesn't tell them again while they may still
/// be late. Beyond it, some are told twice.
const REMEMBERED: usize = 200_000;

/// What an event says: values of one agent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MetadataEvent {
    /// The agent's name.
    pub agent: String,
    /// Its values.
    pub items: Vec<EventItem>,
}

/// A value in an event.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EventItem {
    /// The key.
    pub key: String,
    /// The value.
    #[serde(flatten)]
    pub value: MetadataView,
}

impl From<AgentMetadata> for MetadataEvent {
    fn from(agent: AgentMetadata) -> Self {
        let items = agent.values.into_iter().map(|(key, value)| EventItem { key, value });
        Self { agent: agent.name, items: items.collect() }
    }
}

/// An event as it is sent, and the time up to which the feed had read when it made it.
#[derive(Clone, Debug)]
pub struct Told {
    /// The event as JSON.
    pub json: Arc<str>,
    /// Everything that was written before this time, and matched, was told.
    pub through: Timestamp,
}

#[derive(Default)]
struct Kept {
    /// The number of the first event.
    first: u64,
    events: VecDeque<Told>,
    bytes: usize,
}

/// See the module.
pub struct Feed {
    target: Target,
    kept: Mutex<Kept>,
    /// The number of the next event.
    news: watch::Sender<u64>,
    /// Ends its reader.
    _reader: DropGuard,
}

impl Feed {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // An event is added in one step.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The number of the next event, to begin with.
    pub fn end(&self) -> u64 {
        let kept = self.kept();
        kept.first + kept.events.len() as u64
    }

    /// Changes when there are events.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The events from this number on, as far as they have at most `bytes`. `None` if they are not kept any more.
    pub fn from(&self, number: u64, bytes: usize) -> Option<Vec<Told>> {
        let kept = self.kept();
        let skip = usize::try_from(number.checked_sub(kept.first)?).ok()?;
        let mut size = 0;
        let fits = |told: &&Told| {
            let fits = size < bytes;
            size += told.json.len();
            fits
        };
        Some(kept.events.iter().skip(skip).take_while(fits).cloned().collect())
    }

    fn tell(&self, events: Vec<Told>) {
        if events.is_empty() {
            return;
        }
        let mut kept = self.kept();
        for told in events {
            kept.bytes += told.json.len();
            kept.events.push_back(told);
            while kept.bytes > KEPT_BYTES {
                let Some(oldest) = kept.events.pop_front() else { break };
                kept.bytes -= oldest.json.len();
                kept.first += 1;
            }
        }
        let end = kept.first + kept.events.len() as u64;
        drop(kept);
        self.news.send_replace(end);
    }
}

/// The feeds of a node, by target. Clones share them.
#[derive(Clone, Default)]
pub struct Feeds(Arc<Mutex<HashMap<String, Weak<Feed>>>>);

impl Feeds {
    /// The feed of a target, which is started if there is none.
    pub fn of(&self, node: &Arc<Node>, target: Target) -> Arc<Feed> {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = target.to_string();
        if let Some(feed) = feeds.get(&name).and_then(Weak::upgrade) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let ended = CancellationToken::new();
        let (kept, news, _reader) = (Mutex::default(), watch::Sender::new(0), ended.clone().drop_guard());
        let feed = Arc::new(Feed { target, kept, news, _reader });
        feeds.insert(name, Arc::downgrade(&feed));
        let news = node.signals.metadata_watch().subscribe();
        node.signals.metadata_watched();
        let reader = Reader::new(node.clone(), Arc::downgrade(&feed), news);
        actix_rt::spawn(async move { ended.run_until_cancelled(reader.run()).await });
        feed
    }
}

/// What reads for a feed, for as long as somebody holds it.
struct Reader {
    node: Arc<Node>,
    feed: Weak<Feed>,
    news: MetadataNews,
    /// What was written before this time was read.
    through: Timestamp,
    /// Agents still to be read.
    pending: Reported,
    /// The times of the values that were told and may come again.
    told: HashMap<(i64, u64), Timestamp>,
    hasher: RandomState,
}

impl Reader {
    fn new(node: Arc<Node>, feed: Weak<Feed>, news: MetadataNews) -> Self {
        let through = node.store.now();
        let (told, hasher) = (HashMap::new(), RandomState::new());
        Self { node, feed, news, through, pending: Reported::default(), told, hasher }
    }

    async fn run(mut self) {
        let poll = if self.node.config.node.notify { POLL_INTERVAL } else { POLL_UNNOTIFIED };
        loop {
            if tokio::time::timeout(poll, self.news.changed()).await.is_err() {
                self.pending = Reported::Many;
            }
            let Some(feed) = self.feed.upgrade() else { return };
            match self.news.take() {
                Reported::Many => self.pending = Reported::Many,
                Reported::Agents(agents) => {
                    let agents: Vec<i64> = agents.into_iter().collect();
                    self.pending.add(&agents, crate::signals::MANY);
                }
            }
            let wait = match self.read(&feed).await {
                Ok(()) => MIN_INTERVAL,
                Err(error) => {
                    log::warn!(error:% = error.chain(); "those who watch metadata wait for the store");
                    self.pending = Reported::Many;
                    RETRY
                }
            };
            drop(feed);
            tokio::time::sleep(wait).await;
        }
    }

    /// Reads what is pending, and tells it.
    async fn read(&mut self, feed: &Feed) -> StoreResult<()> {
        let (now, since) = (self.node.store.now(), self.through.minus(LATE));
        let among: Option<Vec<i64>> = match &self.pending {
            Reported::Agents(agents) if agents.is_empty() => return Ok(()),
            Reported::Agents(agents) => Some(agents.iter().copied().collect()),
            Reported::Many => None,
        };
        if self.told.len() > REMEMBERED {
            self.told.clear();
        }
        let mut after = 0;
        loop {
            let page = self.node.store.metadata_since(&feed.target, among.as_deref(), since, after, PAGE).await?;
            let events = page.agents.into_iter().filter_map(|agent| self.news_of(agent));
            let told = events.map(|event| Told { json: json(&event), through: now });
            feed.tell(told.collect());
            match page.through {
                Some(through) => after = through,
                None => break,
            }
        }
        let late = now.minus(LATE + LATE);
        self.told.retain(|_, at| *at > late);
        (self.pending, self.through) = (Reported::default(), now);
        Ok(())
    }

    /// What of these values was not told yet.
    fn news_of(&mut self, mut agent: AgentMetadata) -> Option<MetadataEvent> {
        let Self { told, hasher, .. } = self;
        let agent_no = agent.agent_no;
        agent.values = std::mem::take(&mut agent.values)
            .into_iter()
            .filter(|(key, view)| {
                let before = told.insert((agent_no, hasher.hash_one(key)), view.collected_at);
                before.is_none_or(|before| before < view.collected_at)
            })
            .collect::<BTreeMap<_, _>>();
        (!agent.values.is_empty()).then(|| agent.into())
    }
}

/// An event as JSON.
pub fn json(event: &MetadataEvent) -> Arc<str> {
    serde_json::to_string(event).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::metadata::Value;
    use crate::store::NewValues;
    use crate::testing::{TestNode, until};

    async fn write(node: &TestNode, agent_no: i64, key: &str, value: &str, ago: u64) {
        let collected_at = node.store.now().minus(Duration::from_secs(ago));
        let value = Value { value: Some(value.into()), error: None, collected_at, clamped: false };
        let values = Arc::new([(key.to_owned(), value)].into());
        node.store.metadata_write(vec![NewValues { agent_no, values }], vec![]).await.unwrap();
    }

    fn told(feed: &Feed, from: u64) -> Vec<String> {
        feed.from(from, usize::MAX).expect("kept").iter().map(|told| told.json.to_string()).collect()
    }

    #[actix_rt::test]
    async fn a_feed_tells_what_agents_that_match_report_and_each_value_once() {
        let node = TestNode::new().await;
        let agents = node.agents(3).await;
        let feeds = Feeds::default();
        let target = || Target::parse("name <> 'agent-00002'").expect("a target");
        let feed = feeds.of(&node.node, target());
        assert!(Arc::ptr_eq(&feed, &feeds.of(&node.node, target())), "the same target has the same feed");
        assert!(node.has_heard("watching: wake").await);
        let mut reader = Reader::new(node.node.clone(), Weak::new(), node.node.signals.metadata_watch().subscribe());
        for agent_no in &agents {
            write(&node, *agent_no, "load", "1", 20).await;
        }
        reader.pending = Reported::Agents([agents[1], agents[2]].into());
        reader.read(&feed).await.unwrap();
        let events = told(&feed, 0);
        assert!(
            events.len() == 1 && events[0].starts_with(r#"{"agent":"agent-00001","items":[{"key":"load","value":1,"#)
        );
        reader.pending = Reported::Many;
        reader.read(&feed).await.unwrap();
        assert!(told(&feed, 1).len() == 1 && told(&feed, 1)[0].contains("agent-00000"), "the other one alone is new");
        write(&node, agents[1], "load", "2", 10).await;
        reader.pending = Reported::Many;
        reader.read(&feed).await.unwrap();
        assert!(told(&feed, 2)[0].contains(r#""value":2"#));
        assert!(feed.from(feed.end(), 1).expect("kept").is_empty());
    }

    #[actix_rt::test]
    async fn a_feed_keeps_a_bounded_number_of_events() {
        let (kept, news) = (Mutex::default(), watch::Sender::new(0));
        let feed = Feed { target: Target::All, kept, news, _reader: CancellationToken::new().drop_guard() };
        let long: Arc<str> = "x".repeat(KEPT_BYTES / 10).into();
        let told = || Told { json: long.clone(), through: Timestamp(0) };
        feed.tell((0..25).map(|_| told()).collect());
        assert!(feed.from(14, usize::MAX).is_none(), "it is not kept");
        assert_eq!((feed.from(15, usize::MAX).expect("kept").len(), feed.end()), (10, 25));
        assert_eq!(feed.from(15, long.len() + 1).expect("kept").len(), 2);
        assert_eq!(*feed.subscribe().borrow(), 25);
    }

    #[actix_rt::test]
    async fn a_feed_that_nobody_holds_ends() {
        let node = TestNode::new().await;
        let feeds = Feeds::default();
        let feed = feeds.of(&node.node, Target::All);
        let watch = node.node.signals.metadata_watch();
        assert_eq!(watch.watchers(), 1);
        drop(feed);
        until("nobody watches", async || watch.watchers() == 0).await;
    }
}
