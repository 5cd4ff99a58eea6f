//! Pages of lists.

use super::error::{ApiError, ApiResult};
use crate::domain::text::has_nul;

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

/// An agent's or a schedule's name in the parameter `key`. A name contains no NUL character, which PostgreSQL refuses.
pub(super) fn name<'a>(key: &str, asked: Option<&'a str>) -> ApiResult<Option<&'a str>> {
    match asked {
        Some(name) if has_nul(name) => Err(ApiError::bad_request(format!("{key}: holds a NUL character"))),
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
