//! `/v1/actions`.

use super::{Api, ApiError, ApiResult, auth, body, limit, lines};
use crate::domain::action::{ActionState, NewAction};
use crate::domain::agent::Role;
use crate::domain::command::CommandState;
use crate::domain::counts::Counts;
use crate::domain::problem::ProblemKind;
use crate::domain::time::{Span, Timestamp};
use crate::pipeline::messages::{Cancelled, Resolve, Resumed, Touched};
use crate::store::{Accepted, ActionView, CommandView};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

#[derive(Serialize)]
struct Summary {
    id: Uuid,
    name: String,
    status: ActionState,
    created_at: Timestamp,
    counts: Counts,
}

#[derive(Serialize)]
struct Full {
    #[serde(flatten)]
    summary: Summary,
    action: Box<RawValue>,
}

impl From<ActionView> for Full {
    fn from(view: ActionView) -> Self {
        let ActionView { id, name, status, created_at, counts, document, .. } = view;
        Self { summary: Summary { id, name, status, created_at, counts }, action: document }
    }
}

/// `POST /v1/actions`: `202` once it is durable.
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    if api.supervision.is_draining() {
        return Err(ApiError::new(ProblemKind::Unavailable, "the server is stopping; another one takes this"));
    }
    let key = idempotency_key(&request)?;
    let document = body(payload, api.max_body).await?;
    submit(&api, &document, key).await
}

/// Stores a document as an action.
async fn submit(api: &Api, document: &[u8], key: Option<String>) -> ApiResult<HttpResponse> {
    let mut action = NewAction::from_json(document, Uuid::now_v7(), api.store.now())?;
    action.idempotency_key = key;
    let id = action.id;
    match api.store.action_insert(vec![action]).await?.pop() {
        Some(Accepted::Stored { id, .. }) => {
            api.resolver.try_send(Resolve).ok();
            let view = api.store.action_view(id).await?;
            let status = view.map_or(ActionState::Scheduled, |view| view.status);
            Ok(HttpResponse::Accepted().json(serde_json::json!({ "id": id, "status": status })))
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
fn idempotency_key(request: &HttpRequest) -> ApiResult<Option<String>> {
    let Some(header) = request.headers().get("Idempotency-Key") else { return Ok(None) };
    match header.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::bad_request("Idempotency-Key: 1 to 255 visible ASCII characters are expected")),
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    status: Option<String>,
    limit: Option<usize>,
    after: Option<i64>,
}

#[derive(Serialize)]
struct Actions {
    actions: Vec<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// `GET /v1/actions`: newest first.
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<ListQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let limit = limit(query.limit)?;
    let status = query.status.as_deref().map(parse_status).transpose()?;
    let views = api.store.action_list(status, query.after, limit).await?;
    let next = (views.len() == limit).then(|| views.last().map(|view| view.no)).flatten();
    let actions = views.into_iter().map(|view| Full::from(view).summary).collect();
    Ok(HttpResponse::Ok().json(Actions { actions, next: next.map(|next| next.to_string()) }))
}

fn parse_status<T: serde::de::DeserializeOwned>(text: &str) -> ApiResult<T> {
    serde_json::from_value(serde_json::Value::from(text))
        .map_err(|error| ApiError::bad_request(format!("status: {error}")))
}

/// `GET /v1/actions/{id}`.
pub(super) async fn show(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let view = api.store.action_view(*id).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    Ok(HttpResponse::Ok().json(Full::from(view)))
}

#[derive(Deserialize)]
pub(super) struct CommandsQuery {
    status: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
struct Commands {
    commands: Vec<CommandView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// `GET /v1/actions/{id}/commands`: by agent name.
pub(super) async fn commands(
    request: HttpRequest,
    id: web::Path<Uuid>,
    query: web::Query<CommandsQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Viewer).await?;
    let limit = limit(query.limit)?;
    let status: Option<CommandState> = query.status.as_deref().map(parse_status).transpose()?;
    if api.store.action_no(*id).await?.is_none() {
        return Err(ApiError::not_found(format!("no action {id}")));
    }
    if let Some(format) = lines::Format::asked_for(&request) {
        return lines::commands(api, *id, status, query.into_inner().after, format);
    }
    let commands = api.store.command_list(*id, status, query.after.as_deref(), limit).await?;

    let next = (commands.len() == limit).then(|| commands.last().map(|command| command.agent.clone())).flatten();
    Ok(HttpResponse::Ok().json(Commands { commands, next }))
}

/// `POST /v1/actions/{id}/cancel`: final for whatever isn't final. Idempotent.
pub(super) async fn cancel(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    let view = api.store.action_cancel(*id).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    api.book.cancel(view.no);
    api.notifier.notify();

    api.scheduler.try_send(Cancelled(vec![(view.no, view.id)])).ok();
    api.housekeeper.try_send(Touched(vec![view.no])).ok();
    Ok(HttpResponse::Ok().json(Full::from(view)))
}

/// `POST /v1/actions/{id}/pause`: nothing of it is handed over until it is resumed; all else goes on. Idempotent.
pub(super) async fn pause(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    set_paused(request, *id, api, true).await
}

/// `POST /v1/actions/{id}/resume`. Idempotent.
pub(super) async fn resume(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    set_paused(request, *id, api, false).await
}

async fn set_paused(request: HttpRequest, id: Uuid, api: web::Data<Api>, paused: bool) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    let view =
        api.store.action_pause(id, paused).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    api.book.pause(view.no, view.status == ActionState::Paused);
    api.notifier.notify();

    if !paused {
        api.scheduler.try_send(Resumed(vec![view.no])).ok();
    }
    Ok(HttpResponse::Ok().json(Full::from(view)))
}

#[derive(Deserialize)]
pub(super) struct RetryQuery {
    status: Option<String>,
}

/// The states that are tried again when the caller names none.
const RETRIED: &str = "failed,timed_out,undeliverable,expired";

/// `POST /v1/actions/{id}/retry`: a new action, the same but for its time, for the agents whose command is in one of these
/// states now.
pub(super) async fn retry(
    request: HttpRequest,
    id: web::Path<Uuid>,
    query: web::Query<RetryQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    let key = idempotency_key(&request)?;
    let states = query.status.as_deref().unwrap_or(RETRIED).split(',').map(|name| {
        let state = CommandState::from_name(name.trim()).filter(|state| state.is_final());
        state.ok_or_else(|| ApiError::bad_request(format!("status: {name:?} is not a final state of a command")))
    });
    let states = states.collect::<ApiResult<Vec<_>>>()?;
    let view = api.store.action_view(*id).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
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
    submit(&api, serde_json::Value::from(document).to_string().as_bytes(), key).await
}
