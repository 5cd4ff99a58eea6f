//! The headers of Standard Webhooks (<https://www.standardwebhooks.com>), version 1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{HeaderMap, HeaderValue};
use sha2::Sha256;
use uuid::Uuid;

/// The beginning of a secret's text.
const PREFIX: &str = "whsec_";

/// A secret that can't be used. The message doesn't contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing secret is not whsec_ and base64")]
pub(crate) struct InvalidSecret;

/// The keys that sign a message: one, or several while secrets rotate.
pub(crate) struct SigningKeys(Vec<Vec<u8>>);

impl SigningKeys {
    /// Reads secrets: `whsec_` and base64 each, separated by white space.
    ///
    /// # Errors
    /// If there is none, or one is invalid.
    pub(crate) fn parse(secrets: &str) -> Result<Self, InvalidSecret> {
        let key = |secret: &str| {
            let encoded = secret.strip_prefix(PREFIX).ok_or(InvalidSecret)?;
            STANDARD.decode(encoded).ok().filter(|key| !key.is_empty()).ok_or(InvalidSecret)
        };
        let keys: Vec<Vec<u8>> = secrets.split_ascii_whitespace().map(key).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(InvalidSecret) } else { Ok(Self(keys)) }
    }

    /// `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`, for each key, separated by spaces.
    fn signature(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let sign = |key: &Vec<u8>| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }

    /// `webhook-id`, `webhook-timestamp` (seconds since 1970) and `webhook-signature`.
    pub(crate) fn headers(&self, id: &str, timestamp: i64, body: &[u8]) -> HeaderMap {
        let value = |text: String| HeaderValue::from_str(&text).expect("ids, numbers and base64 are visible ASCII");
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert("webhook-signature", value(self.signature(id, timestamp, body)));
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        headers.insert("webhook-id", value(id.to_owned()));
        headers
    }
}

/// The text of a message's id.
pub(crate) fn message_id(id: Uuid) -> String {
    format!("msg_{}", id.simple())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::agent::SigningSecret;
    use crate::domain::time::Timestamp;
    use standardwebhooks::Webhook;

    fn now() -> i64 {
        Timestamp::of_this_machine().0 / 1_000
    }

    #[test]
    fn signatures_are_those_of_the_standards_own_library() {
        let (old, new, other) = (SigningSecret::random(), SigningSecret::random(), SigningSecret::random());
        let verifies = |secret: &SigningSecret, headers: &HeaderMap, body: &[u8]| {
            Webhook::new(secret.reveal()).expect("a secret").verify(body, headers).is_ok()
        };
        let (id, body) = (message_id(Uuid::from_u128(1)), r#"{"n":"ü"}"#.as_bytes());
        let keys = SigningKeys::parse(old.reveal()).expect("a key");
        let headers = keys.headers(&id, now(), body);
        assert_eq!(headers["webhook-id"], "msg_00000000000000000000000000000001");
        assert!(verifies(&old, &headers, body));
        assert!(!verifies(&new, &headers, body) && !verifies(&old, &headers, b"{}"));
        let two = SigningKeys::parse(&format!("{} {}\n", old.reveal(), new.reveal())).expect("two keys");
        let headers = two.headers(&id, now(), body);
        assert!(verifies(&old, &headers, body) && verifies(&new, &headers, body) && !verifies(&other, &headers, body));
    }

    /// The example of the standard's libraries.
    #[test]
    fn a_known_signature_comes_out() {
        let keys = SigningKeys::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
        let signature = keys.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_no_secret_is_refused_without_showing_it() {
        for secret in ["", " ", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_§", "whsec_AAAA whsec_x"] {
            assert_eq!(SigningKeys::parse(secret).err(), Some(InvalidSecret), "{secret}");
        }
        assert!(!InvalidSecret.to_string().contains("AAAA"));
    }
}
