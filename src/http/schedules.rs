//! `/v1/schedules`.

use super::actions::idempotency_key;
use super::api::Api;
use super::error::{ApiError, ApiResult};
use super::extract::{Body, Operator, Viewer};
use super::pages::{Page, limit, name};
use super::query::Query;
use crate::domain::action::ActionState;
use crate::domain::problem::Problem;
use crate::domain::schedule::{Document, Dropped, Upcoming, ZoneInfo};
use crate::domain::time::{Span, Timestamp};
use crate::service::schedules::{self, Expected};
use crate::store::{OccurrenceView, ScheduleTag, ScheduleView};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Previewed occurrences by default, and at most.
const PREVIEWED: usize = 10;
const MAX_PREVIEWED: usize = 1_000;

/// The part of a document that says when.
#[derive(Deserialize, Serialize, ToSchema)]
pub(super) struct When {
    /// A cron pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    /// The time zone of the pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    /// The time between two occurrences.
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<Span>,
    /// The time of the only occurrence.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ScheduleSummary {
    name: String,
    #[serde(flatten)]
    when: When,
    paused: bool,
    /// The next occurrence; absent while it is paused, and when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<Timestamp>,
    /// The last occurrence that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<Timestamp>,
    /// Why no occurrence can be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    created_at: Timestamp,
    /// The name of the token that created it.
    created_by: String,
    /// When it was last changed.
    changed_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Occurrence {
    /// Its nominal time.
    at: Timestamp,
    /// Whether an operator triggered it.
    triggered: bool,
    made_at: Timestamp,
    /// The id of its action; absent once the action is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Uuid>,
    /// The state of its action.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ActionState>,
}

/// A schedule with its document, defaults filled in.
#[derive(Serialize, ToSchema)]
pub(super) struct Schedule {
    #[serde(flatten)]
    summary: ScheduleSummary,
    /// The newest occurrences, newest first.
    occurrences: Vec<Occurrence>,
    /// The newest ranges of occurrences that were missed or skipped, newest first.
    missed: Vec<Dropped>,
    #[schema(value_type = Document)]
    schedule: Box<RawValue>,
}

fn corrupt(error: &serde_json::Error) -> ApiError {
    log::error!(error:% = error; "a schedule's document can't be read");
    ApiError::new(crate::domain::problem::ProblemKind::Internal, "the server failed; its log says why")
}

impl ScheduleSummary {
    fn new(view: &ScheduleView) -> ApiResult<Self> {
        Ok(Self {
            name: view.name.clone(),
            when: serde_json::from_str(&view.document).map_err(|error| corrupt(&error))?,
            paused: view.paused,
            next_at: view.next_at,
            last_at: view.last_at,
            error: view.error.clone(),
            created_at: view.created_at,
            created_by: view.created_by.clone(),
            changed_at: view.changed_at,
        })
    }
}

impl From<OccurrenceView> for Occurrence {
    fn from(view: OccurrenceView) -> Self {
        let OccurrenceView { at, triggered, made_at, action } = view;
        let (action, status) = action.unzip();
        Self { at, triggered, made_at, action, status }
    }
}

fn etag(tag: ScheduleTag) -> String {
    format!("\"{}-{}\"", tag.no, tag.version)
}

/// What the request's `If-Match` or `If-None-Match` asks for.
fn expected(request: &HttpRequest) -> ApiResult<Expected> {
    let header = |name: &str| {
        let header = request.headers().get(name).map(|header| header.to_str().map(str::trim));
        header.transpose().map_err(|_| ApiError::bad_request(format!("{name}: an entity tag is expected")))
    };
    match (header("If-Match")?, header("If-None-Match")?) {
        (None, None) => Ok(Expected::Any),
        (None, Some("*")) => Ok(Expected::Absent),
        (_, Some(_)) => Err(ApiError::bad_request("If-None-Match: only * is understood, and not beside If-Match")),
        (Some("*"), None) => Ok(Expected::Exists),
        (Some(text), None) => Ok(Expected::Is(tag_of(text))),
    }
}

fn tag_of(text: &str) -> Option<ScheduleTag> {
    let (no, version) = text.strip_prefix('"')?.strip_suffix('"')?.split_once('-')?;
    Some(ScheduleTag { no: no.parse().ok()?, version: version.parse().ok()? })
}

/// The answer with a schedule and its entity tag.
async fn answer(mut response: HttpResponseBuilder, api: &Api, name: &str) -> ApiResult<HttpResponse> {
    let schedules::Shown { view, occurrences, dropped } = schedules::show(&api.node, name).await?;
    // `paused` is kept apart from the rest of the document.
    let document = view.document.replacen('{', &format!("{{\"paused\":{},", view.paused), 1);
    let schedule = Schedule {
        summary: ScheduleSummary::new(&view)?,
        occurrences: occurrences.into_iter().map(Occurrence::from).collect(),
        missed: dropped,
        schedule: RawValue::from_string(document).map_err(|error| corrupt(&error))?,
    };
    Ok(response.insert_header(("ETag", etag(view.tag))).json(schedule))
}

/// Creates a schedule.
#[utoipa::path(post, path = "/v1/schedules", tag = "schedules", request_body(content = Document, description = "The schedule"),
    responses((status = 201, body = Schedule, description = "The schedule"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The name is taken")),
    security(("token" = ["operator"])))]
pub(super) async fn create(operator: Operator, body: Body, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let view = schedules::create(&api.node, &body.read().await?, &operator.author()).await?;
    let mut response = HttpResponse::Created();
    response.insert_header(("Location", format!("/v1/schedules/{}", view.name)));
    answer(response, &api, &view.name).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SchedulesQuery {
    /// The page size; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The previous page's `next`.
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct SchedulePage {
    schedules: Vec<ScheduleSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Schedules, by name.
#[utoipa::path(get, path = "/v1/schedules", tag = "schedules", params(SchedulesQuery),
    responses((status = 200, body = SchedulePage, description = "A page of schedules")), security(("token" = ["viewer"])))]
pub(super) async fn list(_: Viewer, query: Query<SchedulesQuery>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let views = api.node.store.schedule_list(name("after", query.after.as_deref())?, limit).await?;
    let Page { items, next } = Page::new(views, limit, |view| view.name.clone());
    let schedules = items.iter().map(ScheduleSummary::new).collect::<ApiResult<_>>()?;
    Ok(HttpResponse::Ok().json(SchedulePage { schedules, next }))
}

/// A schedule, its last occurrences with their actions, and what was missed.
#[utoipa::path(get, path = "/v1/schedules/{name}", tag = "schedules", params(("name" = String, Path, description = "The schedule's name")),
    responses((status = 200, body = Schedule, description = "The schedule; `ETag` is for `If-Match`")),
    security(("token" = ["viewer"])))]
pub(super) async fn show(_: Viewer, name: web::Path<String>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    answer(HttpResponse::Ok(), &api, &name).await
}

/// Creates a schedule, or replaces the one of this name.
/// What was due before, and was not made, is neither made nor missed. The same document again
/// changes nothing. Without `paused`, a schedule that is paused stays so.
#[utoipa::path(put, path = "/v1/schedules/{name}", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` of the schedule to replace"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none of this name")),
    request_body(content = Document, description = "The schedule"),
    responses((status = 200, body = Schedule, description = "The schedule was replaced"),
        (status = 201, body = Schedule, description = "The schedule was created"),
        (status = 412, body = Problem, content_type = "application/problem+json",
            description = "It is not what If-Match or If-None-Match says")),
    security(("token" = ["operator"])))]
pub(super) async fn put(
    operator: Operator,
    request: HttpRequest,
    name: web::Path<String>,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let expected = expected(&request)?;
    let document = body.read().await?;
    let is_new = schedules::put(&api.node, &name, &document, expected, &operator.author()).await?;
    let response = if is_new { HttpResponse::Created() } else { HttpResponse::Ok() };
    answer(response, &api, &name).await
}

/// Removes a schedule. Its actions stay.
#[utoipa::path(delete, path = "/v1/schedules/{name}", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name"), ("If-Match" = Option<String>, Header, description = "The `ETag` that the schedule must have")),
    responses((status = 204, description = "The schedule is removed"), (status = 412, body = Problem, content_type = "application/problem+json",
            description = "It is not what If-Match says")), security(("token" = ["operator"])))]
pub(super) async fn remove(
    operator: Operator,
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    schedules::remove(&api.node, &name, expected(&request)?, &operator.author()).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Pauses a schedule: it makes no occurrences until it is resumed. Idempotent.
#[utoipa::path(post, path = "/v1/schedules/{name}/pause", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name"), ("If-Match" = Option<String>, Header, description = "The `ETag` that the schedule must have")),
    responses((status = 200, body = Schedule, description = "The schedule"), (status = 412, body = Problem, content_type = "application/problem+json",
            description = "It is not what If-Match says")), security(("token" = ["operator"])))]
pub(super) async fn pause(
    operator: Operator,
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    schedules::set_paused(&api.node, &name, true, expected(&request)?, &operator.author()).await?;
    answer(HttpResponse::Ok(), &api, &name).await
}

/// Resumes a paused schedule. What fell into the pause is not missed. Idempotent.
#[utoipa::path(post, path = "/v1/schedules/{name}/resume", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name"), ("If-Match" = Option<String>, Header, description = "The `ETag` that the schedule must have")),
    responses((status = 200, body = Schedule, description = "The schedule"), (status = 412, body = Problem, content_type = "application/problem+json",
            description = "It is not what If-Match says")), security(("token" = ["operator"])))]
pub(super) async fn resume(
    operator: Operator,
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    schedules::set_paused(&api.node, &name, false, expected(&request)?, &operator.author()).await?;
    answer(HttpResponse::Ok(), &api, &name).await
}

#[derive(Serialize, ToSchema)]
pub(super) struct Triggered {
    /// The id of the occurrence's action.
    action: Uuid,
}

/// Makes an occurrence now, whether the schedule is paused or its last action still runs.
#[utoipa::path(post, path = "/v1/schedules/{name}/trigger", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name"),
        ("Idempotency-Key" = Option<String>, Header, description = "The caller's unique key for this request"), ("If-Match" = Option<String>, Header, description = "The `ETag` that the schedule must have")),
    responses((status = 202, body = Triggered, description = "The occurrence's action is durable"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "The action is not valid now, or the Idempotency-Key was used for another request"), (status = 412, body = Problem, content_type = "application/problem+json",
            description = "It is not what If-Match says")),
    security(("token" = ["operator"])))]
pub(super) async fn trigger(
    operator: Operator,
    request: HttpRequest,
    name: web::Path<String>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let key = idempotency_key(&request)?;
    let action = schedules::trigger(&api.node, &name, key, expected(&request)?, &operator.author()).await?;
    Ok(HttpResponse::Accepted().json(Triggered { action }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PreviewQuery {
    /// How many occurrences; 10 by default.
    #[param(minimum = 1, maximum = 1000)]
    count: Option<usize>,
    /// Only later ones; now by default.
    after: Option<Timestamp>,
}

impl PreviewQuery {
    fn count(&self) -> ApiResult<usize> {
        match self.count.unwrap_or(PREVIEWED) {
            count @ 1..=MAX_PREVIEWED => Ok(count),
            other => Err(ApiError::bad_request(format!("count: {other} is not between 1 and {MAX_PREVIEWED}"))),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct SchedulePreview {
    /// The next occurrences, and between them those that a clock change skips (`at` is null).
    occurrences: Vec<Upcoming>,
    /// The zone data by which they were computed.
    tzdata: ZoneInfo,
}

impl From<schedules::Preview> for SchedulePreview {
    fn from(preview: schedules::Preview) -> Self {
        let schedules::Preview { occurrences, tzdata } = preview;
        Self { occurrences, tzdata }
    }
}

/// The next occurrences of a schedule, as if it were not paused.
#[utoipa::path(get, path = "/v1/schedules/{name}/preview", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name"), PreviewQuery),
    responses((status = 200, body = SchedulePreview, description = "The next occurrences")),
    security(("token" = ["viewer"])))]
pub(super) async fn preview_stored(
    _: Viewer,
    name: web::Path<String>,
    query: Query<PreviewQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let preview = schedules::preview_stored(&api.node, &name, query.after, query.count()?).await?;
    Ok(HttpResponse::Ok().json(SchedulePreview::from(preview)))
}

/// The next occurrences of a schedule that is not stored.
#[utoipa::path(post, path = "/v1/schedules/preview", tag = "schedules", params(PreviewQuery),
    request_body(content = Document, description = "The schedule"),
    responses((status = 200, body = SchedulePreview, description = "The next occurrences")),
    security(("token" = ["operator"])))]
pub(super) async fn preview(
    _: Operator,
    query: Query<PreviewQuery>,
    body: Body,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let count = query.count()?;
    let document = body.read().await?;
    let preview = schedules::preview(&api.node, &document, query.after, count)?;
    Ok(HttpResponse::Ok().json(SchedulePreview::from(preview)))
}
