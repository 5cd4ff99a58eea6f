//! Who calls: bearer tokens, looked up by their hash.

use super::{Api, ApiError, ApiResult};
use crate::domain::agent::{AgentRef, Role, Token, hash_of};
use crate::domain::problem::ProblemKind;
use actix_web::HttpRequest;
use actix_web::http::header::AUTHORIZATION;
use uuid::Uuid;

/// The longest token that is looked up.
const MAX_TOKEN: usize = 256;

/// The caller's token, whatever it allows.
pub(super) async fn caller(api: &Api, request: &HttpRequest) -> ApiResult<Token> {
    let unauthorized = |detail: &str| ApiError::new(ProblemKind::Unauthorized, detail);
    let header = request.headers().get(AUTHORIZATION).ok_or_else(|| unauthorized("no Authorization header"))?;
    let text = header.to_str().map_err(|_| unauthorized("the Authorization header is not text"))?;
    let token = text
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN)
        .ok_or_else(|| unauthorized("the Authorization header is not «Bearer TOKEN»"))?;
    let found = api.node.store.token_find(&hash_of(token)).await?;
    let token = found.ok_or_else(|| unauthorized("the token is unknown, expired or revoked"))?;
    api.limits.request(token.id)?;
    // The first use: from here on its enrolling can't be repeated.
    if token.is_unused && !api.node.store.token_use(token.id).await? {
        return Err(unauthorized("the token is unknown, expired or revoked"));
    }
    Ok(token)
}

/// Lets the caller pass if its token allows what needs `role`.
pub(super) async fn needs(api: &Api, request: &HttpRequest, role: Role) -> ApiResult<Token> {
    let token = caller(api, request).await?;
    if token.role.allows(role) {
        Ok(token)
    } else {
        let detail = format!("this needs the role {}; the token has {}", role.as_str(), token.role.as_str());
        Err(ApiError::new(ProblemKind::Forbidden, detail))
    }
}

/// The agent that calls, and its token's id.
pub(super) async fn agent(api: &Api, request: &HttpRequest) -> ApiResult<(AgentRef, Uuid)> {
    let token = needs(api, request, Role::Agent).await?;
    let agent = match token.agent_no {
        Some(no) => api.node.store.agent_get(no).await?,
        None => None,
    };
    agent
        .map(|agent| (agent, token.id))
        .ok_or_else(|| ApiError::new(ProblemKind::Unauthorized, "the token's agent was removed"))
}
