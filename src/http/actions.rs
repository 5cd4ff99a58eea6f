//! `/v1/actions`.

use super::{Api, ApiError, ApiResult, auth, body, limit};
use crate::domain::action::{ActionState, NewAction};
use crate::domain::agent::Role;
use crate::domain::command::CommandState;
use crate::domain::counts::Counts;
use crate::domain::problem::ProblemKind;
use crate::domain::time::Timestamp;
use crate::pipeline::messages::{Cancelled, Resolve, Touched};
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
    let mut action = NewAction::from_json(&document, Uuid::now_v7(), api.store.now())?;
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
    let commands = api.store.command_list(*id, status, query.after.as_deref(), limit).await?;
    let next = (commands.len() == limit).then(|| commands.last().map(|command| command.agent.clone())).flatten();
    Ok(HttpResponse::Ok().json(Commands { commands, next }))
}

/// `POST /v1/actions/{id}/cancel`: final for whatever isn't final. Idempotent.
pub(super) async fn cancel(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Operator).await?;
    let view = api.store.action_cancel(*id).await?.ok_or_else(|| ApiError::not_found(format!("no action {id}")))?;
    api.book.cancel(view.no);
    api.scheduler.try_send(Cancelled(vec![(view.no, view.id)])).ok();
    api.housekeeper.try_send(Touched(vec![view.no])).ok();
    Ok(HttpResponse::Ok().json(Full::from(view)))
}
