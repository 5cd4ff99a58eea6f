//! `/v1/tokens`.

use super::api::Api;
use super::error::ApiResult;
use super::extract::{Admin, JsonBody};
use super::pages::{Page, limit};
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
pub(super) async fn create(admin: Admin, body: JsonBody<NewToken>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let NewToken { role, name, expires_after } = body.read().await?;
    let made = tokens::make(&api.node, role, name, expires_after, &admin.author()).await?;
    Ok(HttpResponse::Created().json(MadeToken { made: made.token, token: made.secret.reveal().to_owned() }))
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
pub(super) async fn list(_: Admin, query: web::Query<TokensQuery>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
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
pub(super) async fn revoke(admin: Admin, id: web::Path<Uuid>, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    tokens::revoke(&api.node, *id, &admin.author()).await?;
    Ok(HttpResponse::NoContent().finish())
}
