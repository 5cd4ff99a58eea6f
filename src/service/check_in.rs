//! Plain HTTP for agents that aren't always connected: they fetch due commands and report results.
//!
//! Fetching changes nothing: a command is due until the agent sends `received` or its result.

use super::error::{ServiceError, ServiceResult};
use crate::context::Node;
use crate::domain::agent::AgentRef;
use crate::domain::metadata::AgentReport;
use crate::domain::protocol::{Command, MAX_FRAME, MetadataItem, MetadataStored, RunRef, RunResult, Stored};
use crate::domain::time::Timestamp;
use crate::senders::stream::records::{store_received, store_results};
use crate::senders::stream::reports::store_metadata;
use crate::senders::{DueCommand, SenderContext};
use std::time::Duration;
use tokio::time::Instant;

/// How often a waiting call polls.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long an empty answer waits until the check-in is written.
const CHECK_IN_WAIT: Duration = Duration::from_secs(2);
/// The shortest time between two reads of the store.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// The due commands of an agent.
#[derive(Debug)]
pub struct DueCommands {
    /// Urgent ones first.
    pub commands: Vec<Command>,
    /// The store's time of the read.
    pub server_time: Timestamp,
}

/// Up to `limit` commands of an agent that are due and not received. Waits up to `wait` for one,
/// unless `is_stopping`. Changes nothing.
///
/// # Errors
/// If the agent is disabled or removed.
pub async fn due(
    node: &Node,
    agent: &AgentRef,
    limit: usize,
    wait: Duration,
    is_stopping: impl Fn() -> bool,
) -> ServiceResult<DueCommands> {
    if agent.disabled {
        return Err(ServiceError::forbidden("the agent is disabled"));
    }
    let checked_in = node.reporter.put(vec![AgentReport::seen(agent.no, node.store.now(), true)]);
    let until = Instant::now() + wait;
    // Registered before the store is read, so that later writes wake the call.
    let waiting = node.signals.long_pollers().wait(agent.no);
    let mut waited = false;
    loop {
        let now = node.store.now();
        let left = until.saturating_duration_since(Instant::now());
        let (commands, next) = read_due(node, agent.no, now, left, limit).await?;
        if !commands.is_empty() && waited {
            let agent = node.store.agent_get(agent.no).await?;
            if agent.is_none_or(|agent| agent.disabled) {
                return Err(ServiceError::forbidden("the agent was disabled or removed"));
            }
        }
        if !commands.is_empty() || left.is_zero() || is_stopping() {
            if commands.is_empty() {
                // An agent without work has time until it is shown as online.
                tokio::time::timeout(CHECK_IN_WAIT, checked_in).await.ok();
            }
            return Ok(DueCommands { commands, server_time: now });
        }
        waited = true;
        // One millisecond more, because the store truncates times to milliseconds.
        let due = next.map_or(POLL_INTERVAL, |next| next.since(now) + Duration::from_millis(1));
        tokio::time::timeout(due.min(POLL_INTERVAL).min(left), waiting.woken()).await.ok();
        tokio::time::sleep(MIN_INTERVAL.min(left)).await;
    }
}

/// The commands that are due now, and the due time of the next one within `ahead`.
async fn read_due(
    node: &Node,
    agent_no: i64,
    now: Timestamp,
    ahead: Duration,
    limit: usize,
) -> ServiceResult<(Vec<Command>, Option<Timestamp>)> {
    let (mut commands, mut next, mut size) = (Vec::new(), None::<Timestamp>, 0);
    for due in node.store.command_backlog(agent_no, now.plus(ahead), limit).await? {
        let Some(action) = node.actions.get(due.action_no).await? else { continue };
        let delivery = DueCommand { due, action };
        let not_before = delivery.not_before();
        if not_before > now {
            next = Some(next.map_or(not_before, |next| next.min(not_before)));
            continue;
        }
        size += delivery.action.operations.get().len() + delivery.action.name.len() + 256;
        if size > MAX_FRAME / 2 && !commands.is_empty() {
            break;
        }
        commands.push(delivery.command());
    }
    Ok((commands, next))
}

/// Records that the agent has stored these runs. Returns once that is durable here as well.
///
/// # Errors
/// If the store is away.
pub async fn received(
    node: &Node,
    context: &SenderContext,
    agent_no: i64,
    commands: Vec<RunRef>,
) -> ServiceResult<Stored> {
    store_received(&node.actions, context, agent_no, commands).await.ok_or_else(away)
}

/// Records results. Returns once they are durable.
///
/// # Errors
/// If the store is away.
pub async fn results(
    node: &Node,
    context: &SenderContext,
    agent_no: i64,
    results: Vec<RunResult>,
) -> ServiceResult<Stored> {
    let results = results.into_iter().map(|result| (result.run_ref(), Err(result))).collect();
    store_results(&node.actions, context, agent_no, results, node.store.now()).await.ok_or_else(away)
}

/// Stores metadata. Returns once it is durable.
///
/// # Errors
/// If the store is away.
pub async fn metadata(node: &Node, agent_no: i64, seq: i64, items: Vec<MetadataItem>) -> ServiceResult<MetadataStored> {
    store_metadata(node, agent_no, seq, items).await.ok_or_else(away)
}

fn away() -> ServiceError {
    ServiceError::unavailable("the store is not available; try again")
}
