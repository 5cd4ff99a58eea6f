//! How a session begins, and why it ends. Tested with a socket in `tests.rs`.

use super::deps::SessionDeps;
use super::messages::{Connect, Connected, NotConnected};
use crate::domain::agent::{AgentRef, fits};
use crate::domain::protocol::{AgentFrame, HELLO_TIMEOUT, Hello, close};
use crate::error_chain::ErrorChain;
use crate::store::{Said, StoreError};
use actix_ws::{AggregatedMessage, AggregatedMessageStream};
use uuid::Uuid;

/// Why a session ends.
pub(super) struct End {
    pub(super) code: u16,
    /// Sent in an `error` frame before the close.
    pub(super) error: Option<(&'static str, String)>,
}

impl End {
    pub(super) fn with(code: u16) -> Self {
        Self { code, error: None }
    }

    pub(super) fn error(code: u16, name: &'static str, message: impl Into<String>) -> Self {
        Self { code, error: Some((name, message.into())) }
    }

    /// The end of a connection that isn't signed on, or no longer is.
    pub(super) fn refused(why: NotConnected) -> Self {
        match why {
            NotConnected::Away => Self::with(close::GOING_AWAY),
            NotConnected::NotAllowed => Self::error(
                close::NOT_ALLOWED,
                "not-allowed",
                "the agent was disabled or removed, or its token revoked",
            ),
            NotConnected::Replaced => {
                Self::error(close::REPLACED, "replaced", "a newer connection of this agent is here")
            }
            NotConnected::Duplicate => Self::error(
                close::REPLACED,
                "duplicate",
                "another process uses this agent's token and is connected: is one machine a clone of the other?",
            ),
        }
    }
}

/// Waits for a valid `hello` and signs the connection on.
pub(super) async fn greet(
    deps: &SessionDeps,
    agent: &AgentRef,
    token: Uuid,
    stream: &mut AggregatedMessageStream,
) -> Result<(Hello, Connected), End> {
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, stream.recv()).await {
        Err(_) => return Err(End::error(close::TOO_SLOW, "no-hello", "no hello within 10 seconds")),
        Ok(Some(Ok(AggregatedMessage::Text(text)))) => match AgentFrame::parse(&text) {
            Ok(Some(AgentFrame::Hello(hello))) => hello,
            _ => return Err(End::error(close::MALFORMED, "no-hello", "the first frame must be a valid hello")),
        },
        Ok(Some(Ok(AggregatedMessage::Close(_))) | None) => return Err(End::with(close::DONE)),
        Ok(_) => return Err(End::error(close::MALFORMED, "no-hello", "the first frame must be a valid hello")),
    };
    if agent.disabled {
        return Err(End::error(close::NOT_ALLOWED, "disabled", "the agent is disabled"));
    }
    if !fits(hello.facts.as_ref()) || hello.version.len() > 128 {
        return Err(End::error(close::MALFORMED, "facts-too-large", "facts or version are too large"));
    }
    let away = |error: StoreError| {
        log::warn!(agent = agent.name.as_str(), error:% = error.chain(); "an agent must wait for the store");
        End::with(close::GOING_AWAY)
    };
    let said = Said { labels: None, facts: hello.facts.clone(), version: hello.version.clone() };
    let says_more = said.facts.is_some() || said.version != agent.version;
    if says_more && deps.node.store.agent_refresh(agent.no, said).await.map_err(away)? {
        deps.node.signals.agent_changed(agent.no);
    }
    // The authentication may be seconds old. The store says now whether the agent is still allowed.
    let connected =
        deps.sender.send(Connect { agent_no: agent.no, token, after: None, instance: hello.instance }).await;
    let connected = connected.unwrap_or(Err(NotConnected::Away)).map_err(|why| {
        if why == NotConnected::Duplicate {
            log::warn!(agent = agent.name.as_str(); "another process uses this agent's token: is a machine cloned?");
            deps.node.metrics.duplicate_refused();
        }
        End::refused(why)
    })?;
    Ok((hello, connected))
}
