//! `/v1/actions`.

use super::pages::{Page, after, body, limit};
use super::{Api, ApiError, ApiResult, auth, lines};
use crate::domain::action::{ActionState, Document, NewAction};
use crate::domain::agent::Role;
use crate::domain::audit::Author;
use crate::domain::command::CommandState;
use crate::domain::counts::Counts;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::time::{Span, Timestamp};
use crate::store::{Accepted, ActionView, CommandView};
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
    #[schema(value_type = Document)]
    action: Box<RawValue>,
}

impl From<ActionView> for Action {
    fn from(view: ActionView) -> Self {
        let ActionView { id, name, status, created_at, counts, document, .. } = view;
        Self { summary: ActionSummary { id, name, status, created_at, counts }, action: document }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct AcceptedAction {
    id: Uuid,
    status: ActionState,
}

/// Hands in an action: accepted once it is durable. The same id, or the same `Idempotency-Key`, again is the same action.
#[utoipa::path(post, path = "/v1/actions", tag = "actions", request_body(content = Document, description = "The action"),
    params(("Idempotency-Key" = Option<String>, Header, description = "What the caller calls this request")),
    responses(
        (status = 202, body = AcceptedAction, description = "It is durable"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "The id is taken by an action with other content"),
    ), security(("token" = ["operator"])))]
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let by = auth::needs(&api, &request, Role::Operator).await?;
    if api.supervision.is_draining() {
        return Err(ApiError::new(ProblemKind::Unavailable, "the server is stopping; another one takes this"));
    }
    let key = idempotency_key(&request)?;
    let document = body(payload, api.max_body()).await?;
    submit(&api, &document, key, Author::from(&by)).await
}

/// Stores a document as an action.
async fn submit(api: &Api, document: &[u8], key: Option<String>, by: Author) -> ApiResult<HttpResponse> {
    let mut action = NewAction::from_json(document, Uuid::now_v7(), api.node.store.now())?;
    action.idempotency_key = key;
    action.author = by;
    let id = action.id;
    match api.node.store.action_insert(vec![action]).await?.pop() {
        Some(Accepted::Stored { id, is_new, .. }) => {
            api.node.signals.actions_submitted();
            let known = if fresh { None } else { api.node.store.action_view(id).await? };
            let status = known.map_or(ActionState::Scheduled, |view| view.status);
            Ok(HttpResponse::Accepted().json(AcceptedAction { id, status }))
        }
        Some(Accepted::KeyMismatch) => {
            let detail = "Idempotency-Key: it was used for another document";
            Err(ApiError::new(ProblemKind::IdempotencyMismatch, detail))
        }
        Some(Accepted::Conflict) | None => {
            let detail = format!("id: {id} is taken by an action with other content");
            Err(ApiError::new(ProblemKind::Conflict, detail))
        }
    }
}

/// What the caller calls this request, 1 to 255 characters.
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
    /// Only those in this state.
    #[param(value_type = Option<ActionState>)]
    status: Option<String>,
    /// The size of the page, 100 if not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The last page's `next`.
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
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<ActionsQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let limit = limit(query.limit)?;
    let status = query.status.as_deref().map(parse_status).transpose()?;
    let views = api.node.store.action_list(status, query.after, limit).await?;
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
pub(super) async fn show(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let view = api.node.store.action_view(*id).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    Ok(HttpResponse::Ok().json(Action::from(view)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CommandsQuery {
    /// Only those in this state.
    #[param(value_type = Option<CommandState>)]
    status: Option<String>,
    /// The size of the page, 100 if not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The last page's `next`.
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CommandPage {
    commands: Vec<CommandView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// An action's commands, by agent name: a page, or, if the request accepts NDJSON or CSV, all of them as a stream.
#[utoipa::path(get, path = "/v1/actions/{id}/commands", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id"), CommandsQuery),
    responses((status = 200, description = "A page of commands, or all of them as lines", content(
        (CommandPage = "application/json"), (String = "application/x-ndjson"), (String = "text/csv")))),
    security(("token" = ["viewer"])))]
pub(super) async fn commands(
    request: HttpRequest,
    id: web::Path<Uuid>,
    query: web::Query<CommandsQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let token = auth::needs(&api, &request, Role::Viewer).await?;
    let limit = limit(query.limit)?;
    let status: Option<CommandState> = query.status.as_deref().map(parse_status).transpose()?;
    let after = after(query.after.as_deref())?;
    if api.node.store.action_no(*id).await?.is_none() {
        return Err(ApiError::not_found(format!("no action {id}")));
    }
    if let Some(format) = lines::Format::asked_for(&request) {
        let room = api.limits.stream(token.id)?;
        return lines::commands(api, room, *id, status, after.map(str::to_owned), format);
    }
    let commands = api.node.store.command_list(*id, status, after, limit).await?;
    let Page { items: commands, next } = Page::new(commands, limit, |command| command.agent.clone());
    Ok(HttpResponse::Ok().json(CommandPage { commands, next }))
}

/// Cancels an action: final for whatever isn't final. Idempotent.
#[utoipa::path(post, path = "/v1/actions/{id}/cancel", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["operator"])))]
pub(super) async fn cancel(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Operator).await?);
    let view =
        api.node.store.action_cancel(*id, &by).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    api.node.signals.action_cancelled(view.no, view.id);
    Ok(HttpResponse::Ok().json(Action::from(view)))
}

/// Pauses an action: nothing of it is delivered until it is resumed; all else goes on. Idempotent.
#[utoipa::path(post, path = "/v1/actions/{id}/pause", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["operator"])))]
pub(super) async fn pause(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    set_paused(request, *id, api, true).await
}

/// Lets a paused action go on. Idempotent.
#[utoipa::path(post, path = "/v1/actions/{id}/resume", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id")),
    responses((status = 200, body = Action, description = "The action")),
    security(("token" = ["operator"])))]
pub(super) async fn resume(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    set_paused(request, *id, api, false).await
}

async fn set_paused(request: HttpRequest, id: Uuid, api: web::Data<Api>, paused: bool) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Operator).await?);
    let view = api
        .node
        .store
        .action_pause(id, paused, &by)
        .await?
        .ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    if view.status == ActionState::Paused {
        api.node.signals.action_paused(view.no);
    } else {
        api.node.signals.action_resumed(view.no);
    }
    Ok(HttpResponse::Ok().json(Action::from(view)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RetryQuery {
    /// Final states of commands, with commas between; `failed,timed_out,undeliverable,expired` if not given.
    #[param(
        pattern = "^(succeeded|failed|timed_out|undeliverable|expired|cancelled)(,(succeeded|failed|timed_out|undeliverable|expired|cancelled)){0,5}$"
    )]
    status: Option<String>,
}

/// The states that are tried again when the caller names none.
const RETRIED: &str = "failed,timed_out,undeliverable,expired";

/// Makes a new action, the same but for its time, for the agents whose command is in one of these states now.
#[utoipa::path(post, path = "/v1/actions/{id}/retry", tag = "actions",
    params(("id" = Uuid, Path, description = "The action's id"), RetryQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "What the caller calls this request")),
    responses((status = 202, body = AcceptedAction, description = "The new action is durable"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "The Idempotency-Key was used for something else")),
    security(("token" = ["operator"])))]
pub(super) async fn retry(
    request: HttpRequest,
    id: web::Path<Uuid>,
    query: web::Query<RetryQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let by = auth::needs(&api, &request, Role::Operator).await?;
    let key = idempotency_key(&request)?;
    let states = query.status.as_deref().unwrap_or(RETRIED).split(',').map(|name| {
        let state = CommandState::from_name(name.trim()).filter(|state| state.is_final());
        state.ok_or_else(|| ApiError::bad_request(format!("status: {name:?} is not a final state of a command")))
    });
    let states = states.collect::<ApiResult<Vec<_>>>()?;
    let view = api.node.store.action_view(*id).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    let mut document: serde_json::Map<String, serde_json::Value> = serde_json::from_str(view.document.get())
        .map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))?;
    let time = |key: &str| document.get(key)?.as_str().and_then(|text| Timestamp::parse(text).ok());
    let lasts = time("expires_at").zip(time("valid_from")).map(|(end, start)| Span(end.since(start)));
    ["id", "valid_from", "expires_at"].into_iter().for_each(|key| drop(document.remove(key)));
    if let Some(lasts) = lasts {
        document.insert("expires_after".into(), lasts.to_string().into());
    }
    let of = states.into_iter().map(|state| format!("action('{id}') = '{}'", state.as_str()));
    document.insert("target".into(), of.collect::<Vec<_>>().join(" OR ").into());
    submit(&api, serde_json::Value::from(document).to_string().as_bytes(), key, Author::from(&by)).await
}
