//! Hints between nodes, of which there are none here.

use super::store::SqliteStore;
use crate::domain::hint::Hint;
use crate::store::{Hints, StoreResult};
use async_trait::async_trait;

#[async_trait]
impl Hints for SqliteStore {
    async fn hint_send(&self, _: &[Hint]) -> StoreResult<bool> {
        Ok(false)
    }

    async fn hint_next(&self) -> Vec<Hint> {
        std::future::pending().await
    }
}
