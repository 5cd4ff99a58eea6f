//! Bearer tokens, looked up by their hash.

use super::api::Api;
use super::error::{ApiError, ApiResult};
use crate::domain::agent::{Role, hash_of};
use crate::domain::problem::ProblemKind;
use crate::service::tokens;
use crate::store::Holder;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{HttpMessage, HttpRequest};
use uuid::Uuid;

/// Longer tokens are not looked up.
const MAX_TOKEN: usize = 256;

/// The caller's token, whatever its role, and the agent that it belongs to.
pub(super) async fn caller(api: &Api, request: &HttpRequest) -> ApiResult<Holder> {
    let unauthorized = |detail: &str| ApiError::new(ProblemKind::Unauthorized, detail);
    let header = request.headers().get(AUTHORIZATION).ok_or_else(|| unauthorized("no Authorization header"))?;
    let text = header.to_str().map_err(|_| unauthorized("the Authorization header is not text"))?;
    let token = text
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN)
        .ok_or_else(|| unauthorized("the Authorization header is not «Bearer TOKEN»"))?;
    let unknown = || unauthorized("the token is unknown, expired or revoked");
    let (hash, address) = (hash_of(token), request.peer_addr().map(|address| address.ip().to_canonical()));
    let lookup = api.known_tokens.look_up(&hash, address).await?.ok_or_else(unknown)?;
    let Some(holder) = api.node.store.token_find(&hash).await? else {
        api.known_tokens.is_unknown(hash, address);
        return Err(unknown());
    };
    drop(lookup);
    api.known_tokens.is_valid(hash);
    let token = &holder.token;
    api.limits.request(token.id)?;
    request.extensions_mut().insert(CallerId(token.id));
    if tokens::note_use(&api.node, token).await? { Ok(holder) } else { Err(unknown()) }
}

/// The id of the token of a call whose token was found.
struct CallerId(Uuid);

/// The id of the caller's token; that of nobody before it was looked up.
pub(super) fn caller_id(request: &HttpRequest) -> Uuid {
    request.extensions().get::<CallerId>().map_or(Uuid::nil(), |CallerId(id)| *id)
}

/// The same, if the token's role allows calls that need `role`.
pub(super) async fn needs(api: &Api, request: &HttpRequest, role: Role) -> ApiResult<Holder> {
    let holder = caller(api, request).await?;
    let token = &holder.token;
    if token.role.allows(role) {
        Ok(holder)
    } else {
        let detail = format!("this needs the role {}; the token has {}", role.as_str(), token.role.as_str());
        Err(ApiError::new(ProblemKind::Forbidden, detail))
    }
}
