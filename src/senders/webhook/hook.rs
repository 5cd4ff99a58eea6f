//! Sends events to hooks, by the same guarded client and signed in the same way as webhooks.

use super::answer::retry_after;
use super::client::{Answer, PostError, PostErrorKind, WebhookClient};
use super::sign::{InvalidSecret, SigningKeys};
use crate::domain::agent::SigningSecret;
use crate::domain::time::Timestamp;
use crate::senders::{HookClient, HookFailure, HookTarget};
use actix_web::web::Bytes;
use async_trait::async_trait;
use chrono::Utc;
use reqwest::header::{HeaderMap, HeaderValue};

/// See the module.
pub(crate) struct WebhookHooks(WebhookClient);

impl WebhookHooks {
    pub(crate) fn new(client: WebhookClient) -> Self {
        Self(client)
    }
}

/// The headers of an event: signed if the hook has secrets, and with its id in any case.
fn headers(hook: &HookTarget, id: &str, body: &[u8]) -> Result<HeaderMap, InvalidSecret> {
    let timestamp = Timestamp::of_this_machine().0 / 1_000;
    if hook.secrets.is_empty() {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        headers.insert("webhook-id", HeaderValue::from_str(id).map_err(|_| InvalidSecret)?);
        return Ok(headers);
    }
    let secrets: Vec<&str> = hook.secrets.iter().map(SigningSecret::reveal).collect();
    Ok(SigningKeys::parse(&secrets.join(" "))?.headers(id, timestamp, body))
}

#[async_trait]
impl HookClient for WebhookHooks {
    async fn post(&self, hook: &HookTarget, id: &str, body: Bytes) -> Result<(), HookFailure> {
        let headers = headers(hook, id, &body).map_err(|error| HookFailure {
            error: error.to_string(),
            retry_after: None,
            permanent: true,
        })?;
        judge(self.0.post(hook.url.expose(), headers, body.to_vec(), hook.timeout).await)
    }
}

/// Any `2xx` accepts an event, and `410` refuses all. Everything else may be a mistake that the
/// receiver's operator corrects, so the event is sent again.
fn judge(answer: Result<Answer, PostError>) -> Result<(), HookFailure> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(PostError { kind, text }) => {
            let permanent = kind == PostErrorKind::Refused;
            return Err(HookFailure { error: text, retry_after: None, permanent });
        }
    };
    if answer.status.is_success() {
        return Ok(());
    }
    Err(HookFailure {
        error: format!("the receiver answered {}", answer.status),
        retry_after: answer.retry_after.as_deref().and_then(|text| retry_after(text, Utc::now())),
        permanent: answer.status.as_u16() == 410,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HookUrl;
    use reqwest::StatusCode;
    use std::time::Duration;

    fn hook(secrets: Vec<SigningSecret>) -> HookTarget {
        HookTarget { name: "h".into(), url: HookUrl::new("https://h"), secrets, timeout: Duration::from_secs(1) }
    }

    #[test]
    fn an_event_is_signed_if_the_hook_has_secrets() {
        let (secret, body) = (SigningSecret::random(), b"{}");
        let signed = headers(&hook(vec![secret.clone()]), "msg_1", body).expect("valid");
        let verifier = standardwebhooks::Webhook::new(secret.reveal()).expect("a secret");
        assert!(verifier.verify(body, &signed).is_ok());
        let unsigned = headers(&hook(vec![]), "msg_1", body).expect("valid");
        assert!(unsigned.get("webhook-signature").is_none());
        assert_eq!(unsigned.get("webhook-id").map(HeaderValue::as_bytes), Some(&b"msg_1"[..]));
    }

    #[test]
    fn only_a_receiver_that_is_gone_and_a_refused_address_are_permanent() {
        let answered = |status: u16| {
            let status = StatusCode::from_u16(status).expect("a status");
            judge(Ok(Answer { status, retry_after: Some("7".into()), body: vec![], truncated: false }))
        };
        assert_eq!(answered(204), Ok(()));
        for (status, permanent) in [(302, false), (404, false), (410, true), (429, false), (503, false)] {
            let failure = answered(status).expect_err("a failure");
            assert_eq!((failure.permanent, failure.retry_after), (permanent, Some(Duration::from_secs(7))), "{status}");
        }
        let refused = |kind| judge(Err(PostError { kind, text: "no".into() })).expect_err("a failure").permanent;
        assert!(refused(PostErrorKind::Refused) && !refused(PostErrorKind::Connect));
    }
}
