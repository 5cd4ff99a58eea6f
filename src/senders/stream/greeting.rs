//! How a session begins, and why it ends.

use super::connection::SessionParts;
use super::{Connect, Connected};
use crate::domain::agent::{AgentRef, facts_fit};
use crate::domain::protocol::{AgentFrame, HELLO_WITHIN, Hello, close};
use crate::domain::text::{replace_nul, replace_nul_in};
use crate::pipeline::messages::Changed;
use crate::store::StoreError;
use actix_ws::{AggregatedMessage, AggregatedMessageStream};

/// Why a session ends.
pub(super) struct End {
    pub(super) code: u16,
    /// For an `error` frame before the close.
    pub(super) error: Option<(&'static str, String)>,
}

impl End {
    pub(super) fn with(code: u16) -> Self {
        Self { code, error: None }
    }

    pub(super) fn error(code: u16, name: &'static str, message: impl Into<String>) -> Self {
        Self { code, error: Some((name, message.into())) }
    }
}

/// Waits for a valid `hello`, and signs the connection on.
pub(super) async fn greet(
    parts: &SessionParts,
    agent: &AgentRef,
    stream: &mut AggregatedMessageStream,
) -> Result<(Hello, Connected), End> {
    let mut hello = match tokio::time::timeout(HELLO_WITHIN, stream.recv()).await {
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
        log::warn!(agent = agent.name.as_str(), error = error.to_string().as_str(); "an agent must wait for the store");
        End::with(close::GOING_AWAY)
    };
    if parts.store.agent_refresh(agent.no, None, &hello.facts, &hello.version).await.map_err(away)? {
        parts.membership.try_send(Changed(agent.no)).ok();
    }
    let connected = parts.sender.send(Connect { agent_no: agent.no }).await.ok().flatten();
    connected.map(|connected| (hello, connected)).ok_or_else(|| End::with(close::GOING_AWAY))
}
