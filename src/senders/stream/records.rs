//! A session's requests to the store: backlogs, and records that are tried again while the outcomes
//! actor restarts.

use super::deps::SessionDeps;
use super::in_flight::result_report;
use crate::domain::action::Action;
use crate::domain::command::{Answer, Event};
use crate::domain::protocol::{Rejected, RunRef, RunResult, Stored};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::runtime::batcher::Verdict;
use crate::senders::contract::SenderContext;
use crate::senders::due_command::DueCommand;
use crate::senders::due_command::report_of;
use crate::signals::ActionCache;
use crate::store::{Report, StoreError};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often a record is tried before the session ends.
const RECORD_TRIES: u32 = 6;

/// A part of an agent's backlog.
pub(super) struct Backlog {
    /// Commands that are due now.
    pub(super) commands: Vec<DueCommand>,
    /// How long after this the store may have more that are due.
    pub(super) more_in: Option<Duration>,
}

/// How far ahead an agent's backlog is looked at, at least: longer than the time between two rounds of the reconciler that
/// tells sessions of it.
pub(crate) const LOOK_AHEAD: Duration = Duration::from_secs(90);

/// Reads a part of the backlog. Commands that are due within the horizon go to the scheduler.
pub(super) async fn backlog(deps: &SessionDeps, agent_no: i64, limit: usize) -> Result<Backlog, StoreError> {
    let (now, horizon) = (deps.node.store.now(), deps.node.config.delay.horizon.0);
    let rows = deps.node.store.command_backlog(agent_no, now.plus(horizon.max(LOOK_AHEAD)), limit).await?;
    let full = rows.len() >= limit;
    let (due, later): (Vec<_>, Vec<_>) = rows.into_iter().partition(|due| due.due_at <= now);
    // What is due now comes first, and what is due later by its time. So the rest is due after the last one.
    let rest = if full { Some(later.last().map_or(now, |due| due.due_at)) } else { None };
    let (soon, late): (Vec<_>, Vec<_>) = later.into_iter().partition(|due| due.due_at <= now.plus(horizon));
    let more_in = late.first().map(|due| due.due_at).into_iter().chain(rest).min().map(|at| at.since(now));
    deps.node.signals.due_soon(soon);
    let mut commands = Vec::with_capacity(due.len());
    for due in due {
        if let Some(action) = deps.node.actions.get(due.action_no).await? {
            commands.push(DueCommand { due, action });
        }
    }
    Ok(Backlog { commands, more_in })
}

/// Records results, including those of runs that this session didn't deliver, and returns the
/// answer to the agent.
pub(crate) async fn store_results(
    actions: &ActionCache,
    context: &SenderContext,
    agent_no: i64,
    results: Vec<(RunRef, Result<Report, RunResult>)>,
    now: Timestamp,
) -> Option<Stored> {
    let mut stored = Stored::default();
    let (mut runs, mut reports) = (Vec::new(), Vec::new());
    let unknown: Vec<Uuid> = results.iter().filter(|(_, result)| result.is_err()).map(|(run, _)| run.action).collect();
    let known = look_up(actions, &unknown).await?;
    for (run, result) in results {
        let report = match result {
            Ok(report) => report,
            Err(result) => match known.get(&run.action) {
                Some(action) => result_report(action, agent_no, &result, 0, None, false, now),
                None => {
                    let reason = "there is no such action".into();
                    stored.rejected.push(Rejected { action: run.action, run: run.run, reason });
                    continue;
                }
            },
        };
        runs.push((run, matches!(report.event, Event::FoundExpired { .. })));
        reports.push(report);
    }
    log::trace!(agent = agent_no, results = reports.len(); "recording results");
    for ((run, is_expired), answer) in runs.into_iter().zip(record(context, reports).await?) {
        match answer {
            // The run comes again. The reason gives the agent the server's time.
            Ok(Answer::Again { .. }) if is_expired => {
                let reason = format!("it has not expired: the server's time is {}", context.store.now());
                stored.rejected.push(Rejected { action: run.action, run: run.run, reason });
            }
            Ok(Answer::Rejected(reason)) => {
                stored.rejected.push(Rejected { action: run.action, run: run.run, reason });
            }
            Err(error) => {
                stored.rejected.push(Rejected { action: run.action, run: run.run, reason: error.to_string() });
            }
            Ok(_) => stored.commands.push(run),
        }
    }
    log::trace!(agent = agent_no, results = stored.commands.len(); "results recorded");
    Some(stored)
}

/// Records that an agent has stored these runs. `None` if nothing could be recorded.
pub(crate) async fn store_received(
    actions: &ActionCache,
    context: &SenderContext,
    agent_no: i64,
    commands: Vec<RunRef>,
) -> Option<Stored> {
    let now = context.now();
    let mut stored = Stored::default();
    let rejected = |run: RunRef, reason: &str| Rejected { action: run.action, run: run.run, reason: reason.to_owned() };
    let (mut runs, mut reports) = (Vec::new(), Vec::new());
    let known = look_up(actions, &commands.iter().map(|run| run.action).collect::<Vec<_>>()).await?;
    for run in commands {
        match known.get(&run.action) {
            Some(action) => {
                let event = Event::Sent { run: run.run, attempts: 0, at: now };
                runs.push(run);
                reports.push(report_of(action, agent_no, event));
            }
            None => stored.rejected.push(rejected(run, "there is no such action")),
        }
    }
    for (run, answer) in runs.into_iter().zip(record(context, reports).await?) {
        match answer {
            Ok(Answer::Stored | Answer::Again { .. }) => stored.commands.push(run),
            Ok(Answer::Decided) => stored.rejected.push(rejected(run, "it is over")),
            Ok(Answer::Rejected(reason)) => stored.rejected.push(rejected(run, &reason)),
            Err(error) => stored.rejected.push(rejected(run, &error.to_string())),
        }
    }
    Some(stored)
}

/// Finds actions by their public ids. `None` means that the store is away.
async fn look_up(actions: &ActionCache, ids: &[Uuid]) -> Option<HashMap<Uuid, Arc<Action>>> {
    for attempt in 0..RECORD_TRIES {
        match actions.get_by_ids(ids.iter().copied()).await {
            Ok(found) => return Some(found),
            Err(error) => log::warn!(error:% = error.chain(); "a result waits for the store"),
        }
        tokio::time::sleep(wait(attempt)).await;
    }
    None
}

/// The actions of runs that an agent has, and the ids of those that don't exist. One that can't be read doesn't hide the
/// others.
pub(super) async fn actions_of(actions: &ActionCache, runs: HashSet<RunRef>) -> (Vec<(Arc<Action>, i32)>, Vec<Uuid>) {
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    let known = actions.get_by_ids(runs.iter().map(|run| run.action)).await;
    for RunRef { action: id, run } in runs {
        let action = match &known {
            Ok(known) => Ok(known.get(&id).cloned()),
            Err(_) => actions.get_by_ids([id]).await.map(|mut known| known.remove(&id)),
        };
        match action {
            Ok(Some(action)) => found.push((action, run)),
            Ok(None) => unknown.push(id),
            Err(error) => log::warn!(error:% = error.chain(); "a run that an agent has cannot be looked up now"),
        }
    }
    (found, unknown)
}

/// Records reports, with retries while the outcomes actor restarts.
pub(crate) async fn record(context: &SenderContext, reports: Vec<Report>) -> Option<Vec<Verdict<Answer>>> {
    for attempt in 0..RECORD_TRIES {
        if let Ok(answers) = context.record(reports.clone()).await {
            return Some(answers);
        }
        tokio::time::sleep(wait(attempt)).await;
    }
    None
}

/// The wait after a try.
pub(super) fn wait(attempt: u32) -> Duration {
    Duration::from_millis(50) * (1 << attempt.min(6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::agent::STREAM;
    use crate::domain::command::{CommandState, Event};
    use crate::domain::protocol::RunStatus;
    use crate::runtime::Unstarted;
    use crate::senders::due_command::report_of;
    use crate::senders::stream::StreamSender;
    use crate::testing::{REFUSED, TestNode, end};
    use serde_json::json;

    fn deps(node: &TestNode) -> SessionDeps {
        let context = SenderContext::new(node.node.clone(), node.recorder.clone(), STREAM);
        SessionDeps::new(node.node.clone(), context, Unstarted::<StreamSender>::default().address())
    }

    fn result(run: RunRef) -> RunResult {
        let (action, run) = (run.action, run.run);
        RunResult { action, run, status: RunStatus::Succeeded, results: vec![], started_at: None, finished_at: None }
    }

    #[actix_rt::test]
    async fn a_backlog_is_what_is_due_and_what_is_due_soon_goes_to_the_scheduler() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let now = node.resolved(json!({}), &agents).await;
        let soon = node.resolved(json!({"delay": "30s"}), &agents).await;
        node.resolved(json!({"delay": "1h"}), &agents).await;
        let Backlog { commands, more_in } = backlog(&deps(&node), agents[0], 10).await.unwrap();
        assert_eq!(commands.iter().map(|command| command.action.no).collect::<Vec<_>>(), [now.no]);
        assert_eq!(more_in, None);
        assert_eq!(node.heard().await, [format!("scheduler: rescheduled [({}, {}, 1)]", soon.no, agents[0])]);
    }

    #[actix_rt::test]
    async fn after_a_full_page_there_is_more_at_the_time_of_its_last_command() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        for (delay, priority) in [("0s", 0), ("0s", 0), ("30s", 0), ("50s", 9), ("80s", 0)] {
            node.resolved(json!({"delay": delay, "priority": priority}), &agents).await;
        }
        let read = async |limit| {
            let Backlog { commands, more_in } = backlog(&deps(&node), agents[0], limit).await.unwrap();
            (commands.len(), more_in.map(|wait| wait.as_secs()))
        };
        assert_eq!(read(2).await, (2, Some(0)));
        let (commands, more_in) = read(3).await;
        assert!(commands == 2 && more_in.is_some_and(|wait| (10..=30).contains(&wait)), "{more_in:?}");
        let (commands, more_in) = read(4).await;
        assert!(commands == 2 && more_in.is_some_and(|wait| (30..=50).contains(&wait)), "{more_in:?}");
        // What lies beyond the horizon is read again when it is due.
        let (commands, more_in) = read(6).await;
        assert!(commands == 2 && more_in.is_some_and(|wait| (60..=80).contains(&wait)), "{more_in:?}");
        node.heard().await;
        read(6).await;
        let rescheduled = node.heard().await;
        assert!(rescheduled.len() == 1 && rescheduled[0].matches("(").count() == 2, "{rescheduled:?}");
    }

    #[actix_rt::test]
    async fn an_action_that_cannot_be_read_hides_no_other() {
        let node = TestNode::new().await;
        let [good, bad] = [node.submit(json!({})).await, node.submit(json!({})).await];
        let cache = ActionCache::new(node.store.clone());
        node.sql(&format!("UPDATE actions SET operations = '[' WHERE no = {}", bad.no));
        let gone = Uuid::from_u128(7);
        let runs = [good.id, bad.id, gone].map(|action| RunRef { action, run: 2 });
        let (found, unknown) = actions_of(&cache, HashSet::from(runs)).await;
        assert_eq!(found.iter().map(|(action, run)| (action.no, *run)).collect::<Vec<_>>(), [(good.no, 2)]);
        assert_eq!(unknown, [gone]);
    }

    #[actix_rt::test]
    async fn results_are_stored_or_rejected_each_for_itself() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let mut actions = Vec::new();
        for _ in 0..4 {
            actions.push(node.resolved(json!({}), &agents).await);
        }
        let run = |place: usize| RunRef { action: actions[place].id, run: 1 };
        let report = |place: usize| {
            let event = Event::Result(Box::new(end(1, CommandState::Succeeded, node.store.now())));
            Ok(report_of(&actions[place], agents[0], event))
        };
        // The second one was decided before, the third is refused, the fourth has no second run.
        node.succeed(&actions[1], agents[0]).await;
        node.break_inserts("outcomes", &format!("NEW.action_no = {}", actions[2].no), REFUSED);
        let (unknown, no_run) = (RunRef { action: uuid::Uuid::from_u128(9), run: 1 }, RunRef { run: 2, ..run(3) });
        let results = vec![
            (run(0), Err(result(run(0)))),
            (run(1), report(1)),
            (run(2), report(2)),
            (no_run, Err(result(no_run))),
            (unknown, Err(result(unknown))),
        ];
        let deps = deps(&node);
        let now = node.store.now();
        let stored =
            store_results(&node.node.actions, &deps.context, agents[0], results, now).await.expect("it is there");
        assert_eq!(stored.commands, [run(0), run(1)]);
        let reasons: Vec<_> =
            stored.rejected.iter().map(|rejected| (rejected.action, rejected.reason.as_str())).collect();
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        assert_eq!(reasons[0], (unknown.action, "there is no such action"));
        assert!(reasons[1].0 == actions[2].id && reasons[1].1.contains(REFUSED), "{reasons:?}");
        assert_eq!(reasons[2], (actions[3].id, "run 2 is not due; run 1 is"));
        assert_eq!(node.states(&actions[0]).await, [CommandState::Succeeded]);
    }

    #[test]
    fn the_wait_doubles() {
        assert_eq!([0, 1, 5, 6, 99].map(|attempt| wait(attempt).as_millis()), [50, 100, 1_600, 3_200, 3_200]);
    }
}
