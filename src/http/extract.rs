//! Extractors of the handlers: callers with the role they need, calling agents, and JSON bodies.

use super::api::Api;
use super::auth;
use super::body::{Encoding, json, read};
use super::body_room::BodyRoom;
use super::error::{ApiError, ApiResult};
use crate::domain::agent::{AgentRef, Role, Token};
use crate::domain::audit::Author;
use crate::domain::json::from_object;
use crate::domain::problem::ProblemKind;
use crate::store::Holder;
use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use uuid::Uuid;

/// The shared state of the handlers.
pub(super) fn api(request: &HttpRequest) -> ApiResult<&web::Data<Api>> {
    let missing = || ApiError::new(ProblemKind::Internal, "the server failed; its log says why");
    request.app_data::<web::Data<Api>>().ok_or_else(missing)
}

/// The address that a call comes from. Behind a proxy it is the proxy's: what the proxy says is anybody's claim.
pub(super) fn address(request: &HttpRequest) -> Option<String> {
    request.peer_addr().map(|address| address.ip().to_canonical().to_string())
}

/// The role that a handler needs.
pub(super) trait Needs: 'static {
    const ROLE: Role;
}

/// The role for reading.
pub(super) struct ToView;
/// The role for submitting and controlling actions.
pub(super) struct ToOperate;
/// The role for changing agents and tokens.
pub(super) struct ToAdminister;

impl Needs for ToView {
    const ROLE: Role = Role::Viewer;
}

impl Needs for ToOperate {
    const ROLE: Role = Role::Operator;
}

impl Needs for ToAdminister {
    const ROLE: Role = Role::Admin;
}

/// A caller whose token has the role that `R` needs.
pub(super) struct Caller<R> {
    pub(super) token: Token,
    address: Option<String>,
    role: PhantomData<R>,
}

/// May read.
pub(super) type Viewer = Caller<ToView>;
/// May submit and control actions.
pub(super) type Operator = Caller<ToOperate>;
/// May change agents and tokens.
pub(super) type Admin = Caller<ToAdminister>;

impl<R> Caller<R> {
    /// The caller as an author in the audit log.
    pub(super) fn author(&self) -> Author {
        Author { address: self.address.clone(), ..Author::from(&self.token) }
    }
}

impl<R: Needs> FromRequest for Caller<R> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, ApiResult<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let token = auth::needs(api(&request)?, &request, R::ROLE).await?.token;
            Ok(Self { token, address: address(&request), role: PhantomData })
        })
    }
}

/// An agent that calls with its own token.
pub(super) struct CallingAgent {
    pub(super) agent: AgentRef,
    /// The id of its token.
    pub(super) token: Uuid,
}

impl FromRequest for CallingAgent {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, ApiResult<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let api = api(&request)?;
            let Holder { token, agent } = auth::needs(api, &request, Role::Agent).await?;
            let removed = || ApiError::new(ProblemKind::Unauthorized, "the token's agent was removed");
            Ok(Self { agent: agent.ok_or_else(removed)?, token: token.id })
        })
    }
}

/// A body that is not read yet, so that the caller's role is checked first.
pub(super) struct Body {
    request: HttpRequest,
    payload: web::Payload,
    encoding: Encoding,
    max: usize,
}

impl Body {
    /// Reads the body, up to `http.max_body`.
    pub(super) async fn read(self) -> ApiResult<Vec<u8>> {
        let room = self.room()?;
        read(self.payload, self.encoding, self.max, room).await
    }

    /// Room for it among the caller's bodies.
    fn room(&self) -> ApiResult<BodyRoom> {
        Ok(api(&self.request)?.bodies.body(auth::caller_id(&self.request)))
    }

    /// Allows a body of at least this many bytes.
    pub(super) fn at_least(self, bytes: usize) -> Self {
        Self { max: self.max.max(bytes), ..self }
    }

    /// Reads the body as JSON, and returns its size as well.
    pub(super) async fn json<T: DeserializeOwned>(self) -> ApiResult<(T, usize)> {
        let room = self.room()?;
        json(self.payload, self.encoding, self.max, room).await
    }
}

impl FromRequest for Body {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, ApiResult<Self>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let payload = web::Payload::from_request(request, payload);
        let request = request.clone();
        Box::pin(async move {
            let payload = payload.await.map_err(ApiError::bad_request)?;
            let (encoding, max) = (Encoding::of(&request)?, api(&request)?.max_body());
            Ok(Self { request, payload, encoding, max })
        })
    }
}

/// A JSON body of this type that is not read yet.
pub(super) struct JsonBody<T> {
    body: Body,
    read_as: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonBody<T> {
    /// Reads the body. Errors name the key, line and column.
    pub(super) async fn read(self) -> ApiResult<T> {
        Ok(from_object(&self.body.read().await?)?)
    }
}

impl<T> FromRequest for JsonBody<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, ApiResult<Self>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = Body::from_request(request, payload);
        Box::pin(async move { Ok(Self { body: body.await?, read_as: PhantomData }) })
    }
}
