//! `/v1/agent`: what agents call.

use super::pages::body;
use super::{Api, ApiError, ApiResult, auth};
use crate::domain::agent::{Enrollment, Role, STREAM, Secret, hash_of};
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::domain::protocol::MAX_FRAME;
use crate::senders::stream::connection;
use crate::store::{Enrolled, NewAgent};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct EnrolledAgent {
    /// Its name.
    agent: String,
    /// Its own token, if it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// Enrolls a new agent with an `enroll` token, or lets one tell its labels and facts again with its own. The same call again
/// under the same `Idempotency-Key` is answered with a fresh token for as long as the one before was never used.
#[utoipa::path(post, path = "/v1/agent/enroll", tag = "agent", request_body = Enrollment,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "A random nonce that the agent made and keeps: with it a lost answer is not the end")),
    responses((status = 201, body = EnrolledAgent, description = "It is enrolled; its token is shown once"),
        (status = 200, body = EnrolledAgent, description = "It is known, and what it said is stored"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The name is taken")),
    security(("token" = ["enroll"])))]
pub(super) async fn enroll(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let token = auth::caller(&api, &request).await?;
    if token.role != Role::Agent && !token.role.allows(Role::Enroll) {
        let detail = format!("this needs the role enroll; the token has {}", token.role.as_str());
        return Err(ApiError::new(ProblemKind::Forbidden, detail));
    }
    let enrollment = Enrollment::from_json(&body(payload, api.max_body()).await?)?;
    if token.role == Role::Agent {
        let (agent, _) = auth::agent(&api, &request).await?;
        if agent.name != enrollment.name {
            let detail = format!("this token belongs to {}, not to {}", agent.name, enrollment.name);
            return Err(ApiError::new(ProblemKind::Forbidden, detail));
        }
        let Enrollment { labels, facts, version, .. } = &enrollment;
        if api.node.store.agent_refresh(agent.no, Some(labels), facts, version).await? {
            api.node.signals.agent_changed(agent.no);
        }
        return Ok(HttpResponse::Ok().json(EnrolledAgent { agent: agent.name, token: None }));
    }
    let nonce_hash = super::actions::idempotency_key(&request)?.map(|nonce| hash_of(&nonce));
    let secret = Secret::random();
    let new = NewAgent { enrollment, transport: STREAM.into(), address: None, secret: None };
    match api.node.store.agent_enroll_once(&new, secret.hash(), nonce_hash, &Author::from(&token)).await? {
        Enrolled::New(agent) => {
            api.node.signals.agent_changed(agent.no);
            log::info!(agent = agent.name.as_str(); "an agent has enrolled");
            let token = Some(secret.reveal().to_owned());
            Ok(HttpResponse::Created().json(EnrolledAgent { agent: agent.name, token }))
        }
        Enrolled::Taken => {
            let detail = format!("name: {} is taken by another agent", new.enrollment.name);
            Err(ApiError::new(ProblemKind::Conflict, detail))
        }
    }
}

/// The agent's WebSocket.
#[utoipa::path(get, path = "/v1/agent/stream", tag = "agent",
    responses((status = 101, description = "A WebSocket of JSON frames"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "No WebSocket handshake"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "No room, or stopping")),
    security(("token" = ["agent"])))]
pub(super) async fn stream(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let (agent, token) = auth::agent(&api, &request).await?;
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
        // A fault in one session is that session's alone: the socket closes, and the agent comes back.
        let guarded = std::panic::AssertUnwindSafe(served);
        if futures_util::FutureExt::catch_unwind(guarded).await.is_err() {
            log::error!(agent = name.as_str(); "an agent's session crashed; its agent will connect again");
        }
    });
    Ok(response)
}
