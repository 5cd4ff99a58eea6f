//! `/v1/agent`: the calls of agents.

use super::actions::idempotency_key;
use super::api::Api;
use super::auth;
use super::error::{ApiError, ApiResult};
use super::extract::{Body, CallingAgent, address};
use crate::domain::agent::{Enrollment, Role};
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::protocol::MAX_FRAME;
use crate::senders::stream::connection;
use crate::service::agents;
use crate::store::Holder;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct EnrolledAgent {
    /// The agent's name.
    agent: String,
    /// The agent's own token, if the agent is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// Enrolls a new agent with an `enroll` token, or updates an agent's labels and facts with its own.
/// Repeating the call with the same `Idempotency-Key` returns a fresh token, as long as the previous
/// one was never used.
#[utoipa::path(post, path = "/v1/agent/enroll", tag = "agent", request_body = Enrollment,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "A random nonce, stored before the call, with which the agent can repeat it")),
    responses((status = 201, body = EnrolledAgent, description = "The agent is enrolled; its token is shown once"),
        (status = 200, body = EnrolledAgent, description = "The agent is known; its labels and facts are stored"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The name is taken")),
    security(("token" = ["enroll"])))]
pub(super) async fn enroll(request: HttpRequest, body: Body, api: web::Data<Api>) -> ApiResult<HttpResponse> {
    let Holder { token, agent } = auth::caller(&api, &request).await?;
    if token.role != Role::Agent && !token.role.allows(Role::Enroll) {
        let detail = format!("this needs the role enroll; the token has {}", token.role.as_str());
        return Err(ApiError::new(ProblemKind::Forbidden, detail));
    }
    let enrollment = Enrollment::from_json(&body.read().await?)?;
    if token.role == Role::Agent {
        let removed = || ApiError::new(ProblemKind::Unauthorized, "the token's agent was removed");
        let agent = agent.ok_or_else(removed)?;
        agents::refresh(&api.node, &agent, &enrollment).await?;
        return Ok(HttpResponse::Ok().json(EnrolledAgent { agent: agent.name, token: None }));
    }
    let (nonce, agent) = (idempotency_key(&request)?, enrollment.name.clone());
    let by = Author { address: address(&request), ..Author::from(&token) };
    let secret = agents::enroll(&api.node, enrollment, nonce.as_deref(), &by).await?;
    Ok(HttpResponse::Created().json(EnrolledAgent { agent, token: Some(secret.reveal().to_owned()) }))
}

/// The agent's WebSocket.
#[utoipa::path(get, path = "/v1/agent/stream", tag = "agent",
    responses((status = 101, description = "A WebSocket of JSON frames"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "No WebSocket handshake"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "No room, or stopping")),
    security(("token" = ["agent"])))]
pub(super) async fn stream(
    CallingAgent { agent, token }: CallingAgent,
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    if api.supervision.is_draining() {
        return Err(ApiError::new(ProblemKind::Unavailable, "the server is stopping; connect to another one"));
    }
    if !api.serves_stream {
        return Err(ApiError::new(
            ProblemKind::Unavailable,
            "this node does not serve streams; connect to another one",
        ));
    }
    api.connections.room_for_stream()?;
    let (response, socket, stream) = actix_ws::handle(&request, payload).map_err(ApiError::bad_request)?;
    let stream = stream.max_frame_size(MAX_FRAME).aggregate_continuations().max_continuation_size(MAX_FRAME);
    let name = agent.name.clone();
    let served = connection::serve(api.sessions.clone(), agent, token, socket, stream);
    actix_web::rt::spawn(async move {
        // A panic in one session stays in that session: the socket closes, and the agent
        // reconnects.
        let guarded = std::panic::AssertUnwindSafe(served);
        if futures_util::FutureExt::catch_unwind(guarded).await.is_err() {
            log::error!(agent = name.as_str(); "an agent's session crashed; its agent will connect again");
        }
    });
    Ok(response)
}
