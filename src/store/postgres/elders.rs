//! Watches for transactions that have been open for too long. While one is, vacuum can't take away what was deleted after it
//! began: open rows come and go by the million, and their table would grow for as long as somebody forgets to commit.

use super::Inner;
use super::sql::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Weak;
use std::time::Duration;

/// How often it looks, at most and at least.
const POLL_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(QueryableByName)]
struct Elder {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = BigInt)]
    seconds: i64,
    #[diesel(sql_type = Text)]
    application: String,
    #[diesel(sql_type = Text)]
    state: String,
}

/// The oldest transaction in this database that holds a snapshot for longer than `most`.
async fn oldest(conn: &mut AsyncPgConnection, most: Duration) -> QueryResult<Option<Elder>> {
    sql("SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds, \
         coalesce(application_name, '') AS application, coalesce(state, '') AS state FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() \
         AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) \
         AND xact_start < clock_timestamp() - ? * interval '1 millisecond' ORDER BY xact_start LIMIT 1")
    .bind(i64::try_from(most.as_millis()).unwrap_or(i64::MAX))
    .get_result(conn)
    .await
    .optional()
}

/// Tells of the oldest transaction, if it is older than `most`, for as long as somebody else holds `inner`. Each is told of
/// once.
pub(super) async fn watch(inner: Weak<Inner>, most: Duration) {
    let mut told = None;
    loop {
        tokio::time::sleep((most / 2).clamp(POLL_INTERVAL.0, POLL_INTERVAL.1)).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.gate("elders").is_err() {
            continue;
        }
        // A database that is away has other troubles.
        let Ok(mut conn) = inner.pool.get().await else { continue };
        let Ok(found) = oldest(&mut conn, most).await else { continue };
        let pid = found.as_ref().map(|elder| elder.pid);
        if let Some(Elder { pid, seconds, application, state }) = found
            && told != Some(pid)
        {
            log::warn!(pid, seconds, application = application.as_str(), state = state.as_str();
                "a transaction has been open for long: vacuum waits for it, and tables grow meanwhile");
        }
        told = pid;
    }
}
