//! See [`signals`](super).

use super::action_cache::ActionCache;
use super::dirty_keys::{DirtyByAction, DirtyKeys};
use super::long_polls::LongPollers;
use super::messages::{
    AgentDisabled, BacklogChanged, Cancelled, MetadataWritten, OpenActionsRead, OutcomesRecorded, PeerNews, Publish,
    RecordedOutcome, Rescheduled, Resumed, SessionSuperseded,
};
use super::metadata_watch::MetadataWatch;
use super::open_actions::{OpenActions, Snapshot};
use super::progress_watch::ProgressWatch;
use crate::domain::command::{Answer, Event};
use crate::domain::hint::Hint;
use crate::runtime::Wake;
use crate::runtime::batcher::Verdict;
use crate::store::{Due, Report};
use actix::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

mod heard;
#[cfg(test)]
mod tests;

/// Maximum number of changed actions or agents that are remembered individually.
const REMEMBERED: usize = 10_000;

/// The delay scheduler's recipients.
pub struct SchedulerInbox {
    /// Commands that fall due again.
    pub rescheduled: Recipient<Rescheduled>,
    /// Actions that were cancelled.
    pub cancelled: Recipient<Cancelled>,
    /// Actions that were resumed.
    pub resumed: Recipient<Resumed>,
    /// What other nodes committed.
    pub peer_news: Recipient<PeerNews>,
    /// The open actions.
    pub open_actions: Recipient<OpenActionsRead>,
}

impl SchedulerInbox {
    /// All of them at one address.
    pub fn of<A>(address: &Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Rescheduled> + Handler<Cancelled> + Handler<Resumed>,
        A: Handler<PeerNews> + Handler<OpenActionsRead>,
    {
        Self {
            rescheduled: address.clone().recipient(),
            cancelled: address.clone().recipient(),
            resumed: address.clone().recipient(),
            peer_news: address.clone().recipient(),
            open_actions: address.clone().recipient(),
        }
    }
}

/// The stream sender's recipients.
pub struct StreamInbox {
    /// Agents that may no longer be connected.
    pub disabled: Recipient<AgentDisabled>,
    /// Agents that are connected elsewhere.
    pub superseded: Recipient<SessionSuperseded>,
    /// Agents for which the store has more commands.
    pub backlog: Recipient<BacklogChanged>,
}

impl StreamInbox {
    /// All of them at one address.
    pub fn of<A>(address: &Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<AgentDisabled> + Handler<SessionSuperseded> + Handler<BacklogChanged>,
    {
        Self {
            disabled: address.clone().recipient(),
            superseded: address.clone().recipient(),
            backlog: address.clone().recipient(),
        }
    }
}

/// The recipients of all signals. There are no actor types here.
pub struct Board {
    /// Finds the agents of new actions.
    pub resolver: Recipient<Wake>,
    /// Delivers due commands.
    pub scheduler: SchedulerInbox,
    /// Holds the agents' connections.
    pub stream: StreamInbox,
    /// All senders, which notify agents of cancelled actions.
    pub senders: Vec<Recipient<Cancelled>>,
    /// Reads the open actions.
    pub open_actions: Recipient<Wake>,
    /// Reconcilers that work from the list of open actions.
    pub after_open_actions: Vec<Recipient<Wake>>,
    /// Completes actions.
    pub complete: Recipient<Wake>,
    /// Tells sessions of commands that wait in the store.
    pub backlogs: Recipient<Wake>,
    /// Lets agents join live actions.
    pub live_join: Recipient<Wake>,
    /// Looks through the fleet for agents that may join live actions.
    pub live_sweep: Recipient<Wake>,
    /// Sends events to hooks.
    pub hooks: Recipient<Wake>,
    /// Makes the occurrences of schedules.
    pub recur: Recipient<Wake>,
    /// Tells other nodes that somebody watches metadata here.
    pub watching: Recipient<Wake>,
    /// Notifies other nodes.
    pub peers: Recipient<Publish>,
    /// What users registered to hear of results.
    pub listeners: Vec<Recipient<OutcomesRecorded>>,
}

/// See [`signals`](super). Clones share everything.
#[derive(Clone)]
pub struct Signals(Arc<Inner>);

struct Inner {
    board: Board,
    actions: ActionCache,
    progress: ProgressWatch,
    long_pollers: LongPollers,
    open_actions: OpenActions,
    changed_actions: DirtyKeys,
    changed_agents: DirtyKeys,
    reports: DirtyByAction,
    live_sweeps: DirtyKeys,
    metadata_watch: MetadataWatch,
}

/// Sends a hint. A recipient with a full mailbox has enough to do, and finds the rest in the store.
fn hint<M>(to: &Recipient<M>, message: M)
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    if let Err(error) = to.try_send(message) {
        log::debug!(error:% = error; "a hint was dropped");
    }
}

impl Signals {
    /// Signals with these recipients and this cache.
    pub fn new(board: Board, actions: ActionCache) -> Self {
        Self(Arc::new(Inner {
            board,
            actions,
            progress: ProgressWatch::default(),
            long_pollers: LongPollers::default(),
            open_actions: OpenActions::default(),
            changed_actions: DirtyKeys::new(REMEMBERED),
            changed_agents: DirtyKeys::new(REMEMBERED),
            reports: DirtyByAction::new(REMEMBERED),
            live_sweeps: DirtyKeys::new(REMEMBERED),
            metadata_watch: MetadataWatch::default(),
        }))
    }

    /// Those who watch actions.
    pub fn progress(&self) -> &ProgressWatch {
        &self.0.progress
    }

    /// Agents that wait for commands over plain HTTP.
    pub fn long_pollers(&self) -> &LongPollers {
        &self.0.long_pollers
    }

    /// The latest reading of the open actions.
    pub fn open_actions(&self) -> &OpenActions {
        &self.0.open_actions
    }

    /// Actions that may be complete. A reconciler takes them from here.
    pub fn changed_actions(&self) -> &DirtyKeys {
        &self.0.changed_actions
    }

    /// Agents that may match live actions. A reconciler takes them from here.
    pub fn changed_agents(&self) -> &DirtyKeys {
        &self.0.changed_agents
    }

    /// For each live action, agents with new values of keys that its target mentions. A reconciler takes them from here.
    pub fn reports(&self) -> &DirtyByAction {
        &self.0.reports
    }

    /// Live actions for which the whole fleet is to be looked through. A reconciler takes them from here.
    pub fn live_sweeps(&self) -> &DirtyKeys {
        &self.0.live_sweeps
    }

    /// Those who watch metadata.
    pub fn metadata_watch(&self) -> &MetadataWatch {
        &self.0.metadata_watch
    }

    fn publish(&self, hints: Vec<Hint>) {
        if !hints.is_empty() {
            hint(&self.0.board.peers, Publish(hints));
        }
    }

    /// Actions were stored.
    pub fn actions_submitted(&self) {
        hint(&self.0.board.resolver, Wake);
    }

    /// Commands were committed, as (action, agent key after which they begin). The caller messages
    /// the scheduler itself, because it awaits the answer.
    pub fn commands_written(&self, pages: impl IntoIterator<Item = (i64, i64)>) {
        let pages: Vec<(i64, i64)> = pages.into_iter().collect();
        self.0.progress.changed(pages.iter().map(|(action_no, _)| *action_no));
        self.publish(pages.into_iter().map(|(action_no, after)| Hint::Commands { action_no, after }).collect());
    }

    /// All commands of this action are written, so it may be complete.
    pub fn action_resolved(&self, no: i64) {
        self.actions_changed([no]);
    }

    /// Agents joined a live action: these commands are due.
    pub fn commands_joined(&self, due: Vec<Due>) {
        self.0.long_pollers.wake(due.iter().map(|due| due.agent_no));
        self.0.progress.changed(due.iter().map(|due| due.action_no));
        let agents = due.iter().map(|due| Hint::Backlog(due.agent_no));
        let hints = agents.chain([Hint::Open]).collect();
        self.due_soon(due);
        self.publish(hints);
    }

    /// These commands with an open row fall due soon at this node.
    pub fn due_soon(&self, due: Vec<Due>) {
        if !due.is_empty() {
            hint(&self.0.board.scheduler.rescheduled, Rescheduled(due));
        }
    }

    /// Commands of agents that may be connected here wait in the store, and no session was told.
    pub fn look_at_backlogs(&self) {
        hint(&self.0.board.backlogs, Wake);
    }

    /// The store has commands for these agents, which are connected here.
    pub fn backlogs_found(&self, agents: Vec<i64>) {
        if !agents.is_empty() {
            hint(&self.0.board.stream.backlog, BacklogChanged(agents));
        }
    }

    /// Commands were postponed because this node has no sender for their transport.
    pub fn commands_unserved(&self) {
        self.publish(vec![Hint::Open]);
    }

    /// Reports were recorded, with these answers.
    pub fn outcomes_recorded(&self, reports: &[Report], answers: &[Verdict<Answer>]) {
        let nos: BTreeSet<i64> = reports.iter().map(|report| report.action_no).collect();
        self.0.progress.changed(nos);
        self.tell_listeners(reports, answers);
        let (mut waiting, mut again, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for (report, answer) in reports.iter().zip(answers) {
            match answer {
                Ok(Answer::Again { run, attempts, due_at }) => {
                    waiting.push(report.agent_no);
                    again.push(Due {
                        action_no: report.action_no,
                        agent_no: report.agent_no,
                        run: *run,
                        attempts: *attempts,
                        due_at: *due_at,
                        priority: 0,
                        open: true,
                    });
                }
                Ok(Answer::Stored) => {
                    if matches!(report.event, Event::Hold { .. }) {
                        waiting.push(report.agent_no);
                    }
                    changed.push(report.action_no);
                }
                Ok(Answer::Decided | Answer::Rejected(_)) | Err(_) => {}
            }
        }
        if !waiting.is_empty() {
            self.0.long_pollers.wake(waiting.into_iter());
            self.publish(vec![Hint::Waiting]);
        }
        self.due_soon(again);
        if !changed.is_empty() {
            changed.dedup();
            self.actions_changed(changed);
        }
    }

    fn tell_listeners(&self, reports: &[Report], answers: &[Verdict<Answer>]) {
        let listeners = &self.0.board.listeners;
        if listeners.is_empty() {
            return;
        }
        let ended = reports.iter().zip(answers).filter_map(|(report, answer)| {
            let Event::Result(end) = &report.event else { return None };
            let runs_again = match answer {
                Ok(Answer::Again { .. }) => true,
                Ok(Answer::Stored) => false,
                Ok(Answer::Decided | Answer::Rejected(_)) | Err(_) => return None,
            };
            let (action_no, agent_no, end) = (report.action_no, report.agent_no, (**end).clone());
            Some(RecordedOutcome { action_no, agent_no, end, runs_again })
        });
        let recorded = OutcomesRecorded(ended.collect());
        if !recorded.0.is_empty() {
            listeners.iter().for_each(|listener| hint(listener, recorded.clone()));
        }
    }

    fn actions_changed(&self, nos: impl IntoIterator<Item = i64>) {
        self.0.changed_actions.add(nos);
        hint(&self.0.board.complete, Wake);
    }

    /// A user cancelled an action.
    pub fn action_cancelled(&self, no: i64, id: Uuid) {
        self.publish(vec![Hint::Action(no)]);
        self.cancelled_here(no, id);
        // The action's owner closes its unfinished commands. It may be this node.
        self.read_open_actions();
        self.actions_changed([no]);
    }

    fn cancelled_here(&self, no: i64, id: Uuid) {
        // From here on, none of its commands is delivered.
        self.0.actions.cancel(no);
        self.0.progress.changed([no]);
        hint(&self.0.board.scheduler.cancelled, Cancelled(vec![(no, id)]));
        for sender in &self.0.board.senders {
            hint(sender, Cancelled(vec![(no, id)]));
        }
    }

    /// A user paused an action.
    pub fn action_paused(&self, no: i64) {
        self.publish(vec![Hint::Action(no)]);
        self.0.actions.pause(no, true);
        self.0.progress.changed([no]);
    }

    /// A user resumed an action.
    pub fn action_resumed(&self, no: i64) {
        self.publish(vec![Hint::Action(no)]);
        self.resumed_here(no);
    }

    /// The store says that an action is cancelled, which this process did not know.
    pub fn cancel_found(&self, no: i64, id: Uuid) {
        self.cancelled_here(no, id);
    }

    /// The store says that an action is paused or resumed, and this process did not know.
    pub fn pause_found(&self, no: i64, is_paused: bool) {
        if is_paused {
            self.0.actions.pause(no, true);
        } else {
            self.resumed_here(no);
        }
    }

    fn resumed_here(&self, no: i64) {
        self.0.actions.pause(no, false);
        self.0.progress.changed([no]);
        hint(&self.0.board.scheduler.resumed, Resumed(vec![no]));
        self.look_at_backlogs();
    }

    /// These actions have ended.
    pub fn actions_ended(&self, nos: &[i64]) {
        if nos.is_empty() {
            return;
        }
        self.0.progress.changed(nos.iter().copied());
        hint(&self.0.board.hooks, Wake);
    }

    /// Events for hooks were stored.
    pub fn hooks_told(&self) {
        hint(&self.0.board.hooks, Wake);
    }

    /// A schedule is new or has changed.
    pub fn schedules_changed(&self) {
        hint(&self.0.board.recur, Wake);
    }

    /// The open actions should be read now.
    pub fn read_open_actions(&self) {
        hint(&self.0.board.open_actions, Wake);
    }

    /// The open actions were read.
    pub fn open_actions_read(&self, snapshot: Snapshot) {
        let snapshot = self.0.open_actions.set(snapshot);
        hint(&self.0.board.scheduler.open_actions, OpenActionsRead(snapshot));
        for reconciler in &self.0.board.after_open_actions {
            hint(reconciler, Wake);
        }
    }

    /// An agent is new, or its labels, facts or address changed.
    pub fn agent_changed(&self, agent_no: i64) {
        self.0.changed_agents.add([agent_no]);
        hint(&self.0.board.live_join, Wake);
    }

    /// Metadata was written.
    pub fn metadata_written(&self, written: MetadataWritten) {
        self.0.metadata_watch.wrote(&written);
        if !written.live.is_empty() {
            self.0.reports.add(written.live);
            hint(&self.0.board.live_join, Wake);
        }
        if written.is_watched_elsewhere && !written.agents.is_empty() {
            self.publish(vec![Hint::Metadata(Some(written.agents.into()))]);
        }
    }

    /// Somebody watches metadata here from now on.
    pub fn metadata_watched(&self) {
        hint(&self.0.board.watching, Wake);
    }

    /// An agent was disabled or removed.
    pub fn agent_disabled(&self, agent_no: i64) {
        self.publish(vec![Hint::Agent(agent_no)]);
        self.disabled_here(agent_no);
    }

    fn disabled_here(&self, agent_no: i64) {
        hint(&self.0.board.stream.disabled, AgentDisabled(agent_no));
    }

    /// Agents that were connected to other nodes are connected here now, as (agent, epoch).
    pub fn sessions_moved_here(&self, moved: impl IntoIterator<Item = (i64, i64)>) {
        let moved = moved.into_iter().map(|(agent_no, epoch)| Hint::Moved { agent_no, epoch });
        self.publish(moved.collect());
    }

    /// A replaced connection of this agent has written its commands back.
    pub fn backlog_changed(&self, agent_no: i64) {
        self.backlogs_found(vec![agent_no]);
        self.publish(vec![Hint::Backlog(agent_no)]);
    }

    /// Agents may join these live actions, wherever in the fleet they are.
    pub fn sweep_live(&self, nos: impl IntoIterator<Item = i64>) {
        self.0.live_sweeps.add(nos);
        hint(&self.0.board.live_sweep, Wake);
    }
}
