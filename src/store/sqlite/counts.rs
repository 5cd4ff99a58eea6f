//! The counters of actions: kept by lane, read as their sum.

use crate::domain::command::CommandState;
use crate::store::changes::Deltas;
use crate::store::sql::actions::Sums;
use crate::store::sql::schema::action_counts;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use diesel::upsert::excluded;

/// The sum over the lanes.
pub(super) fn sums(conn: &mut SqliteConnection, no: i64) -> QueryResult<Sums> {
    sql_query(
        "SELECT coalesce(sum(total), 0) AS n_total, coalesce(sum(sent), 0) AS n_sent, \
         coalesce(sum(succeeded), 0) AS n_succeeded, coalesce(sum(failed), 0) AS n_failed, \
         coalesce(sum(timed_out), 0) AS n_timed_out, coalesce(sum(undeliverable), 0) AS n_undeliverable, \
         coalesce(sum(expired), 0) AS n_expired, coalesce(sum(cancelled), 0) AS n_cancelled \
         FROM action_counts WHERE action_no = ?",
    )
    .bind::<BigInt, _>(no)
    .get_result(conn)
}

/// Adds to the counters of this process's lane.
pub(super) fn count(conn: &mut SqliteConnection, deltas: Deltas, lane: &str) -> QueryResult<()> {
    use action_counts as c;
    for (action_no, delta) in deltas {
        diesel::insert_into(c::table)
            .values((
                c::action_no.eq(action_no),
                c::lane.eq(lane),
                c::total.eq(delta.total),
                c::sent.eq(delta.of(CommandState::Sent)),
                c::succeeded.eq(delta.of(CommandState::Succeeded)),
                c::failed.eq(delta.of(CommandState::Failed)),
                c::timed_out.eq(delta.of(CommandState::TimedOut)),
                c::undeliverable.eq(delta.of(CommandState::Undeliverable)),
                c::expired.eq(delta.of(CommandState::Expired)),
                c::cancelled.eq(delta.of(CommandState::Cancelled)),
            ))
            .on_conflict((c::action_no, c::lane))
            .do_update()
            .set((
                c::total.eq(c::total + excluded(c::total)),
                c::sent.eq(c::sent + excluded(c::sent)),
                c::succeeded.eq(c::succeeded + excluded(c::succeeded)),
                c::failed.eq(c::failed + excluded(c::failed)),
                c::timed_out.eq(c::timed_out + excluded(c::timed_out)),
                c::undeliverable.eq(c::undeliverable + excluded(c::undeliverable)),
                c::expired.eq(c::expired + excluded(c::expired)),
                c::cancelled.eq(c::cancelled + excluded(c::cancelled)),
            ))
            .execute(conn)?;
    }
    Ok(())
}
