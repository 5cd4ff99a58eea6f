//! The counters of actions: kept by lane, read as their sum.

use crate::domain::command::CommandState;
use crate::domain::counts::Counts;
use crate::store::changes::Deltas;
use crate::store::sql::sql;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};

/// Joins the sums over the lanes of an action `a`. One statement reads both, and so in one
/// snapshot.
pub(super) const SUMS: &str = "CROSS JOIN LATERAL (SELECT coalesce(sum(c.total), 0)::bigint AS n_total, \
     coalesce(sum(c.sent), 0)::bigint AS n_sent, coalesce(sum(c.succeeded), 0)::bigint AS n_succeeded, \
     coalesce(sum(c.failed), 0)::bigint AS n_failed, coalesce(sum(c.timed_out), 0)::bigint AS n_timed_out, \
     coalesce(sum(c.undeliverable), 0)::bigint AS n_undeliverable, coalesce(sum(c.expired), 0)::bigint AS n_expired, \
     coalesce(sum(c.cancelled), 0)::bigint AS n_cancelled FROM action_counts c WHERE c.action_no = a.no) s";

/// Adds to the counters of a lane. Kinds of batches that may run at the same time have different
/// lanes.
pub(super) async fn count(conn: &mut AsyncPgConnection, deltas: &Deltas, lane: &str) -> QueryResult<()> {
    if deltas.is_empty() {
        return Ok(());
    }
    let column = |of: &dyn Fn(&Counts) -> i64| deltas.values().map(of).collect::<Vec<i64>>();
    let state = |state: CommandState| column(&|counts| counts.of(state));
    sql("INSERT INTO action_counts AS c (action_no, lane, total, sent, succeeded, failed, timed_out, undeliverable, \
         expired, cancelled) SELECT d.action_no, ?, d.total, d.sent, d.succeeded, d.failed, d.timed_out, \
         d.undeliverable, d.expired, d.cancelled FROM UNNEST(?, ?, ?, ?, ?, ?, ?, ?, ?) \
         AS d (action_no, total, sent, succeeded, failed, timed_out, undeliverable, expired, cancelled) \
         ON CONFLICT (action_no, lane) DO UPDATE SET total = c.total + excluded.total, sent = c.sent + excluded.sent, \
         succeeded = c.succeeded + excluded.succeeded, failed = c.failed + excluded.failed, \
         timed_out = c.timed_out + excluded.timed_out, undeliverable = c.undeliverable + excluded.undeliverable, \
         expired = c.expired + excluded.expired, cancelled = c.cancelled + excluded.cancelled")
    .bind(lane)
    .bind(deltas.keys().copied().collect::<Vec<i64>>())
    .bind(column(&|counts| counts.total))
    .bind(state(CommandState::Sent))
    .bind(state(CommandState::Succeeded))
    .bind(state(CommandState::Failed))
    .bind(state(CommandState::TimedOut))
    .bind(state(CommandState::Undeliverable))
    .bind(state(CommandState::Expired))
    .bind(state(CommandState::Cancelled))
    .execute(conn)
    .await
    .map(|_| ())
}
