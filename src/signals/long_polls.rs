//! Agents that wait for commands over plain HTTP.
//!
//! They are woken when one of their commands gets an open row, here or at another node. A lost
//! wake-up costs the polling interval of the call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

type Map = HashMap<i64, Arc<Notify>>;

/// See the module. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct LongPollers(Arc<Mutex<Map>>);

/// A waiting request. It is on the list until it is dropped.
#[derive(Debug)]
pub struct LongPoll {
    pollers: LongPollers,
    agent_no: i64,
    notify: Arc<Notify>,
}

impl LongPollers {
    fn with<T>(&self, work: impl FnOnce(&mut Map) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts an agent on the list.
    pub fn wait(&self, agent_no: i64) -> LongPoll {
        let notify = self.with(|map| map.entry(agent_no).or_default().clone());
        LongPoll { pollers: self.clone(), agent_no, notify }
    }

    /// The agents that wait.
    pub fn agents(&self) -> Vec<i64> {
        self.with(|map| map.keys().copied().collect())
    }

    /// Wakes those of `agents` that wait.
    pub(super) fn wake(&self, agents: impl Iterator<Item = i64>) {
        self.with(|map| {
            if map.is_empty() {
                return;
            }
            for agent_no in agents {
                if let Some(notify) = map.get(&agent_no) {
                    // Also works for a call that is reading the store at this moment.
                    notify.notify_one();
                }
            }
        });
    }
}

impl LongPoll {
    /// Waits until there may be a command.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for LongPoll {
    fn drop(&mut self) {
        self.pollers.with(|map| {
            // The map's reference and this one.
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
    async fn a_waiting_agent_is_woken_and_leaves_nothing_behind() {
        let pollers = LongPollers::default();
        let (one, two) = (pollers.wait(1), pollers.wait(2));
        pollers.wake([1, 3].into_iter());
        one.woken().await;
        assert!(tokio::time::timeout(Duration::from_millis(10), two.woken()).await.is_err());
        drop((one, two));
        assert!(pollers.with(|map| map.is_empty()));
    }

    #[tokio::test]
    async fn a_wake_that_comes_before_the_wait_is_not_lost() {
        let pollers = LongPollers::default();
        let poll = pollers.wait(1);
        // It is looking at the store now.
        pollers.wake([1].into_iter());
        tokio::time::timeout(Duration::from_secs(30), poll.woken()).await.expect("it is woken");
    }

    #[tokio::test]
    async fn an_agent_waits_for_as_long_as_one_of_its_calls_does() {
        let pollers = LongPollers::default();
        let (one, two) = (pollers.wait(1), pollers.wait(1));
        drop(one);
        assert_eq!(pollers.agents(), [1]);
        pollers.wake([1].into_iter());
        tokio::time::timeout(Duration::from_secs(30), two.woken()).await.expect("it is woken");
        drop(two);
        assert!(pollers.agents().is_empty());
    }
}
