//! Who is told of metadata: watchers at this node, and live actions whose targets mention a key.
//!
//! A flush is told as the list of agents whose values were written. The last lists are kept, so that a
//! watcher that is busy misses none; one that is too late for that hears that anything may have changed.
//! Nothing is kept while nobody watches.

use super::messages::MetadataWritten;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::watch;

/// Lists that are kept. More than a flush a second for as long as a watcher needs to read a large fleet.
const LISTS: usize = 64;
/// Agents that a watcher is told of individually.
pub const MANY: usize = 20_000;

/// For each key, the live actions whose targets mention it.
pub type LiveKeys = HashMap<String, BTreeSet<i64>>;

/// Agents whose values were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// These.
    Agents(BTreeSet<i64>),
    /// Any of them.
    Many,
}

impl Default for Reported {
    fn default() -> Self {
        Self::Agents(BTreeSet::new())
    }
}

impl Reported {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Agents(agents) if agents.is_empty())
    }

    /// Adds agents. More than `most` become many.
    pub fn add(&mut self, agents: &[i64], most: usize) {
        if let Self::Agents(known) = self {
            if known.len() + agents.len() > most {
                *self = Self::Many;
            } else {
                known.extend(agents.iter().copied());
            }
        }
    }
}

#[derive(Debug, Default)]
struct Log {
    /// The number of the first list.
    first: u64,
    /// `None`: many.
    lists: VecDeque<Option<Arc<[i64]>>>,
}

/// See the module. Clones share everything.
#[derive(Clone, Debug)]
pub struct MetadataWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    news: watch::Sender<u64>,
    watchers: AtomicUsize,
    /// Whether the other nodes know that somebody watches here.
    told: watch::Sender<bool>,
    live_keys: RwLock<Arc<LiveKeys>>,
}

impl Default for MetadataWatch {
    fn default() -> Self {
        Self(Arc::new(Shared {
            log: Mutex::default(),
            news: watch::Sender::new(0),
            watchers: AtomicUsize::new(0),
            told: watch::Sender::new(false),
            live_keys: RwLock::default(),
        }))
    }
}

impl MetadataWatch {
    fn log(&self) -> MutexGuard<'_, Log> {
        // A list is added in one step.
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches from now on.
    pub fn subscribe(&self) -> MetadataNews {
        self.0.watchers.fetch_add(1, Ordering::SeqCst);
        let log = self.log();
        let next = log.first + log.lists.len() as u64;
        MetadataNews { watch: self.clone(), news: self.0.news.subscribe(), next }
    }

    /// The number of watchers.
    pub fn watchers(&self) -> usize {
        self.0.watchers.load(Ordering::SeqCst)
    }

    /// Whether the other nodes know that somebody watches here.
    pub fn told(&self) -> watch::Receiver<bool> {
        self.0.told.subscribe()
    }

    /// The other nodes know whether somebody watches here.
    pub fn set_told(&self, watches: bool) {
        self.0.told.send_replace(watches);
    }

    /// The keys that targets of live actions mention.
    pub fn live_keys(&self) -> Arc<LiveKeys> {
        self.0.live_keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets [`live_keys`](Self::live_keys).
    pub fn set_live_keys(&self, keys: LiveKeys) {
        *self.0.live_keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// Values of these agents were written here.
    pub(super) fn wrote(&self, written: &MetadataWritten) {
        self.add(|| Some(written.agents.as_slice().into()));
    }

    /// Values of these agents were written at another node; `None` if there are many.
    pub(super) fn heard(&self, agents: Option<Arc<[i64]>>) {
        self.add(|| agents);
    }

    fn add(&self, list: impl FnOnce() -> Option<Arc<[i64]>>) {
        if self.watchers() == 0 {
            return;
        }
        let mut log = self.log();
        log.lists.push_back(list());
        if log.lists.len() > LISTS {
            log.lists.pop_front();
            log.first += 1;
        }
        drop(log);
        self.0.news.send_modify(|number| *number = number.wrapping_add(1));
    }
}

/// A watcher. It counts as one until it is dropped.
#[derive(Debug)]
pub struct MetadataNews {
    watch: MetadataWatch,
    news: watch::Receiver<u64>,
    /// The number of the next list.
    next: u64,
}

impl MetadataNews {
    /// Waits until there may be something to [take](Self::take).
    pub async fn changed(&mut self) {
        // The sender lives as long as this.
        self.news.changed().await.ok();
    }

    /// The agents with new values since the last call.
    pub fn take(&mut self) -> Reported {
        let log = self.watch.log();
        let end = log.first + log.lists.len() as u64;
        let missed = self.next < log.first;
        let skip = usize::try_from(self.next.saturating_sub(log.first)).unwrap_or(usize::MAX);
        let lists: Vec<_> = log.lists.iter().skip(skip).cloned().collect();
        drop(log);
        self.next = end;
        let mut reported = if missed { Reported::Many } else { Reported::default() };
        for list in lists {
            match list {
                Some(agents) => reported.add(&agents, MANY),
                None => reported = Reported::Many,
            }
        }
        reported
    }
}

impl Drop for MetadataNews {
    fn drop(&mut self) {
        if self.watch.0.watchers.fetch_sub(1, Ordering::SeqCst) == 1 {
            let mut log = self.watch.log();
            log.first += log.lists.len() as u64;
            log.lists.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(watch: &MetadataWatch, agents: &[i64]) {
        watch.wrote(&MetadataWritten { agents: agents.to_vec(), ..MetadataWritten::default() });
    }

    #[test]
    fn each_watcher_hears_what_was_written_since_it_looked() {
        let watch = MetadataWatch::default();
        wrote(&watch, &[1]);
        let mut one = watch.subscribe();
        assert_eq!(one.take(), Reported::Agents(BTreeSet::new()), "what was before is no news");
        wrote(&watch, &[3, 2]);
        let mut two = watch.subscribe();
        watch.heard(Some([4].into()));
        assert_eq!(one.take(), Reported::Agents([2, 3, 4].into()));
        assert_eq!(two.take(), Reported::Agents([4].into()));
        assert_eq!(one.take(), Reported::Agents(BTreeSet::new()));
        watch.heard(None);
        assert_eq!(one.take(), Reported::Many);
    }

    #[test]
    fn one_that_is_late_hears_that_anything_may_have_changed() {
        let watch = MetadataWatch::default();
        let mut news = watch.subscribe();
        (0..=LISTS as i64).for_each(|no| wrote(&watch, &[no]));
        assert_eq!(news.take(), Reported::Many);
        let many: Vec<i64> = (0..=MANY as i64).collect();
        wrote(&watch, &many);
        assert_eq!(news.take(), Reported::Many);
        wrote(&watch, &[7]);
        assert_eq!(news.take(), Reported::Agents([7].into()));
    }

    #[test]
    fn nothing_is_kept_while_nobody_watches() {
        let watch = MetadataWatch::default();
        let (news, other) = (watch.subscribe(), watch.subscribe());
        assert_eq!(watch.watchers(), 2);
        wrote(&watch, &[1]);
        drop(news);
        assert_eq!((watch.watchers(), watch.log().lists.len()), (1, 1));
        drop(other);
        wrote(&watch, &[1]);
        assert_eq!((watch.watchers(), watch.log().lists.len()), (0, 0));
        let mut news = watch.subscribe();
        wrote(&watch, &[5]);
        assert_eq!(news.take(), Reported::Agents([5].into()));
    }

    #[tokio::test]
    async fn a_change_wakes_a_watcher() {
        let watch = MetadataWatch::default();
        let mut news = watch.subscribe();
        wrote(&watch, &[1]);
        tokio::time::timeout(std::time::Duration::from_secs(30), news.changed()).await.expect("it is woken");
    }
}
