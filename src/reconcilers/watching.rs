//! Tells the other nodes whether somebody watches metadata at this one: they notify a node of what they write
//! only while somebody watches there.

use crate::context::Node;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use std::sync::Arc;
use std::time::Duration;

/// How often it looks. A first watcher causes a round at once; after the last one nodes are told in vain for
/// as long.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// See the module.
pub struct Watching {
    node: Arc<Node>,
    /// What the other nodes were told.
    told: bool,
}

impl Watching {
    /// A reconciler for this node, whose row says that nobody watches.
    pub fn new(node: Arc<Node>) -> Self {
        node.signals.metadata_watch().set_told(false);
        Self { node, told: false }
    }
}

impl Reconcile for Watching {
    const NAME: &'static str = "watching";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        let watch = self.node.signals.metadata_watch();
        let watchers = watch.watchers();
        self.node.metrics.metadata().set_watchers(watchers);
        // Told anew in each round: a crash of this actor may have left the row as it was.
        if watchers > 0 || self.told {
            self.node.store.metadata_watch(watchers > 0).await?;
            self.told = watchers > 0;
            watch.set_told(self.told);
        }
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;

    #[actix_rt::test]
    async fn it_is_told_while_somebody_watches() {
        let node = TestNode::new().await;
        let mut watching = Watching::new(node.node.clone());
        let told = || *node.node.signals.metadata_watch().told().borrow();
        watching.run_once().await.unwrap();
        assert!(!told());
        let news = node.node.signals.metadata_watch().subscribe();
        watching.run_once().await.unwrap();
        assert!(told());
        drop(news);
        watching.run_once().await.unwrap();
        assert!(!told());
    }
}
