//! `/v1/tokens`.

use super::{Api, ApiError, ApiResult, auth, body, limit};
use crate::domain::agent::{Role, Secret, Token};
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::text::has_nul;
use crate::domain::time::Span;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use uuid::Uuid;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    role: Role,
    #[serde(default)]
    name: String,
    #[serde(default)]
    expires_after: Option<Span>,
}

/// `POST /v1/tokens`: the token itself is in this answer, and nowhere else ever again.
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    let json = body(payload, api.max_body).await?;
    let new: NewToken = serde_json::from_slice(&json).map_err(|error| {
        let kind = if error.is_data() { ProblemKind::InvalidDocument } else { ProblemKind::MalformedJson };
        Problem::new(kind, error.to_string())
    })?;
    let invalid = |detail: &str| Err(Problem::new(ProblemKind::InvalidDocument, detail).into());
    if new.role == Role::Agent {
        return invalid("role: agents get their tokens by enrolling");
    }
    if new.name.chars().count() > 128 {
        return invalid("name: longer than 128 characters");
    }
    if has_nul(&new.name) {
        return invalid("name: holds a NUL character");
    }
    let (secret, now) = (Secret::random(), api.store.now());
    let token = Token {
        id: Uuid::now_v7(),
        role: new.role,
        name: new.name,
        agent_no: None,
        created_at: now,
        expires_at: new.expires_after.map(|span| now.plus(span.0)),
        revoked_at: None,
    };
    api.store.token_insert(&token, secret.hash()).await?;
    log::info!(id:% = token.id, role = token.role.as_str(); "a token was made");
    let mut shown = serde_json::to_value(&token).map_err(ApiError::bad_request)?;
    shown["token"] = secret.reveal().into();
    Ok(HttpResponse::Created().json(shown))
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    after: Option<Uuid>,
}

/// `GET /v1/tokens`: newest first, without the tokens themselves and without those of agents.
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<ListQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    let limit = limit(query.limit)?;
    let tokens = api.store.token_list(query.after, limit).await?;
    let next = (tokens.len() == limit).then(|| tokens.last().map(|token| token.id)).flatten();
    let mut page = serde_json::json!({ "tokens": tokens });
    if let Some(next) = next {
        page["next"] = next.to_string().into();
    }
    Ok(HttpResponse::Ok().json(page))
}

/// `DELETE /v1/tokens/{id}`: from now on it is not valid.
pub(super) async fn revoke(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    if !api.store.token_revoke(*id).await? {
        return Err(ApiError::not_found(format!("no token {id}")));
    }
    log::info!(id:% = id; "a token was revoked");
    Ok(HttpResponse::NoContent().finish())
}
