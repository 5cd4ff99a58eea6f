//! Starts all reconcilers of this folder.

use super::advance::Advance;
use super::backlogs::Backlogs;
use super::complete::Complete;
use super::expire::Expire;
use super::fleet_counts::FleetCounts;
use super::hooks::Hooks;
use super::leaving_agents::LeavingAgents;
use super::live_join::LiveJoin;
use super::live_sweep::LiveSweep;
use super::open_actions::ReadOpenActions;
use super::overdue::Overdue;
use super::recur::Recur;
use super::retention::Retention;
use super::watching::Watching;
use crate::context::Node;
use crate::runtime::{Drain, Reconcile, Reconciler, Supervision, Unstarted};
use crate::senders::{HookSet, Recorder};
use actix::prelude::*;
use std::sync::Arc;

/// The reconcilers' addresses, before they are started.
#[derive(Default)]
pub struct Reconcilers {
    /// See [`super::open_actions`].
    pub open_actions: Unstarted<Reconciler<ReadOpenActions>>,
    /// See [`super::backlogs`].
    pub backlogs: Unstarted<Reconciler<Backlogs>>,
    /// See [`super::complete`].
    pub complete: Unstarted<Reconciler<Complete>>,
    /// See [`super::advance`].
    pub advance: Unstarted<Reconciler<Advance>>,
    /// See [`super::expire`].
    pub expire: Unstarted<Reconciler<Expire>>,
    /// See [`super::overdue`].
    pub overdue: Unstarted<Reconciler<Overdue>>,
    /// See [`super::leaving_agents`].
    pub leaving_agents: Unstarted<Reconciler<LeavingAgents>>,
    /// See [`super::live_join`].
    pub live_join: Unstarted<Reconciler<LiveJoin>>,
    /// See [`super::live_sweep`].
    pub live_sweep: Unstarted<Reconciler<LiveSweep>>,
    /// See [`super::fleet_counts`].
    pub fleet_counts: Unstarted<Reconciler<FleetCounts>>,
    /// See [`super::recur`].
    pub recur: Unstarted<Reconciler<Recur>>,
    /// See [`super::hooks`].
    pub hooks: Unstarted<Reconciler<Hooks>>,
    /// See [`super::watching`].
    pub watching: Unstarted<Reconciler<Watching>>,
    /// See [`super::retention`].
    pub retention: Unstarted<Reconciler<Retention>>,
}

impl Reconcilers {
    /// Starts all of them, and returns the recipients of their drain.
    pub fn start(
        self,
        node: &Arc<Node>,
        recorder: &Recorder,
        hook_set: Option<HookSet>,
        supervision: &Supervision,
    ) -> Vec<Recipient<Drain>> {
        // Without `..`, so that a reconciler that is never started is an unused variable.
        let Self {
            open_actions,
            backlogs,
            complete,
            advance,
            expire,
            overdue,
            leaving_agents,
            live_join,
            live_sweep,
            fleet_counts,
            recur,
            hooks,
            watching,
            retention,
        } = self;
        let (n, r, s) = (node, recorder, supervision);
        vec![
            start(open_actions, n, s, ReadOpenActions::new),
            start(backlogs, n, s, with(r, Backlogs::new)),
            start(complete, n, s, Complete::new),
            start(advance, n, s, Advance::new),
            start(expire, n, s, with(r, Expire::new)),
            start(overdue, n, s, with(r, Overdue::new)),
            start(leaving_agents, n, s, with(r, LeavingAgents::new)),
            start(live_join, n, s, LiveJoin::new),
            start(live_sweep, n, s, LiveSweep::new),
            start(fleet_counts, n, s, FleetCounts::new),
            start(recur, n, s, Recur::new),
            start(hooks, n, s, move |node| Hooks::new(node, hook_set.clone())),
            start(watching, n, s, Watching::new),
            start(retention, n, s, Retention::new),
        ]
    }
}

/// Turns a constructor that needs a recorder into one that doesn't.
fn with<R>(recorder: &Recorder, make: fn(Arc<Node>, Recorder) -> R) -> impl Fn(Arc<Node>) -> R + 'static
where
    R: 'static,
{
    let recorder = recorder.clone();
    move |node| make(node, recorder.clone())
}

fn start<R: Reconcile>(
    unstarted: Unstarted<Reconciler<R>>,
    node: &Arc<Node>,
    supervision: &Supervision,
    make: impl Fn(Arc<Node>) -> R + 'static,
) -> Recipient<Drain> {
    let (progress, node) = (node.metrics.progress().clone(), node.clone());
    unstarted.start(R::NAME, Reconciler::new(progress, move || make(node.clone())), supervision).recipient()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestNode, supervision};

    #[actix_rt::test]
    async fn all_reconcilers_run_and_are_drained() {
        let node = TestNode::new().await;
        let supervision = supervision();
        let drains = Reconcilers::default().start(&node.node, &node.recorder, None, &supervision);
        let names: Vec<&str> = supervision.reports().iter().map(|actor| actor.name).collect();
        let all = [
            "open_actions",
            "backlogs",
            "complete",
            "advance",
            "expire",
            "overdue",
            "leaving_agents",
            "live_join",
            "live_sweep",
            "fleet_counts",
            "recur",
            "hooks",
            "watching",
            "retention",
        ];
        assert_eq!(names, all);
        for drain in &drains {
            drain.send(Drain).await.expect("it is answered");
        }
        assert_eq!(drains.len(), all.len());
    }
}
