//! Bringing the tables up to date.

use super::error::sort;
use super::link::Connected;
use crate::store::sql::sql;
use crate::store::{StoreError, StoreResult};
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use std::time::Duration;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// How long a migration waits for a table that somebody uses. Everybody else waits behind it
/// meanwhile, older nodes with their heartbeats among them. It is tried again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// The advisory lock of the process that migrates.
const LOCK: i64 = 0x006f_646f_7368_6900;

/// Refuses a database that can't store every text. Its encoding is chosen when it is created and
/// can't be changed.
pub(super) async fn check_encoding(conn: &mut Connected) -> StoreResult<()> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        encoding: String,
        #[diesel(sql_type = Text)]
        database: String,
    }
    let asked = sql("SELECT current_setting('server_encoding') AS encoding, current_database()::text AS database");
    let Row { encoding, database } =
        asked.get_result(&mut **conn).await.map_err(|error| sort("server_encoding", error, conn.code()))?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "the database {database:?} has the encoding {encoding}, which cannot keep every text; only UTF8 is supported. \
         Make another one, copy into it what is to be kept, and name it in store.url: \
         CREATE DATABASE odoshi ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0"
    )))
}

/// Brings the tables up to date. Other nodes that start at the same time wait, and then find
/// nothing left to do.
pub(super) async fn migrate(mut conn: Connected) -> StoreResult<()> {
    async fn begin(conn: &mut AsyncPgConnection) -> QueryResult<()> {
        conn.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
        sql("SELECT pg_advisory_lock(?)").bind(LOCK).execute(conn).await?;
        conn.batch_execute(&format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis())).await
    }
    begin(&mut conn).await.map_err(|error| sort("migrate", error, conn.code()))?;
    // The harness is a blocking one. The lock goes with the connection.
    let migrated = tokio::task::spawn_blocking(move || {
        let mut harness: AsyncConnectionWrapper<AsyncPgConnection> = conn.into_inner().into();
        harness.run_pending_migrations(MIGRATIONS).map(|_| ()).map_err(|error| error.to_string())
    });
    match migrated.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(StoreError::Unusable(format!("its tables cannot be brought up to date: {error}"))),
        Err(error) => Err(StoreError::Unusable(error.to_string())),
    }
}
