//! An HTTP client for addresses that users chose: guarded, without proxies and redirects, and with
//! limits on time and size. It knows nothing of commands.

use super::guard::{Guard, GuardedResolver, Lookup, Refusal, SystemLookup};
use crate::error_chain::chain_of;
use crate::tls;
use ipnet::IpNet;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next request. Short, because each idle connection takes an
/// open file, and a fleet may have many hosts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of bytes read of an answer's body.
pub(crate) const MAX_BODY: usize = 1024 * 1024;

/// Settings of the client.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientSettings {
    /// Special networks that may be called.
    pub(crate) allow: Vec<IpNet>,
    /// Maximum number of idle connections per host.
    pub(crate) idle_per_host: usize,
}

/// See the module. Clones share their connections.
#[derive(Clone)]
pub(crate) struct WebhookClient {
    http: Client,
    guard: Guard,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The header `Retry-After` as it came.
    pub(crate) retry_after: Option<String>,
    /// The body, up to [`MAX_BODY`].
    pub(crate) body: Vec<u8>,
    /// Whether the body was longer.
    pub(crate) truncated: bool,
}

/// The cause of a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PostErrorKind {
    /// The address will never be called: it is a special address, or no http(s) URL.
    Refused,
    /// At the moment the name has only special addresses.
    RefusedName,
    /// The name wasn't found, or the connection failed.
    Connect,
    /// There was no complete answer in time.
    Timeout,
    /// The connection broke, or the answer isn't HTTP.
    Protocol,
}

/// A failed request. The text never contains the URL, which may contain a password.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct PostError {
    /// The kind of the cause.
    pub(crate) kind: PostErrorKind,
    /// The cause, for people.
    pub(crate) text: String,
}

impl WebhookClient {
    /// A client with these settings.
    ///
    /// # Errors
    /// If TLS can't be set up.
    pub(crate) fn new(settings: &ClientSettings) -> Result<Self, String> {
        Self::with_lookup(settings, Arc::new(SystemLookup::default()))
    }

    pub(super) fn with_lookup(settings: &ClientSettings, lookup: Arc<dyn Lookup>) -> Result<Self, String> {
        let guard = Guard::new(&settings.allow);
        let http = Client::builder()
            .dns_resolver(Arc::new(GuardedResolver { guard: guard.clone(), lookup }))
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself, past the guard.
            .no_proxy()
            .referer(false)
            .user_agent(concat!("odoshi/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(settings.idle_per_host)
            .tls_backend_preconfigured(tls::system_config()?)
            .build()
            .map_err(|error| chain_of(&error).to_string())?;
        Ok(Self { http, guard })
    }

    /// Sends `body`, which is JSON, and reads the answer, all within `timeout`.
    pub(crate) async fn post(
        &self,
        url: &str,
        mut headers: HeaderMap,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Answer, PostError> {
        let url = self.guard.check_url(url).map_err(|refusal| PostError::refused(&refusal))?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let call = async {
            let answer = self.http.post(url).headers(headers).body(body).send().await.map_err(PostError::of)?;
            read(answer).await
        };
        tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| {
            let text = format!("no complete answer within {}", humantime::format_duration(timeout));
            Err(PostError { kind: PostErrorKind::Timeout, text })
        })
    }
}

/// Reads as much of an answer as is kept. Dropping the rest closes the connection.
async fn read(mut answer: Response) -> Result<Answer, PostError> {
    let status = answer.status();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (mut body, mut truncated) = (Vec::new(), false);
    while let Some(chunk) = answer.chunk().await.map_err(PostError::of)? {
        let room = MAX_BODY - body.len();
        if chunk.len() > room {
            body.extend_from_slice(&chunk[..room]);
            truncated = true;
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after, body, truncated })
}

impl PostError {
    fn refused(refusal: &Refusal) -> Self {
        let kind = match refusal {
            Refusal::NotHttp | Refusal::Literal { .. } => PostErrorKind::Refused,
            Refusal::Resolved { .. } => PostErrorKind::RefusedName,
        };
        Self { kind, text: refusal.to_string() }
    }

    fn of(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(refusal) = inner.downcast_ref::<Refusal>() {
                return Self::refused(refusal);
            }
            cause = inner.source();
        }
        let kind = match () {
            () if error.is_connect() => PostErrorKind::Connect,
            () if error.is_timeout() => PostErrorKind::Timeout,
            () => PostErrorKind::Protocol,
        };
        Self { kind, text: chain_of(&error).to_string() }
    }
}
