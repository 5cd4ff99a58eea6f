//! Signals from other nodes. Tested in `tests.rs` with the others.

use super::{Signals, hint};
use crate::signals::messages::{PeerNews, SessionSuperseded};
use std::sync::Arc;
use uuid::Uuid;

/// Signals from other nodes, after [`PeerNotifier`](crate::signals::PeerNotifier) has looked up their
/// details.
impl Signals {
    pub(in crate::signals) fn heard_cancelled(&self, no: i64, id: Uuid) {
        self.cancelled_here(no, id);
        self.read_open_actions();
    }

    pub(in crate::signals) fn heard_disabled(&self, agent_no: i64) {
        self.disabled_here(agent_no);
    }

    pub(in crate::signals) fn heard_moved(&self, moved: Vec<(i64, i64)>) {
        if !moved.is_empty() {
            hint(&self.0.board.stream.superseded, SessionSuperseded(moved));
        }
    }

    pub(in crate::signals) fn heard_news(&self, news: PeerNews) {
        if news.everything {
            self.read_open_actions();
            self.0.progress.all_changed();
        }
        self.0.progress.changed(news.commands.iter().map(|(action_no, _)| *action_no));
        if news.everything {
            self.look_at_backlogs();
        }
        if news != PeerNews::default() {
            hint(&self.0.board.scheduler.peer_news, news);
        }
    }

    pub(in crate::signals) fn heard_metadata(&self, agents: Option<Arc<[i64]>>) {
        self.0.metadata_watch.heard(agents);
    }

    pub(in crate::signals) fn heard_backlogs(&self, agents: Vec<i64>) {
        self.0.long_pollers.wake(agents.iter().copied());
        self.backlogs_found(agents);
    }

    pub(in crate::signals) fn heard_waiting(&self, agents: Vec<i64>) {
        self.0.long_pollers.wake(agents.into_iter());
    }
}
