//! Plain HTTP for agents that aren't always connected: they ask what is due, and tell what came of it.
//!
//! Asking changes nothing: a command is due until the agent says `received`, or sends its result.

use super::pages::{json, limit};
use super::{Api, ApiError, ApiResult, auth};
use crate::domain::command::{Answer, Event};
use crate::domain::problem::ProblemKind;
use crate::domain::protocol::{Command, MAX_FRAME, Rejected, RunRef, RunResult, Stored};
use crate::domain::time::{Span, Timestamp};
use crate::senders::stream::records::{record, store_results};
use crate::senders::{Delivery, report_of};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

/// The longest wait that a caller gets.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often a waiting call looks without being told.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The least time between two looks.
const REST: Duration = Duration::from_millis(50);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DueQuery {
    /// How long to wait for something, at most a minute.
    wait: Option<Span>,
    /// At most so many commands, 100 if not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct DueCommands {
    commands: Vec<Command>,
    server_time: Timestamp,
}

/// All that is due and not received, urgent ones first; waits for something if asked to. Changes nothing.
#[utoipa::path(get, path = "/v1/agent/commands", tag = "agent", params(DueQuery),
    responses((status = 200, body = DueCommands, description = "What is due")), security(("token" = ["agent"])))]
pub(super) async fn commands(
    request: HttpRequest,
    query: web::Query<DueQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (agent, token) = auth::agent(&api, &request).await?;
    if agent.disabled {
        return Err(ApiError::new(ProblemKind::Forbidden, "the agent is disabled"));
    }
    let limit = limit(query.limit)?;
    let wait = query.wait.map_or(Duration::ZERO, |wait| wait.0.min(LONGEST_WAIT));
    api.node.store.agent_check_in(agent.no).await?;
    // Where too many wait already, this one learns at once that there is nothing.
    let room = api.limits.stream(token);
    let until = Instant::now() + if room.is_ok() { wait } else { Duration::ZERO };
    // On the list before the look: what is written after it wakes.
    let waiting = api.node.signals.long_pollers().wait(agent.no);
    let mut waited = false;
    loop {
        let now = api.node.store.now();
        let left = until.saturating_duration_since(Instant::now());
        let rows = api.node.store.command_backlog(agent.no, now.plus(left), limit).await?;
        let mut next: Option<Timestamp> = None;
        let mut commands = Vec::new();
        let mut size = 0;
        for due in rows {
            let Some(action) = api.node.actions.get(due.action_no).await? else { continue };
            let delivery = Delivery { due, action };
            let not_before = delivery.not_before();
            if not_before > now {
                next = Some(next.map_or(not_before, |next| next.min(not_before)));
                continue;
            }
            let action = &delivery.action;
            size += action.operations.get().len() + action.name.len() + 256;
            if size > MAX_FRAME / 2 && !commands.is_empty() {
                break;
            }
            commands.push(delivery.command());
        }
        if !commands.is_empty() && waited {
            let agent = api.node.store.agent_get(agent.no).await?;
            if agent.is_none_or(|agent| agent.disabled) {
                return Err(ApiError::new(ProblemKind::Forbidden, "the agent was disabled or removed"));
            }
        }
        if !commands.is_empty() || left.is_zero() || api.supervision.is_draining() {
            return Ok(HttpResponse::Ok().json(DueCommands { commands, server_time: now }));
        }
        waited = true;
        // A millisecond more: the store's time is cut to milliseconds.
        let due = next.map_or(POLL_INTERVAL, |next| next.since(now) + Duration::from_millis(1));
        tokio::time::timeout(due.min(POLL_INTERVAL).min(left), waiting.woken()).await.ok();
        tokio::time::sleep(REST.min(left)).await;
    }
}

#[derive(Deserialize, ToSchema)]
pub(super) struct ReceivedBody {
    commands: Vec<RunRef>,
}

/// The agent has these safe; answered once that is durable.
#[utoipa::path(post, path = "/v1/agent/received", tag = "agent", request_body = ReceivedBody,
    responses((status = 200, body = Stored, description = "It is durable")), security(("token" = ["agent"])))]
pub(super) async fn received(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (agent, _) = auth::agent(&api, &request).await?;
    let (ReceivedBody { commands }, _) = json(payload, api.max_body().max(MAX_FRAME)).await?;
    let now = api.node.store.now();
    let mut stored = Stored::default();
    let (mut runs, mut reports) = (Vec::new(), Vec::new());
    for run in commands {
        match api.node.actions.get_by_id(run.action).await? {
            Some(action) => {
                let event = Event::Sent { run: run.run, attempts: 0, at: now };
                runs.push(run);
                reports.push(report_of(&action, agent.no, event));
            }
            None => stored.rejected.push(rejected(run, "there is no such action")),
        }
    }
    let answers = record(&api.sessions.context, reports).await.ok_or_else(away)?;
    for (run, answer) in runs.into_iter().zip(answers) {
        match answer {
            Ok(Answer::Stored | Answer::Again { .. }) => stored.commands.push(run),
            Ok(Answer::Decided) => stored.rejected.push(rejected(run, "it is over")),
            Ok(Answer::Rejected(reason)) => stored.rejected.push(rejected(run, reason)),
            Err(error) => stored.rejected.push(rejected(run, error.to_string())),
        }
    }
    Ok(HttpResponse::Ok().json(stored))
}

#[derive(Deserialize, ToSchema)]
pub(super) struct ResultsBody {
    results: Vec<RunResult>,
}

/// How runs ended; answered once that is durable.
#[utoipa::path(post, path = "/v1/agent/results", tag = "agent", request_body = ResultsBody,
    responses((status = 200, body = Stored, description = "What is durable, and what never will be")),
    security(("token" = ["agent"])))]
pub(super) async fn results(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (agent, _) = auth::agent(&api, &request).await?;
    let (ResultsBody { results }, size) = json(payload, api.max_body().max(MAX_FRAME)).await?;
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let room = api.sessions.budget.clone().try_acquire_many_owned(size);
    let _room = room.map_err(|_| ApiError::new(ProblemKind::Unavailable, "too many results are on their way"))?;
    let results = results.into_iter().map(|result| (result.run_ref(), Err(result))).collect();
    let stored = store_results(&api.node.actions, &api.sessions.context, agent.no, results, api.node.store.now()).await;
    Ok(HttpResponse::Ok().json(stored.ok_or_else(away)?))
}

fn rejected(run: RunRef, reason: impl Into<String>) -> Rejected {
    Rejected { action: run.action, run: run.run, reason: reason.into() }
}

fn away() -> ApiError {
    ApiError::new(ProblemKind::Unavailable, "the store is not available; try again")
}
