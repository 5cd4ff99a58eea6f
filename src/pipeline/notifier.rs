//! Tells watchers that something was committed.
//!
//! One counter for all actions: whoever watches one looks at the store when it moves, no more often than it wants to know,
//! and now and then by itself, since another node's commits don't move it.

use std::sync::Arc;
use tokio::sync::watch;

/// See the module. Clones share the counter.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<watch::Sender<u64>>);

impl Default for Notifier {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Notifier {
    /// Something was committed.
    pub fn notify(&self) {
        self.0.send_modify(|commits| *commits = commits.wrapping_add(1));
    }

    /// To wait for that.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}
