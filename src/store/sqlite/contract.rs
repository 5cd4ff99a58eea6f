//! The store's time, and whether it answers. Opening the store has prepared it.

use super::store::SqliteStore;
use crate::domain::time::Timestamp;
use crate::store::{Store, StoreResult};
use async_trait::async_trait;
use diesel::connection::SimpleConnection;
use std::sync::atomic::Ordering;

#[async_trait]
impl Store for SqliteStore {
    fn now(&self) -> Timestamp {
        Timestamp(Timestamp::of_this_machine().0 + self.offset.load(Ordering::Relaxed))
    }

    async fn prepare(&self) -> StoreResult<()> {
        Ok(())
    }

    async fn ping(&self) -> StoreResult<()> {
        self.read("ping", |conn| conn.batch_execute("SELECT 1")).await
    }
}
