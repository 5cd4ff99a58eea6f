//! `/v1/agent/commands`, `received` and `results`: plain HTTP for agents that aren't always connected.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::extract::{Body, CallingAgent};
use super::pages::limit;
use super::query::Query;
use crate::domain::problem::ProblemKind;
use crate::domain::protocol::{Command, MAX_FRAME, RunRef, RunResult, Stored};
use crate::domain::time::{Span, Timestamp};
use crate::service::check_in;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// The longest wait of a call.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DueQuery {
    /// How long to wait for a command, at most a minute.
    wait: Option<Span>,
    /// Maximum number of commands; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct DueCommands {
    commands: Vec<Command>,
    server_time: Timestamp,
}

/// All commands that are due and not received, urgent ones first. Waits for one if asked to.
/// Changes nothing.
#[utoipa::path(get, path = "/v1/agent/commands", tag = "agent", params(DueQuery),
    responses((status = 200, body = DueCommands, description = "The due commands")), security(("token" = ["agent"])))]
pub(super) async fn commands(
    CallingAgent { agent, token }: CallingAgent,
    query: Query<DueQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let wait = query.wait.map_or(Duration::ZERO, |wait| wait.0.min(MAX_WAIT));
    // If too many calls wait already, this one is answered at once.
    let room = api.limits.stream(token);
    let wait = if room.is_ok() { wait } else { Duration::ZERO };
    let due = check_in::due(&api.node, &agent, limit, wait, || api.supervision.is_draining()).await?;
    Ok(HttpResponse::Ok().json(DueCommands { commands: due.commands, server_time: due.server_time }))
}

#[derive(Deserialize, ToSchema)]
pub(super) struct ReceivedBody {
    commands: Vec<RunRef>,
}

/// Confirms that the agent has stored these runs. Answered once that is durable.
#[utoipa::path(post, path = "/v1/agent/received", tag = "agent", request_body = ReceivedBody,
    responses((status = 200, body = Stored, description = "They are recorded")), security(("token" = ["agent"])))]
pub(super) async fn received(
    CallingAgent { agent, .. }: CallingAgent,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (ReceivedBody { commands }, _) = body.at_least(MAX_FRAME).json().await?;
    let stored = check_in::received(&api.node, &api.sessions.context, agent.no, commands).await?;
    Ok(HttpResponse::Ok().json(stored))
}

#[derive(Deserialize, ToSchema)]
pub(super) struct ResultsBody {
    results: Vec<RunResult>,
}

/// Reports results. Answered once they are durable.
#[utoipa::path(post, path = "/v1/agent/results", tag = "agent", request_body = ResultsBody,
    responses((status = 200, body = Stored, description = "The stored results, and the rejected ones")),
    security(("token" = ["agent"])))]
pub(super) async fn results(
    CallingAgent { agent, .. }: CallingAgent,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (ResultsBody { results }, size) = body.at_least(MAX_FRAME).json().await?;
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let room = api.sessions.budget.clone().try_acquire_many_owned(size);
    let _room = room.map_err(|_| ApiError::new(ProblemKind::Unavailable, "too many results are in flight"))?;
    let stored = check_in::results(&api.node, &api.sessions.context, agent.no, results).await?;
    Ok(HttpResponse::Ok().json(stored))
}
