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
/// How often sessions are compared. A pooler may happen to give each connection its own.
const SESSION_ROUNDS: usize = 3;
/// The code of an exception that a statement raises.
const RAISED: &str = "P0001";
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

/// Refuses a pooler that gives every transaction another session of the database, such as PgBouncer with
/// `pool_mode = transaction`: a node holds a lock, and listens, as long as its session lasts.
///
/// # Errors
/// If what one connection sets is not there afterwards, or is what the other one has set.
pub(super) async fn check_sessions(one: &mut Connected, other: &mut Connected) -> StoreResult<()> {
    for round in 0..SESSION_ROUNDS {
        for (conn, name) in [(&mut *one, "one"), (&mut *other, "other")] {
            let set = conn.batch_execute(&format!("SET odoshi.session = '{name} {round}'")).await;
            set.map_err(|error| sort("sessions", error, conn.code()))?;
        }
        for (conn, name) in [(&mut *one, "one"), (&mut *other, "other")] {
            // Prepares nothing, which such a pooler would not keep either.
            let asked = format!(
                "DO $$ BEGIN IF current_setting('odoshi.session', true) IS DISTINCT FROM '{name} {round}' THEN \
                 RAISE EXCEPTION 'this is another session'; END IF; END $$"
            );
            match conn.batch_execute(&asked).await {
                Ok(()) => {}
                Err(_) if conn.code().is_some_and(|code| code.as_str() == RAISED) => {
                    return Err(StoreError::Unusable(
                        "store.url: behind it is a pooler that gives each transaction another session of the database \
                         (as PgBouncer does with pool_mode = transaction). A node needs sessions of its own: name \
                         PostgreSQL itself, or set pool_mode = session"
                            .to_owned(),
                    ));
                }
                Err(error) => return Err(sort("sessions", error, conn.code())),
            }
        }
    }
    Ok(())
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
