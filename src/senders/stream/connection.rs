//! One connection of an agent, from upgrade to close: greets the agent, runs its [`Session`], and
//! closes the socket.

use super::deps::SessionDeps;
use super::greeting::greet;
use super::session::Session;
use crate::domain::agent::AgentRef;
use crate::domain::protocol::{ErrorFrame, ServerFrame};
use actix_ws::{AggregatedMessageStream, CloseCode, CloseReason};
use std::time::Duration;
use uuid::Uuid;

/// Serves one connection until it ends. `agent` has authenticated with this token.
pub async fn serve(
    deps: SessionDeps,
    agent: AgentRef,
    token: Uuid,
    mut socket: actix_ws::Session,
    mut stream: AggregatedMessageStream,
) {
    let end = match greet(&deps, &agent, token, &mut stream).await {
        Err(end) => end,
        Ok((hello, connected)) => {
            log::info!(agent = agent.name.as_str(), version = hello.version.as_str(); "an agent is connected");
            let mut session = Session::new(deps, agent.clone(), token, &hello, connected);
            let end = session.run(hello, &mut socket, &mut stream).await;
            session.leave().await;
            log::info!(agent = agent.name.as_str(), code = end.code; "an agent's connection has ended");
            end
        }
    };
    let farewell = async {
        if let Some((code, message)) = end.error {
            log::warn!(agent = agent.name.as_str(), code, message = message.as_str(); "an agent's connection is closed");
            let frame = ServerFrame::Error(ErrorFrame { code: code.into(), message });
            socket.text(frame.to_text()).await?;
        }
        socket.close(Some(CloseReason { code: CloseCode::from(end.code), description: None })).await
    };
    // A peer that doesn't read won't read this either. The socket is dropped then.
    tokio::time::timeout(Duration::from_secs(5), farewell).await.ok();
}
