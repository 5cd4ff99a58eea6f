//! `/v1/tokens`.

use super::api::Api;
use super::error::ApiResult;
use super::extract::{Admin, JsonBody};
use super::pages::{Page, limit};
use super::query::Query;
use crate::domain::agent::{Role, Token};
use crate::domain::problem::Problem;
use crate::domain::time::Span;
use crate::service::tokens;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// The token's role.
    #[schema(value_type = String, pattern = "^(viewer|operator|admin|enroll)$", example = "viewer")]
    role: Role,
    /// A name for people.
    #[serde(default)]
    #[schema(max_length = 128)]
    name: String,
    /// How long it is valid; for ever if not given.
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

/// Creates a token. It is shown once, in this answer.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken,
    responses((status = 201, body = MadeToken, description = "The token")), security(("token" = ["admin"])))]
pub(super) async fn create(admin: Admin, body: JsonBody<NewToken>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let NewToken { role, name, expires_after } = body.read().await?;
    let made = tokens::make(&api.node, role, name, expires_after, &admin.author()).await?;
    Ok(HttpResponse::Created().json(MadeToken { made: made.token, token: made.secret.reveal().to_owned() }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TokensQuery {
    /// The page size; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The previous page's `next`.
    after: Option<Uuid>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TokenPage {
    tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Tokens, newest first, without their secrets and without agents' tokens.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(TokensQuery),
    responses((status = 200, body = TokenPage, description = "A page of tokens")), security(("token" = ["admin"])))]
pub(super) async fn list(_: Admin, query: Query<TokensQuery>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let limit = limit(query.limit)?;
    let Page { items: tokens, next } =
        Page::new(api.node.store.token_list(query.after, limit).await?, limit, |token| token.id);
    Ok(HttpResponse::Ok().json(TokenPage { tokens, next }))
}

/// Revokes a token. From now on it is not valid.
/// The last admin token can't be revoked: only `odoshi token reset` on the server's machine could
/// replace it.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = Uuid, Path, description = "Its id")),
    responses((status = 204, description = "The token is revoked"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "This is the last admin token: create another one first")), security(("token" = ["admin"])))]
pub(super) async fn revoke(admin: Admin, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    tokens::revoke(&api.node, *id, &admin.author()).await?;
    Ok(HttpResponse::NoContent().finish())
}
