//! Notifies watchers of commits.
//!
//! One counter for all actions. A watcher reads the store when the counter moves, as often as it
//! likes. It polls as well, since another node's commits don't always move the counter.

use std::sync::Arc;
use tokio::sync::watch;

/// See the module. Clones share the counter.
#[derive(Clone, Debug)]
pub struct CommitWatch(Arc<watch::Sender<u64>>);

impl Default for CommitWatch {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl CommitWatch {
    /// Something was committed.
    pub(super) fn notify(&self) {
        self.0.send_modify(|commits| *commits = commits.wrapping_add(1));
    }

    /// Subscribes to the counter.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_commits_wake_a_watcher_once_and_each_of_its_clones() {
        let commits = CommitWatch::default();
        let (mut one, mut two) = (commits.subscribe(), commits.clone().subscribe());
        assert!(!one.has_changed().expect("it is there"));
        commits.notify();
        commits.notify();
        one.changed().await.expect("it is there");
        two.changed().await.expect("it is there");
        assert!(!one.has_changed().expect("it is there"), "both commits are seen");
        assert!(!commits.subscribe().has_changed().expect("it is there"), "what was before is no news");
    }
}
