//! Warns about long transactions: while one is open, vacuum can't remove rows that were deleted
//! after it began. Open rows come and go by the million, so their table grows for as long as
//! somebody forgets to commit.

use super::inner::Inner;
use super::pools::Caller;
use crate::store::sql::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Weak;
use std::time::Duration;

/// The shortest and the longest time between two polls.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(QueryableByName)]
struct LongTransaction {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = BigInt)]
    seconds: i64,
    #[diesel(sql_type = Text)]
    application: String,
    #[diesel(sql_type = Text)]
    state: String,
}

/// The oldest transaction in this database that has held a snapshot for longer than `limit`.
async fn oldest(conn: &mut AsyncPgConnection, limit: Duration) -> QueryResult<Option<LongTransaction>> {
    sql("SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds, \
         coalesce(application_name, '') AS application, coalesce(state, '') AS state FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() \
         AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) \
         AND xact_start < clock_timestamp() - ? * interval '1 millisecond' ORDER BY xact_start LIMIT 1")
    .bind(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX))
    .get_result(conn)
    .await
    .optional()
}

/// Logs the oldest transaction when it is older than `limit`, each one once. Ends when nobody else
/// holds `inner`.
pub(super) async fn watch(inner: Weak<Inner>, limit: Duration) {
    let mut logged = None;
    loop {
        tokio::time::sleep((limit / 2).clamp(POLL.0, POLL.1)).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.gate("long_transactions").is_err() {
            continue;
        }
        // A database that does not answer is reported by the heartbeat.
        let Ok(mut conn) = inner.pools.get(Caller::Pipeline).await else { continue };
        let Ok(found) = oldest(&mut conn, limit).await else { continue };
        let pid = found.as_ref().map(|transaction| transaction.pid);
        if let Some(LongTransaction { pid, seconds, application, state }) = found
            && logged != Some(pid)
        {
            log::warn!(pid, seconds, application = application.as_str(), state = state.as_str();
                "a transaction has been open for long: vacuum waits for it, and tables grow meanwhile");
        }
        logged = pid;
    }
}
