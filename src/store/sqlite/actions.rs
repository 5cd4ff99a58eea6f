//! Actions and their counters.

use super::super::{Accepted, ActionFlags, ActionView, OpenAction, Resolution};
use super::agents::Key;
use super::schema::{action_counts, actions, agents};
use super::{corrupt, filter, json};
use crate::domain::action::{Action, ActionState, Membership, NewAction};
use crate::domain::command::CommandState;
use crate::domain::counts::Counts;
use crate::domain::target::Target;
use crate::domain::time::{Span, Timestamp};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::upsert::excluded;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

pub(super) fn insert(
    conn: &mut SqliteConnection,
    new: &[NewAction],
    owner: &str,
    now: Timestamp,
) -> QueryResult<Vec<Accepted>> {
    new.iter().map(|action| insert_one(conn, action, owner, now)).collect()
}

fn insert_one(conn: &mut SqliteConnection, new: &NewAction, owner: &str, now: Timestamp) -> QueryResult<Accepted> {
    if let Some(key) = &new.idempotency_key {
        let known = actions::table
            .filter(actions::idempotency_key.eq(key))
            .select((actions::no, actions::id, actions::digest))
            .first::<(i64, String, Vec<u8>)>(conn)
            .optional()?;
        match known {
            Some((no, id, digest)) if digest == new.digest => {
                let id = Uuid::parse_str(&id).map_err(corrupt)?;
                return Ok(Accepted::Stored { id, no, fresh: false });
            }
            Some(_) => return Ok(Accepted::KeyMismatch),
            None => {}
        }
    }
    let inserted = diesel::insert_into(actions::table)
        .values((
            actions::id.eq(new.id.to_string()),
            actions::idempotency_key.eq(&new.idempotency_key),
            actions::name.eq(&new.name),
            actions::target.eq(&new.target),
            actions::document.eq(&new.document),
            actions::operations.eq(&new.operations),
            actions::digest.eq(&new.digest),
            actions::created_at.eq(now.0),
            actions::valid_from.eq(new.valid_from.0),
            actions::expires_at.eq(new.expires_at.0),
            actions::spread_ms.eq(new.spread.as_millis()),
            actions::timeout_ms.eq(new.timeout.as_millis()),
            actions::max_deliveries.eq(new.max_deliveries),
            actions::max_runs.eq(new.max_runs),
            actions::live.eq(new.membership == Membership::Live),
            actions::priority.eq(new.priority),
            actions::owner.eq(owner),
        ))
        .on_conflict(actions::id)
        .do_nothing()
        .returning(actions::no)
        .get_result::<i64>(conn)
        .optional()?;
    if let Some(no) = inserted {
        return Ok(Accepted::Stored { id: new.id, no, fresh: true });
    }
    let (no, digest) = actions::table
        .filter(actions::id.eq(new.id.to_string()))
        .select((actions::no, actions::digest))
        .first::<(i64, Vec<u8>)>(conn)?;
    let same = digest == new.digest;
    Ok(if same { Accepted::Stored { id: new.id, no, fresh: false } } else { Accepted::Conflict })
}

/// The columns of a view, in the order of [`ViewRow`].
#[derive(Queryable, Selectable)]
#[diesel(table_name = actions)]
struct ViewRow {
    no: i64,
    id: String,
    name: String,
    document: String,
    created_at: i64,
    resolved: bool,
    paused: bool,
    cancelled: bool,
    expired: bool,
    expected_total: Option<i64>,
    ended_at: Option<i64>,
}

impl ViewRow {
    fn view(self, conn: &mut SqliteConnection) -> QueryResult<ActionView> {
        let flags = ActionFlags {
            resolved: self.resolved,
            paused: self.paused,
            cancelled: self.cancelled,
            expired: self.expired,
            begun: self.expected_total.is_some(),
            ended: self.ended_at.is_some(),
        };
        Ok(ActionView {
            no: self.no,
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            name: self.name,
            status: flags.state(),
            created_at: Timestamp(self.created_at),
            counts: counts(conn, self.no, self.resolved)?,
            document: RawValue::from_string(self.document).map_err(corrupt)?,
        })
    }
}

/// The sum over the lanes.
fn counts(conn: &mut SqliteConnection, no: i64, resolved: bool) -> QueryResult<Counts> {
    // As text: SQLite's sum of integers is an integer, but diesel types it as a numeric.
    #[derive(QueryableByName)]
    struct Sums {
        #[diesel(sql_type = BigInt)]
        total: i64,
        #[diesel(sql_type = BigInt)]
        sent: i64,
        #[diesel(sql_type = BigInt)]
        succeeded: i64,
        #[diesel(sql_type = BigInt)]
        failed: i64,
        #[diesel(sql_type = BigInt)]
        timed_out: i64,
        #[diesel(sql_type = BigInt)]
        undeliverable: i64,
        #[diesel(sql_type = BigInt)]
        expired: i64,
        #[diesel(sql_type = BigInt)]
        cancelled: i64,
    }
    let sums = sql_query(
        "SELECT coalesce(sum(total), 0) AS total, coalesce(sum(sent), 0) AS sent, \
         coalesce(sum(succeeded), 0) AS succeeded, coalesce(sum(failed), 0) AS failed, \
         coalesce(sum(timed_out), 0) AS timed_out, coalesce(sum(undeliverable), 0) AS undeliverable, \
         coalesce(sum(expired), 0) AS expired, coalesce(sum(cancelled), 0) AS cancelled \
         FROM action_counts WHERE action_no = ?",
    )
    .bind::<BigInt, _>(no)
    .get_result::<Sums>(conn)?;
    let mut counts = Counts {
        total: sums.total,
        resolved,
        pending: 0,
        sent: sums.sent,
        succeeded: sums.succeeded,
        failed: sums.failed,
        timed_out: sums.timed_out,
        undeliverable: sums.undeliverable,
        expired: sums.expired,
        cancelled: sums.cancelled,
    };
    counts.pending = counts.total - counts.sent - counts.finished();
    Ok(counts)
}

pub(super) fn view(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<Option<ActionView>> {
    let row =
        actions::table.filter(actions::id.eq(id.to_string())).select(ViewRow::as_select()).first(conn).optional()?;
    row.map(|row| row.view(conn)).transpose()
}

pub(super) fn list(
    conn: &mut SqliteConnection,
    state: Option<ActionState>,
    before: Option<i64>,
    limit: usize,
) -> QueryResult<Vec<ActionView>> {
    let mut query = actions::table
        .order(actions::no.desc())
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .select(ViewRow::as_select())
        .into_boxed();
    if let Some(before) = before {
        query = query.filter(actions::no.lt(before));
    }
    // The mirror of `ActionFlags::state`.
    let going = || actions::cancelled.eq(false).and(actions::expired.eq(false)).and(actions::ended_at.is_null());
    query = match state {
        None => query,
        Some(ActionState::Cancelled) => query.filter(actions::cancelled),
        Some(ActionState::Expired) => query.filter(actions::expired.and(actions::cancelled.eq(false))),
        Some(ActionState::Completed) => query
            .filter(actions::ended_at.is_not_null().and(actions::cancelled.eq(false)).and(actions::expired.eq(false))),
        Some(ActionState::Paused) => query.filter(going().and(actions::paused)),
        Some(ActionState::Running) => query.filter(going().and(actions::paused.eq(false)).and(actions::resolved)),
        Some(state @ (ActionState::Resolving | ActionState::Scheduled)) => {
            let query = query.filter(going().and(actions::paused.eq(false)).and(actions::resolved.eq(false)));
            if state == ActionState::Resolving {
                query.filter(actions::expected_total.is_not_null())
            } else {
                query.filter(actions::expected_total.is_null())
            }
        }
    };
    query.load(conn)?.into_iter().map(|row| row.view(conn)).collect()
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = actions)]
struct FullRow {
    no: i64,
    id: String,
    name: String,
    target: String,
    document: String,
    operations: String,
    digest: Vec<u8>,
    valid_from: i64,
    expires_at: i64,
    spread_ms: i64,
    timeout_ms: i64,
    max_deliveries: Option<i32>,
    max_runs: i32,
    live: bool,
    priority: i32,
    cancelled: bool,
}

pub(super) fn get(conn: &mut SqliteConnection, no: i64) -> QueryResult<Option<Action>> {
    let row = actions::table.find(no).select(FullRow::as_select()).first(conn).optional()?;
    let span = |millis: i64| Span(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
    row.map(|row| {
        let new = NewAction {
            id: Uuid::parse_str(&row.id).map_err(corrupt)?,
            idempotency_key: None,
            document: row.document,
            digest: row.digest,
            operations: row.operations,
            name: row.name,
            target: row.target,
            valid_from: Timestamp(row.valid_from),
            expires_at: Timestamp(row.expires_at),
            spread: span(row.spread_ms),
            timeout: span(row.timeout_ms),
            max_deliveries: row.max_deliveries,
            max_runs: row.max_runs,
            membership: if row.live { Membership::Live } else { Membership::Frozen },
            priority: row.priority,
        };
        Action::from_new(row.no, &new, row.cancelled).map_err(corrupt)
    })
    .transpose()
}

pub(super) fn no(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<Option<i64>> {
    actions::table.filter(actions::id.eq(id.to_string())).select(actions::no).first(conn).optional()
}

#[derive(QueryableByName)]
struct OpenRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    valid_from: i64,
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
    #[diesel(sql_type = Bool)]
    resolved: bool,
    #[diesel(sql_type = Bool)]
    cancelled: bool,
    #[diesel(sql_type = Bool)]
    expired: bool,
    #[diesel(sql_type = BigInt)]
    resolved_through: i64,
    #[diesel(sql_type = BigInt)]
    dispatched_through: i64,
    #[diesel(sql_type = BigInt)]
    unfinished: i64,
    #[diesel(sql_type = BigInt)]
    sent: i64,
}

pub(super) fn list_open(conn: &mut SqliteConnection, after: i64, limit: usize) -> QueryResult<Vec<OpenAction>> {
    let rows = sql_query(
        "SELECT no, valid_from, expires_at, resolved, cancelled, expired, resolved_through, dispatched_through, \
         (SELECT coalesce(sum(total - succeeded - failed - timed_out - undeliverable - c.expired - c.cancelled), 0) \
          FROM action_counts c WHERE c.action_no = a.no) AS unfinished, \
         (SELECT coalesce(sum(sent), 0) FROM action_counts c WHERE c.action_no = a.no) AS sent \
         FROM actions a WHERE ended_at IS NULL AND no > ? ORDER BY no LIMIT ?",
    )
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
    .load::<OpenRow>(conn)?;
    Ok(rows
        .into_iter()
        .map(|row| OpenAction {
            no: row.no,
            valid_from: Timestamp(row.valid_from),
            expires_at: Timestamp(row.expires_at),
            resolved: row.resolved,
            cancelled: row.cancelled,
            expired: row.expired,
            resolved_through: row.resolved_through,
            dispatched_through: row.dispatched_through,
            unfinished: row.unfinished,
            sent: row.sent,
        })
        .collect())
}

pub(super) fn list_unresolved(conn: &mut SqliteConnection, horizon: Timestamp, limit: usize) -> QueryResult<Vec<i64>> {
    actions::table
        .filter(actions::ended_at.is_null())
        .filter(actions::resolved.eq(false))
        .filter(actions::valid_from.le(horizon.0))
        .order(actions::no)
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .select(actions::no)
        .load(conn)
}

pub(super) fn resolution(
    conn: &mut SqliteConnection,
    no: i64,
    target: &Target,
    owner: &str,
    now: Timestamp,
) -> QueryResult<Resolution> {
    let (through, expected, resolved) = actions::table
        .find(no)
        .select((actions::resolved_through, actions::expected_total, actions::resolved))
        .first::<(i64, Option<i64>, bool)>(conn)?;
    let expected = match expected {
        Some(expected) => expected,
        None => {
            let expected: i64 = filter::members(target, now).select(diesel::dsl::count(agents::no)).first(conn)?;
            diesel::update(actions::table.find(no))
                .set((actions::expected_total.eq(expected), actions::owner.eq(owner)))
                .execute(conn)?;
            expected
        }
    };
    let written = counts(conn, no, resolved)?.total;
    Ok(Resolution { through, written, expected, done: resolved })
}

pub(super) fn cancel(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<Option<ActionView>> {
    // What has ended stays as it ended. With `resolved`, pages that are still on their way are refused.
    diesel::update(actions::table.filter(actions::id.eq(id.to_string())).filter(actions::ended_at.is_null()))
        .set((actions::cancelled.eq(true), actions::resolved.eq(true)))
        .execute(conn)?;
    view(conn, id)
}

pub(super) fn expire(conn: &mut SqliteConnection, no: i64) -> QueryResult<bool> {
    let changed = diesel::update(actions::table.find(no).filter(actions::resolved.eq(false)))
        .set((actions::expired.eq(true), actions::resolved.eq(true)))
        .execute(conn)?;
    Ok(changed > 0)
}

/// Where `dispatched_through` of an action can go, if that is further than where it is. Looked up on a reader: what is
/// touched stays touched.
pub(super) fn advanced(conn: &mut SqliteConnection, no: i64, limit: usize) -> QueryResult<(i64, Option<i64>)> {
    let (through, resolved_through) = actions::table
        .find(no)
        .select((actions::dispatched_through, actions::resolved_through))
        .first::<(i64, i64)>(conn)?;
    let next = match super::commands::first_untouched(conn, no, through, limit)? {
        Some(untouched) => untouched - 1,
        None => super::commands::key_after(conn, no, through, limit)?.unwrap_or(resolved_through),
    };
    Ok((through, (next > through).then_some(next)))
}

pub(super) fn advance(conn: &mut SqliteConnection, no: i64, through: i64) -> QueryResult<()> {
    diesel::update(actions::table.find(no).filter(actions::dispatched_through.lt(through)))
        .set(actions::dispatched_through.eq(through))
        .execute(conn)
        .map(|_| ())
}

pub(super) fn complete(conn: &mut SqliteConnection, nos: &[i64], now: Timestamp) -> QueryResult<Vec<i64>> {
    let ended = sql_query(
        "UPDATE actions SET ended_at = ?2 WHERE ended_at IS NULL AND resolved \
         AND no IN (SELECT value FROM json_each(?1)) \
         AND NOT EXISTS (SELECT 1 FROM action_counts c WHERE c.action_no = actions.no GROUP BY c.action_no HAVING \
             sum(total) <> sum(succeeded + failed + timed_out + undeliverable + c.expired + c.cancelled)) \
         RETURNING no AS key",
    )
    .bind::<Text, _>(json(nos)?)
    .bind::<BigInt, _>(now.0)
    .load::<Key>(conn)?;
    Ok(ended.into_iter().map(|row| row.key).collect())
}

/// What a transaction adds to the counters of the actions that it touches.
#[derive(Default)]
pub(super) struct Deltas(BTreeMap<i64, Counts>);

impl Deltas {
    pub(super) fn of(&mut self, action_no: i64) -> &mut Counts {
        self.0.entry(action_no).or_default()
    }

    /// Adds them to this process's lane.
    pub(super) fn write(self, conn: &mut SqliteConnection, lane: &str) -> QueryResult<()> {
        use action_counts as c;
        for (action_no, delta) in self.0 {
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
}
