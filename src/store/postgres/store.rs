//! The store on PostgreSQL: what it consists of, and how a call reaches the database.
//!
//! Connections are driven, and calls run, on a runtime of the store's own: an arbiter that is busy,
//! or goes away, holds up no connection.

use super::connect::Connector;
use super::inner::Inner;
use super::pools::Caller;
use super::transaction::{Access, Body, Call};
use crate::config::Config;
use crate::domain::hint::Hint;
use crate::store::{StoreError, StoreResult};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// A store on PostgreSQL, which many nodes can share.
pub struct PostgresStore {
    pub(super) inner: Arc<Inner>,
    pub(super) preparing: Mutex<()>,
    /// When the tables could not be migrated for the first time.
    pub(super) failing_since: OnceLock<Instant>,
    pub(super) heartbeat: Duration,
    pub(super) dead_after: Duration,
    pub(super) warn_transaction: Duration,
    /// Hints of other nodes.
    pub(super) heard: Mutex<mpsc::Receiver<Hint>>,
    /// `None` while the store is dropped.
    runtime: Option<Runtime>,
}

impl PostgresStore {
    /// Checks the settings, and the files that they name, without connecting.
    ///
    /// # Errors
    /// When the settings can't be used.
    pub fn check(settings: &Config) -> StoreResult<()> {
        Connector::new(settings).map(|_| ()).map_err(StoreError::Unusable)
    }

    /// A store on the database that the settings name. Connects when it is
    /// [prepared](crate::store::Store::prepare).
    ///
    /// # Errors
    /// When the settings can't be used.
    pub fn new(settings: &Config) -> StoreResult<Self> {
        let (inner, heard) = Inner::new(settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("odoshi-postgres")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unusable(error.to_string()))?;
        Ok(Self {
            inner: Arc::new(inner),
            preparing: Mutex::new(()),
            failing_since: OnceLock::new(),
            heartbeat: settings.node.heartbeat.0,
            dead_after: settings.node.dead_after.0,
            warn_transaction: settings.store.warn_transaction.0,
            heard: Mutex::new(heard),
            runtime: Some(runtime),
        })
    }

    /// Moves the store's time away from the database's clock, for tests.
    pub fn set_offset(&self, millis: i64) {
        self.inner.clock.set_offset(millis);
    }

    /// Runs a task on the store's runtime, to its end even if the caller goes away.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = StoreResult<T>> + Send + 'static,
    ) -> StoreResult<T> {
        let Some(runtime) = &self.runtime else { return Err(StoreError::Unavailable("it is closed".into())) };
        let done = runtime.spawn(task).await;
        done.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("a call of the store crashed: {error}"))))
    }

    /// Runs statements that only read, each in a transaction of its own.
    ///
    /// When the future is dropped, what it reads for people is cancelled; what it reads for others
    /// is read to its end.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        caller: Caller,
        during: &'static str,
        body: Body<T>,
    ) -> StoreResult<T> {
        let (inner, abandoned) = (self.inner.clone(), CancellationToken::new());
        let _cancels = (caller == Caller::People).then(|| abandoned.clone().drop_guard());
        let call = Call { during, caller, access: Access::Read, abandoned };
        self.run(async move { inner.call(call, &body).await }).await
    }

    /// Runs statements in one fenced transaction, to its end even if the caller goes away.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        caller: Caller,
        during: &'static str,
        body: Body<T>,
    ) -> StoreResult<T> {
        let inner = self.inner.clone();
        let call = Call { during, caller, access: Access::Write, abandoned: CancellationToken::new() };
        self.run(async move { inner.call(call, &body).await }).await
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
