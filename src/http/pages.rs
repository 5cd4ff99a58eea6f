//! Pages, and JSON bodies.

use super::error::{ApiError, ApiResult};
use crate::domain::problem::{Problem, ProblemKind, check_is_object};
use crate::domain::text::has_nul;
use actix_web::web;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Allowed page sizes.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// The requested page size.
pub(super) fn limit(asked: Option<usize>) -> ApiResult<usize> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        other => Err(ApiError::bad_request(format!("limit: {other} is not between 1 and {MAX_LIMIT}"))),
    }
}

/// The name after which the requested page begins. A name contains no NUL character, which
/// PostgreSQL refuses.
pub(super) fn after(asked: Option<&str>) -> ApiResult<Option<&str>> {
    match asked {
        Some(name) if has_nul(name) => Err(ApiError::bad_request("after: holds a NUL character")),
        name => Ok(name),
    }
}

/// A page of a list, and the key after which the next one begins.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// None on the last page.
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// A page that is full at `limit` items. The next one begins after the last item's `key`.
    pub(super) fn new<K: ToString>(items: Vec<T>, limit: usize, key: impl FnOnce(&T) -> K) -> Self {
        let next = (items.len() == limit).then(|| items.last().map(|item| key(item).to_string())).flatten();
        Self { items, next }
    }
}

/// Reads a body of at most `max` bytes.
pub(super) async fn read(mut payload: web::Payload, max: usize) -> ApiResult<web::BytesMut> {
    let reading = async {
        let mut body = web::BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(ApiError::bad_request)?;
            if body.len() + chunk.len() > max {
                return Err(ApiError::too_large(max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| Err(ApiError::bad_request("the body did not come within 60 seconds")))
}

/// Reads a JSON body of at most `max` bytes, and returns its size too. Errors name the key, line
/// and column.
pub(super) async fn json<T: DeserializeOwned>(payload: web::Payload, max: usize) -> ApiResult<(T, usize)> {
    let json = read(payload, max).await?;
    let mut reader = serde_json::Deserializer::from_slice(&json);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let kind = if error.inner().is_data() { ProblemKind::InvalidDocument } else { ProblemKind::MalformedJson };
        Problem::new(kind, error.to_string())
    })?;
    reader.end().map_err(|error| Problem::new(ProblemKind::MalformedJson, error.to_string()))?;
    check_is_object(&json)?;
    Ok((parsed, json.len()))
}
