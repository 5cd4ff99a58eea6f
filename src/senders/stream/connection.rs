//! One connection of an agent, from its upgrade to its close: greets, has a [`Session`] serve it, and says goodbye.

use super::StreamSender;
use super::greeting::greet;
use super::session::Session;
use crate::domain::agent::AgentRef;
use crate::domain::protocol::{ErrorFrame, ServerFrame};
use crate::pipeline::action_book::ActionBook;
use crate::pipeline::delay_scheduler::DelayScheduler;
use crate::pipeline::hints::Hints;
use crate::pipeline::membership::Membership;
use crate::senders::SenderContext;
use crate::store::Store;
use actix::prelude::*;
use actix_ws::{AggregatedMessageStream, CloseCode, CloseReason};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// What all sessions share.
#[derive(Clone)]
pub struct SessionParts {
    /// Where backlogs are read.
    pub store: Arc<dyn Store>,
    /// The actions in memory.
    pub book: ActionBook,
    /// Where results go.
    pub context: SenderContext,
    /// Where the session signs on.
    pub sender: Addr<StreamSender>,
    /// Gets what of the backlog isn't due yet.
    pub scheduler: Addr<DelayScheduler>,
    /// Told when an agent says something new of itself.
    pub membership: Addr<Membership>,
    /// Tells other nodes.
    pub hints: Addr<Hints>,
    /// Bytes of results that all sessions together may have in memory.
    pub budget: Arc<Semaphore>,
    /// How far ahead the backlog is read.
    pub horizon: Duration,
}

/// Serves one connection until it ends. `agent` has shown this token.
pub async fn serve(
    parts: SessionParts,
    agent: AgentRef,
    token: Uuid,
    mut socket: actix_ws::Session,
    mut stream: AggregatedMessageStream,
) {
    let end = match greet(&parts, &agent, token, &mut stream).await {
        Err(end) => end,
        Ok((hello, connected)) => {
            log::info!(agent = agent.name.as_str(), version = hello.version.as_str(); "an agent is connected");
            let mut session = Session::new(parts, agent.clone(), token, &hello, connected);
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
    // A peer that doesn't read won't read this either; the socket is dropped then.
    tokio::time::timeout(Duration::from_secs(5), farewell).await.ok();
}
