//! `/v1/actions`.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::extract::{Body, Operator, Viewer};
use super::lines;
use super::pages::{Page, limit, name};
use super::query::Query;
use crate::domain::action::{ActionState, Document};
use crate::domain::command::CommandState;
use crate::domain::counts::Counts;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::time::Timestamp;
use crate::service::actions::{self, Submitted};
use crate::store::{ActionView, AgentNames, CommandView};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

#[derive(Serialize, ToSchema)]
pub(super) struct ActionSummary {
    id: Uuid,
    name: String,
    status: ActionState,
    created_at: Timestamp,
    counts: Counts,
}

/// An action with its document, defaults filled in.
#[derive(Serialize, ToSchema)]
pub(super) struct Action {
    #[serde(flatten)]
    summary: ActionSummary,
    /// The name of the token that created it, or `spool` or `server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    /// The nominal time of the occurrence, if a schedule made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_for: Option<Timestamp>,
    /// The action whose commands it runs again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_of: Option<Uuid>,
    #[schema(value_type = Document)]
    action: Box<RawValue>,
}

impl From<ActionView> for Action {
    fn from(view: ActionView) -> Self {
        let ActionView { id, name, status, created_at, created_by, scheduled_for, retry_of, counts, document, .. } =
            view;
        let summary = ActionSummary { id, name, status, created_at, counts };
        Self { summary, created_by, scheduled_for, retry_of, action: document }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct AcceptedAction {
    id: Uuid,
    status: ActionState,
}

/// Submits an action. It is accepted once it is durable.
/// Repeating the same id, or the same `Idempotency-Key`, returns the same action.
#[utoipa::path(post, path = "/v1/actions", tag = "actions", request_body(content = Document, description = "The action"),
    params(("Idempotency-Key" = Option<String>, Header, description = "The caller's unique key for this request")),
    responses(
        (status = 202, body = AcceptedAction, description = "The action is durable"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Another action has this id"),
    ), security(("token" = ["operator"])))]
pub(super) async fn create(
    operator: Operator,
    request: HttpRequest,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    if api.supervision.is_draining() {
        return Err(ApiError::new(ProblemKind::Unavailable, "the server is stopping; another one takes this"));
    }
    let key = idempotency_key(&request)?;
    let document = body.read().await?;
    accepted(&api, actions::submit(&api.node, &document, key, operator.author()).await?).await
}

async fn accepted(api: &Api, submitted: Submitted) -> ApiResult<HttpResponse> {
    let status = actions::state_of(&api.node, submitted).await?;
    Ok(HttpResponse::Accepted().json(AcceptedAction { id: submitted.id, status }))
}

/// The request's `Idempotency-Key`, 1 to 255 characters.
pub(super) fn idempotency_key(request: &HttpRequest) -> ApiResult<Option<String>> {
    let Some(header) = request.headers().get("Idempotency-Key") else { return Ok(None) };
    match header.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::bad_request("Idempotency-Key: 1 to 255 visible ASCII characters are expected")),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ActionsQuery {
    /// Only actions in this state.
    #[param(value_type = Option<ActionState>)]
    status: Option<String>,
    /// Only actions whose id begins so, with the dashes.
    #[param(pattern = "^[0-9a-f-]{1,36}$")]
    id: Option<String>,
    /// The page size; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The previous page's `next`.
    after: Option<i64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ActionPage {
    actions: Vec<ActionSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Actions, newest first.
#[utoipa::path(get, path = "/v1/actions", tag = "actions", params(ActionsQuery),
    responses((status = 200, body = ActionPage, description = "A page of actions")), security(("token" = ["viewer"])))]
pub(super) async fn list(_: Viewer, query: Query<ActionsQuery>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let status = query.status.as_deref().map(parse_status).transpose()?;
    let id = query.id.as_deref();
    let is_beginning =
        |id: &str| (1..=36).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    if let Some(id) = id.filter(|id| !is_beginning(id)) {
        return Err(ApiError::bad_request(format!("id: {id:?} is no beginning of an id: 0-9, a-f and dashes")));
    }
    let views = api.node.store.action_list(status, id, query.after, limit).await?;
    let Page { items, next } = Page::new(views, limit, |view| view.no);
    let actions = items.into_iter().map(|view| Action::from(view).summary).collect();
    Ok(HttpResponse::Ok().json(ActionPage { actions, next }))
}

fn parse_status<T: serde::de::DeserializeOwned>(text: &str) -> ApiResult<T> {
    serde_json::from_value(serde_json::Value::from(text))
        .map_err(|error| ApiError::bad_request(format!("status: {error}")))
}

/// An action, its document and its counts.
#[utoipa::path(get, path = "/v1/actions/{id}", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["viewer"])))]
pub(super) async fn show(_: Viewer, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    Ok(HttpResponse::Ok().json(Action::from(actions::show(&api.node, *id).await?)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CommandsQuery {
    /// Only commands in this state.
    #[param(value_type = Option<CommandState>)]
    status: Option<String>,
    /// Only the command of this agent.
    agent: Option<String>,
    /// The page size; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The previous page's `next`.
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CommandPage {
    commands: Vec<CommandView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// An action's commands, by agent name.
/// One page; or all of them as a stream, if the request accepts NDJSON or CSV.
#[utoipa::path(get, path = "/v1/actions/{id}/commands", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id"), CommandsQuery),
    responses((status = 200, description = "A page of commands, or all of them as lines", content(
        (CommandPage = "application/json"), (String = "application/x-ndjson"), (String = "text/csv")))),
    security(("token" = ["viewer"])))]
pub(super) async fn commands(
    viewer: Viewer,
    request: HttpRequest,
    id: web::Path<Uuid>,
    query: Query<CommandsQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let status: Option<CommandState> = query.status.as_deref().map(parse_status).transpose()?;
    let after = name("after", query.after.as_deref())?;
    let agent = name("agent", query.agent.as_deref())?;
    if api.node.store.action_no(*id).await?.is_none() {
        return Err(ApiError::not_found(format!("action {id} not found")));
    }
    if let Some(format) = lines::Format::asked_for(&request) {
        let room = api.limits.stream(viewer.token.id)?;
        let wanted = lines::Wanted { id: *id, status, agent: agent.map(str::to_owned) };
        return lines::commands(api, room, wanted, after.map(str::to_owned), format);
    }
    let agents = agent.map_or(AgentNames::After(after.unwrap_or_default()), AgentNames::Only);
    let commands = api.node.store.command_list(*id, status, agents, limit).await?;
    let Page { items: commands, next } = Page::new(commands, limit, |command| command.agent.clone());
    Ok(HttpResponse::Ok().json(CommandPage { commands, next }))
}

/// Cancels every unfinished command of an action. Idempotent.
#[utoipa::path(post, path = "/v1/actions/{id}/cancel", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["operator"])))]
pub(super) async fn cancel(operator: Operator, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let view = actions::cancel(&api.node, *id, &operator.author()).await?;
    Ok(HttpResponse::Ok().json(Action::from(view)))
}

/// Pauses an action: none of its commands is delivered until it is resumed.
/// Everything else continues. Idempotent.
#[utoipa::path(post, path = "/v1/actions/{id}/pause", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["operator"])))]
pub(super) async fn pause(operator: Operator, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let view = actions::set_paused(&api.node, *id, true, &operator.author()).await?;
    Ok(HttpResponse::Ok().json(Action::from(view)))
}

/// Resumes a paused action. Idempotent.
#[utoipa::path(post, path = "/v1/actions/{id}/resume", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["operator"])))]
pub(super) async fn resume(operator: Operator, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let view = actions::set_paused(&api.node, *id, false, &operator.author()).await?;
    Ok(HttpResponse::Ok().json(Action::from(view)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RetryQuery {
    /// Final states of commands, separated by commas; `failed,timed_out,undeliverable,expired` by
    /// default.
    #[param(
        pattern = "^(succeeded|failed|timed_out|undeliverable|expired|cancelled)(,(succeeded|failed|timed_out|undeliverable|expired|cancelled)){0,5}$"
    )]
    status: Option<String>,
}

/// The states that are retried by default.
const RETRIED: &str = "failed,timed_out,undeliverable,expired";

/// Creates a new action for the agents whose command is now in one of these states.
/// It is the same as the first one except for its times.
#[utoipa::path(post, path = "/v1/actions/{id}/retry", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id"), RetryQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "The caller's unique key for this request")),
    responses((status = 202, body = AcceptedAction, description = "The new action is durable"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "The Idempotency-Key was used for another request")),
    security(("token" = ["operator"])))]
pub(super) async fn retry(
    operator: Operator,
    request: HttpRequest,
    id: web::Path<Uuid>,
    query: Query<RetryQuery>,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let key = idempotency_key(&request)?;
    if !matches!(body.read().await?.as_slice(), b"" | b"{}") {
        return Err(ApiError::bad_request("this call has no body; the states are given as ?status="));
    }
    let states = query.status.as_deref().unwrap_or(RETRIED).split(',').map(|name| {
        let state = CommandState::from_name(name.trim()).filter(|state| state.is_final());
        state.ok_or_else(|| ApiError::bad_request(format!("status: {name:?} is not a final state of a command")))
    });
    let states = states.collect::<ApiResult<Vec<_>>>()?;
    let submitted = actions::retry(&api.node, *id, &states, key, operator.author()).await?;
    accepted(&api, submitted).await
}
