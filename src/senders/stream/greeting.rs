//! How a session begins, and why it ends. Tested with a socket in `tests.rs`.

use super::deps::SessionDeps;
use super::messages::{Connect, Connected, NotConnected};
use crate::domain::agent::{AgentRef, facts_fit};
use crate::domain::protocol::{AgentFrame, HELLO_TIMEOUT, Hello, close};
use crate::domain::text::{replace_nul, replace_nul_in};
use crate::error_chain::ErrorChain;
use crate::store::StoreError;
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
    let mut hello = match tokio::time::timeout(HELLO_TIMEOUT, stream.recv()).await {
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
    replace_nul_in(&mut hello.facts);
    replace_nul(&mut hello.version);
    if !facts_fit(&hello.facts) || hello.version.len() > 128 {
        return Err(End::error(close::MALFORMED, "facts-too-large", "facts or version are too large"));
    }
    let away = |error: StoreError| {
        log::warn!(agent = agent.name.as_str(), error:% = error.chain(); "an agent must wait for the store");
        End::with(close::GOING_AWAY)
    };
    if deps.node.store.agent_refresh(agent.no, None, &hello.facts, &hello.version).await.map_err(away)? {
        deps.node.signals.agent_changed(agent.no);
    }
    // The authentication may be seconds old. The store says now whether the agent is still allowed.
    let connected = deps.sender.send(Connect { agent_no: agent.no, token, after: None }).await;
    let connected = connected.unwrap_or(Err(NotConnected::Away)).map_err(End::refused)?;
    Ok((hello, connected))
}
