//! `/v1/agent`: what agents call.

use super::{Api, ApiError, ApiResult, auth, body};
use crate::domain::agent::{Enrollment, Role, STREAM, Secret};
use crate::domain::problem::ProblemKind;
use crate::domain::protocol::MAX_FRAME;
use crate::senders::stream::session;
use crate::store::{Enrolled, NewAgent};
use actix_web::{HttpRequest, HttpResponse, web};

/// `POST /v1/agent/enroll`: a new agent with an `enroll` token, or one that tells its labels and facts again with its own.
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
    let enrollment = Enrollment::from_json(&body(payload, api.max_body).await?)?;
    if token.role == Role::Agent {
        let agent = auth::agent(&api, &request).await?;
        if agent.name != enrollment.name {
            let detail = format!("this token belongs to {}, not to {}", agent.name, enrollment.name);
            return Err(ApiError::new(ProblemKind::Forbidden, detail));
        }
        let Enrollment { labels, facts, version, .. } = &enrollment;
        api.store.agent_refresh(agent.no, Some(labels), facts, version).await?;
        return Ok(HttpResponse::Ok().json(serde_json::json!({ "agent": agent.name })));
    }
    let secret = Secret::random();
    let new = NewAgent { enrollment, transport: STREAM.into(), address: None };
    match api.store.agent_enroll(&new, secret.hash()).await? {
        Enrolled::New(agent) => {
            log::info!(agent = agent.name.as_str(); "an agent has enrolled");
            Ok(HttpResponse::Created().json(serde_json::json!({ "agent": agent.name, "token": secret.reveal() })))
        }
        Enrolled::Taken => {
            let detail = format!("name: {} is taken by another agent", new.enrollment.name);
            Err(ApiError::new(ProblemKind::Conflict, detail))
        }
    }
}

/// `GET /v1/agent/stream`: the agent's WebSocket.
pub(super) async fn stream(
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<Api>,
) -> ApiResult<HttpResponse> {
    let agent = auth::agent(&api, &request).await?;
    if api.supervision.is_draining() {
        return Err(ApiError::new(ProblemKind::Unavailable, "the server is stopping; connect to another one"));
    }
    let (response, socket, stream) = actix_ws::handle(&request, payload).map_err(ApiError::bad_request)?;
    let stream = stream.max_frame_size(MAX_FRAME).aggregate_continuations().max_continuation_size(MAX_FRAME);
    let name = agent.name.clone();
    let served = session::serve(api.sessions.clone(), agent, socket, stream);
    actix_web::rt::spawn(async move {
        // A fault in one session is that session's alone: the socket closes, and the agent comes back.
        let guarded = std::panic::AssertUnwindSafe(served);
        if futures_util::FutureExt::catch_unwind(guarded).await.is_err() {
            log::error!(agent = name.as_str(); "an agent's session fell; its agent will connect again");
        }
    });
    Ok(response)
}
