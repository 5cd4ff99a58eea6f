//! `/v1/tokens`.

use super::pages::{Page, json, limit};
use super::{Api, ApiError, ApiResult, auth};
use crate::domain::agent::{Role, Secret, Token};
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::text::has_nul;
use crate::domain::time::Span;
use crate::store::Revoked;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// What it allows.
    #[schema(value_type = String, pattern = "^(viewer|operator|admin|enroll)$", example = "viewer")]
    role: Role,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 128)]
    name: String,
    /// From now; for ever, if not given.
    #[serde(default)]
    expires_after: Option<Span>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct MadeToken {
    #[serde(flatten)]
    made: Token,
    /// The token itself.
    token: String,
}

/// Makes a token, which is in this answer, and nowhere else ever again.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken,
    responses((status = 201, body = MadeToken, description = "The token")), security(("token" = ["admin"])))]
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Admin).await?);
    let (new, _) = json::<NewToken>(payload, api.max_body()).await?;
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
    let (secret, now) = (Secret::random(), api.node.store.now());
    let token = Token {
        id: Uuid::now_v7(),
        role: new.role,
        name: new.name,
        agent_no: None,
        created_at: now,
        expires_at: new.expires_after.map(|span| now.plus(span.0)),
        revoked_at: None,
        is_unused: false,
    };
    api.node.store.token_insert(&token, secret.hash(), &by).await?;
    log::info!(id:% = token.id, role = token.role.as_str(); "a token was made");
    Ok(HttpResponse::Created().json(MadeToken { made: token, token: secret.reveal().to_owned() }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TokensQuery {
    /// The size of the page, 100 if not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The last page's `next`.
    after: Option<Uuid>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TokenPage {
    tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Tokens, newest first, without the tokens themselves and without those of agents.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(TokensQuery),
    responses((status = 200, body = TokenPage, description = "A page of tokens")), security(("token" = ["admin"])))]
pub(super) async fn list(
    request: HttpRequest,
    query: web::Query<TokensQuery>,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    auth::needs(&api, &request, Role::Admin).await?;
    let limit = limit(query.limit)?;
    let Page { items: tokens, next } =
        Page::new(api.node.store.token_list(query.after, limit).await?, limit, |token| token.id);
    Ok(HttpResponse::Ok().json(TokenPage { tokens, next }))
}

/// Revokes a token: from now on it is not valid. The last admin token stays: `odoshi token reset` on the server's machine
/// would be the only way back.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = Uuid, Path, description = "Its id")),
    responses((status = 204, description = "It is revoked"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "It is the last admin token: make another one first")), security(("token" = ["admin"])))]
pub(super) async fn revoke(request: HttpRequest, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let by = Author::from(&auth::needs(&api, &request, Role::Admin).await?);
    match api.node.store.token_revoke(*id, &by).await? {
        Revoked::Done => {}
        Revoked::Unknown => return Err(ApiError::not_found(format!("no token {id}"))),
        Revoked::LastAdmin => {
            let detail = "it is the last admin token, or the others end before it; make another one first";
            return Err(ApiError::new(ProblemKind::Conflict, detail));
        }
    }
    log::info!(id:% = id; "a token was revoked");
    Ok(HttpResponse::NoContent().finish())
}
