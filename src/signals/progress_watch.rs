//! Which actions are watched at this node: all watchers of one share what is read, and are woken by its changes alone.
//!
//! Watchers poll as well, since what other nodes commit is not always told here.

use crate::domain::action::ActionState;
use crate::domain::counts::Counts;
use crate::error_chain::ErrorChain;
use crate::store::{StoreError, StoreResult};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The shortest time between two reads of one action.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// How old may be what is read of an action of which nothing was heard since.
const FRESH: Duration = Duration::from_millis(500);
/// Above this number of entries, those that nobody watches are dropped with each new one.
const ENTRIES: usize = 1_024;

/// What is shown of an action while it runs. `None` if it is gone.
pub type Seen = Option<(ActionState, Counts)>;

/// See the module. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct ProgressWatch(Arc<Mutex<HashMap<i64, Weak<Watched>>>>);

/// An action that is watched.
#[derive(Debug)]
pub struct Watched {
    /// Counts what is heard of the action.
    changes: watch::Sender<u64>,
    latest: tokio::sync::Mutex<Option<Latest>>,
}

#[derive(Debug)]
struct Latest {
    /// The changes that had been heard of before the read.
    changes: u64,
    /// When the read began.
    at: Instant,
    /// What was read, or why it could not be.
    seen: Result<Seen, String>,
}

impl Latest {
    fn answer(&self) -> StoreResult<Seen> {
        self.seen.clone().map_err(StoreError::Unavailable)
    }
}

impl ProgressWatch {
    fn watched(&self) -> MutexGuard<'_, HashMap<i64, Weak<Watched>>> {
        // An entry is changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The action with this key, watched for as long as somebody has it.
    pub fn watch(&self, no: i64) -> Arc<Watched> {
        let mut watched = self.watched();
        if let Some(known) = watched.get(&no).and_then(Weak::upgrade) {
            return known;
        }
        if watched.len() >= ENTRIES {
            watched.retain(|_, action| action.strong_count() > 0);
        }
        let new = Arc::new(Watched { changes: watch::Sender::new(0), latest: tokio::sync::Mutex::default() });
        watched.insert(no, Arc::downgrade(&new));
        new
    }

    /// Something of these actions was committed.
    pub(super) fn changed(&self, nos: impl IntoIterator<Item = i64>) {
        let watched = self.watched();
        if watched.is_empty() {
            return;
        }
        for no in nos {
            if let Some(action) = watched.get(&no).and_then(Weak::upgrade) {
                action.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
            }
        }
    }

    /// Something of any action may have been committed.
    pub(super) fn all_changed(&self) {
        let nos: Vec<i64> = self.watched().keys().copied().collect();
        self.changed(nos);
    }
}

impl Watched {
    /// Subscribes to the changes of the action.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The action as it is, read with `read` unless another watcher has just read it. It is read ten times a second at
    /// most, however many watch.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn see(&self, read: impl AsyncFnOnce() -> StoreResult<Seen>) -> StoreResult<Seen> {
        let asked = Instant::now();
        let mut latest = self.latest.lock().await;
        if let Some(latest) = &*latest {
            // A read that began after this call is as good as one of its own. What was heard of since has marked the
            // caller's receiver, and it comes again.
            let is_new = latest.changes == *self.changes.borrow() && latest.at.elapsed() < FRESH && latest.seen.is_ok();
            if is_new || latest.at >= asked {
                return latest.answer();
            }
            tokio::time::sleep_until(latest.at + MIN_INTERVAL).await;
        }
        let (changes, at) = (*self.changes.borrow(), Instant::now());
        let seen = read().await.map_err(|error| error.chain().to_string());
        latest.insert(Latest { changes, at, seen }).answer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A moment after whatever was before.
    async fn see(watched: &Watched, reads: &Cell<u64>) -> Seen {
        tokio::time::sleep(Duration::from_micros(100)).await;
        let read = async || {
            reads.set(reads.get() + 1);
            Ok(Some((ActionState::Running, Counts { total: reads.get() as i64, ..Counts::default() })))
        };
        watched.see(read).await.expect("it can be read")
    }

    #[tokio::test]
    async fn a_change_wakes_those_who_watch_that_action_and_nobody_else() {
        let progress = ProgressWatch::default();
        let (one, other) = (progress.watch(1), progress.clone().watch(2));
        let (mut watcher, second, elsewhere) = (one.subscribe(), progress.watch(1).subscribe(), other.subscribe());
        progress.changed([1, 3]);
        progress.changed([1]);
        watcher.changed().await.expect("it is there");
        assert!(!watcher.has_changed().expect("it is there"), "both changes are seen");
        assert!(second.has_changed().expect("it is there") && !elsewhere.has_changed().expect("it is there"));
        progress.all_changed();
        assert!(elsewhere.has_changed().expect("it is there"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_watcher_has_read_is_for_all_until_it_changes_or_is_old() {
        let (progress, reads) = (ProgressWatch::default(), Cell::new(0));
        let watched = progress.watch(1);
        for _ in 0..100 {
            see(&watched, &reads).await;
        }
        assert_eq!(reads.get(), 1);
        progress.changed([2]);
        see(&watched, &reads).await;
        assert_eq!(reads.get(), 1);
        progress.changed([1]);
        let began = Instant::now();
        assert_eq!(see(&watched, &reads).await.map(|(_, counts)| counts.total), Some(2));
        assert!(began.elapsed() <= MIN_INTERVAL, "it waits no longer than that");
        tokio::time::sleep(FRESH).await;
        see(&watched, &reads).await;
        assert_eq!(reads.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_are_ten_reads_a_second_and_a_failed_one_is_repeated() {
        let (progress, reads) = (ProgressWatch::default(), Cell::new(0));
        let watched = progress.watch(1);
        let (began, most) = (Instant::now(), Duration::from_secs(2));
        while began.elapsed() < most {
            progress.changed([1]);
            see(&watched, &reads).await;
        }
        assert!((10..=21).contains(&reads.get()), "{}", reads.get());
        progress.changed([1]);
        tokio::time::sleep(MIN_INTERVAL).await;
        assert!(watched.see(async || Err(StoreError::Unavailable("away".into()))).await.is_err());
        let before = reads.get();
        see(&watched, &reads).await;
        assert_eq!(reads.get(), before + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn many_watchers_of_an_action_that_changes_all_the_time_are_all_served_at_once() {
        let (progress, reads) = (ProgressWatch::default(), Cell::new(0));
        let watched = progress.watch(1);
        // Each read takes a while, and something is committed meanwhile.
        let one = async || {
            let read = async || {
                reads.set(reads.get() + 1);
                progress.changed([1]);
                tokio::time::sleep(Duration::from_millis(5)).await;
                progress.changed([1]);
                Ok(None)
            };
            watched.see(read).await.expect("it can be read")
        };
        let began = Instant::now();
        futures_util::future::join_all((0..800).map(|_| one())).await;
        futures_util::future::join_all((0..800).map(|_| one())).await;
        assert!(began.elapsed() < Duration::from_secs(1) && reads.get() <= 4, "{:?} {}", began.elapsed(), reads.get());
    }

    #[test]
    fn what_nobody_watches_is_forgotten() {
        let progress = ProgressWatch::default();
        let kept = progress.watch(0);
        for no in 1..10_000 {
            progress.watch(no);
        }
        assert!(progress.watched().len() <= ENTRIES + 1);
        assert!(Arc::ptr_eq(&kept, &progress.watch(0)));
    }
}
