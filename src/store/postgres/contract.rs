//! Preparing the store, its time, and whether it answers.

use super::error::{not_connected, sort};
use super::inner::State;
use super::migrate::{check_encoding, check_sessions, migrate};
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use super::{heartbeat, hints, long_transactions, nodes};
use crate::domain::time::Timestamp;
use crate::error_chain::ErrorChain;
use crate::store::{Store, StoreError, StoreResult};
use async_trait::async_trait;
use diesel_async::SimpleAsyncConnection;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long migrating may fail before the error counts as final: the database may go away in
/// between, or somebody (a dump) may be reading the tables that are to be changed.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);

#[async_trait]
impl Store for PostgresStore {
    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    async fn prepare(&self) -> StoreResult<()> {
        let _one_at_a_time = self.preparing.lock().await;
        if *self.inner.state.borrow() != State::Unprepared {
            return Ok(());
        }
        let warn_transaction = self.warn_transaction;
        let (inner, every, dead_after) = (self.inner.clone(), self.heartbeat, self.dead_after);
        let conn = {
            let inner = inner.clone();
            self.run(async move {
                let mut conn = inner.connector.connect().await.map_err(not_connected)?;
                check_sessions(&mut conn, &mut inner.connector.connect().await.map_err(not_connected)?).await?;
                check_encoding(&mut conn).await?;
                Ok(conn)
            })
            .await?
        };
        match self.run(migrate(conn)).await {
            Err(error) if self.failing_since.get_or_init(Instant::now).elapsed() < MIGRATION_TIMEOUT => {
                return Err(StoreError::Unavailable(error.chain().to_string()));
            }
            migrated => migrated?,
        }
        self.run(async move {
            let mut own = heartbeat::OwnConnection::open(&inner).await.map_err(not_connected)?;
            let asked = Instant::now();
            let time = nodes::register(own.conn(), &inner.incarnation).await;
            let time = time.map_err(|error| sort("prepare", error, own.code()))?;
            inner.clock.observe(time, asked, Instant::now());
            inner.set_state(State::Ready);
            tokio::spawn(long_transactions::watch(Arc::downgrade(&inner), warn_transaction));
            if inner.notify {
                tokio::spawn(hints::listen(Arc::downgrade(&inner)));
            }
            tokio::spawn(heartbeat::heartbeats(Arc::downgrade(&inner), own, every, dead_after));
            Ok(())
        })
        .await
    }

    async fn ping(&self) -> StoreResult<()> {
        let answer = self.read(Caller::Pipeline, "ping", body!([] conn => conn.batch_execute("SELECT 1")));
        match tokio::time::timeout(PING_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unavailable(format!("ping: no answer within {} s", PING_TIMEOUT.as_secs()))),
        }
    }
}
