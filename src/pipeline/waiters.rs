//! Agents that wait for a command over plain HTTP, to be woken when there is one.
//!
//! The outcomes wake those of whose commands they have just written that they wait; hints from other nodes wake those for
//! whom something is due. A wake that is lost costs the waiter's own period.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

type Map = HashMap<i64, Arc<Notify>>;

/// See the module. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Waiters(Arc<Mutex<Map>>);

/// A request that waits; it is on the list until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    waiters: Waiters,
    agent_no: i64,
    notify: Arc<Notify>,
}

impl Waiters {
    fn with<T>(&self, work: impl FnOnce(&mut Map) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts an agent on the list.
    pub fn wait(&self, agent_no: i64) -> Waiting {
        let notify = self.with(|map| map.entry(agent_no).or_default().clone());
        Waiting { waiters: self.clone(), agent_no, notify }
    }

    /// Those that wait.
    pub fn agents(&self) -> Vec<i64> {
        self.with(|map| map.keys().copied().collect())
    }

    /// Wakes those of these agents that wait.
    pub fn wake(&self, agents: impl Iterator<Item = i64>) {
        self.with(|map| {
            if map.is_empty() {
                return;
            }
            for agent_no in agents {
                if let Some(notify) = map.get(&agent_no) {
                    // Also one that looks at the store at this moment.
                    notify.notify_one();
                }
            }
        });
    }
}

impl Waiting {
    /// Until there may be something.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waiters.with(|map| {
            // The list's own, and this one.
            if Arc::strong_count(&self.notify) <= 2 {
                map.remove(&self.agent_no);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn who_waits_is_woken_and_leaves_no_trace() {
        let waiters = Waiters::default();
        let (one, two) = (waiters.wait(1), waiters.wait(2));
        waiters.wake([1, 3].into_iter());
        one.woken().await;
        assert!(tokio::time::timeout(Duration::from_millis(10), two.woken()).await.is_err());
        drop((one, two));
        assert!(waiters.with(|map| map.is_empty()));
    }
}
