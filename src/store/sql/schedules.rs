//! Schedules: their rows, and statements that are the same for both databases.

use super::statement::{Sql, sql};
use super::values::{corrupt, sql_limit};
use crate::domain::schedule::{Dropped, Reason};
use crate::domain::time::Timestamp;
use crate::store::{DueSchedule, NewSchedule, NextOccurrence, OccurrenceView, ScheduleTag, ScheduleView};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use serde_json::value::RawValue;
use uuid::Uuid;

/// How many commands of an action are looked at to find one that is on its way.
pub(in crate::store) const LOOKED_AT: usize = 5_000;

/// The columns of a [`ScheduleRow`].
const COLUMNS: &str =
    "no, version, name, document, digest, paused, next_at, last_at, error, created_at, created_by, changed_at";

/// A schedule, as users see it.
#[derive(QueryableByName)]
pub(in crate::store) struct ScheduleRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    document: String,
    #[diesel(sql_type = Binary)]
    digest: Vec<u8>,
    #[diesel(sql_type = Bool)]
    paused: bool,
    #[diesel(sql_type = Nullable<BigInt>)]
    next_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    error: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Text)]
    created_by: String,
    #[diesel(sql_type = BigInt)]
    changed_at: i64,
}

impl ScheduleRow {
    pub(in crate::store) fn tag(&self) -> ScheduleTag {
        ScheduleTag { no: self.no, version: self.version }
    }

    pub(in crate::store) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(in crate::store) fn name(&self) -> &str {
        &self.name
    }

    /// Whether storing this again would change nothing.
    pub(in crate::store) fn is_same(&self, new: &NewSchedule) -> bool {
        self.digest == new.digest && new.paused.is_none_or(|paused| paused == self.paused)
    }

    pub(in crate::store) fn view(self) -> ScheduleView {
        ScheduleView {
            tag: self.tag(),
            name: self.name,
            document: self.document,
            digest: self.digest,
            paused: self.paused,
            next_at: self.next_at.map(Timestamp),
            last_at: self.last_at.map(Timestamp),
            error: self.error,
            created_at: Timestamp(self.created_at),
            created_by: self.created_by,
            changed_at: Timestamp(self.changed_at),
        }
    }
}

/// A key, and the size of what it is the key of.
#[derive(QueryableByName)]
pub(in crate::store) struct SizeRow {
    #[diesel(sql_type = BigInt)]
    key: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

impl From<SizeRow> for (i64, usize) {
    fn from(row: SizeRow) -> Self {
        (row.key, usize::try_from(row.bytes).unwrap_or(usize::MAX))
    }
}

/// A time or a key that may be missing.
#[derive(QueryableByName)]
pub(in crate::store) struct MaybeRow {
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(in crate::store) value: Option<i64>,
}

/// A schedule that this transaction plans.
#[derive(QueryableByName)]
pub(in crate::store) struct ClaimedRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    document: String,
    #[diesel(sql_type = BigInt)]
    decided: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_action_no: Option<i64>,
    /// The range of dropped occurrences that may be extended, and its reason.
    #[diesel(sql_type = Nullable<BigInt>)]
    dropped_no: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    dropped_reason: Option<String>,
}

impl ClaimedRow {
    pub(in crate::store) fn split(self) -> (DueSchedule, Last) {
        let Self { no, version, name, document, decided, last_at, last_action_no, dropped_no, dropped_reason } = self;
        let tag = ScheduleTag { no, version };
        let reason = dropped_reason.as_deref().and_then(Reason::from_name).map(Reason::as_str);
        let last = Last { at: last_at, action_no: last_action_no, dropped: dropped_no.zip(reason) };
        (DueSchedule { tag, name, document, decided: Timestamp(decided) }, last)
    }
}

/// What became of the occurrences before.
pub(in crate::store) struct Last {
    /// The time of the last one that was made.
    pub(in crate::store) at: Option<i64>,
    /// Its action.
    pub(in crate::store) action_no: Option<i64>,
    /// The range of dropped ones after it, and its reason.
    pub(in crate::store) dropped: Option<(i64, &'static str)>,
}

/// The state of an action, as far as it decides whether the action still runs.
#[derive(QueryableByName)]
pub(in crate::store) struct RunningRow {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) no: i64,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Bool)]
    ended: bool,
    #[diesel(sql_type = Bool)]
    resolved: bool,
    #[diesel(sql_type = Bool)]
    cancelled: bool,
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
    #[diesel(sql_type = BigInt)]
    dispatched_through: i64,
    #[diesel(sql_type = BigInt)]
    resolved_through: i64,
}

/// The columns of a [`RunningRow`] of an action `a`.
pub(in crate::store) const RUNNING: &str = "a.no, a.id, a.ended_at IS NOT NULL AS ended, a.resolved, a.cancelled, \
     a.expires_at, a.dispatched_through, a.resolved_through";

/// Whether an action still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Running {
    /// It does, or it doesn't.
    Known(bool),
    /// It does if one of its commands after this key is on its way, or one is to run again.
    IfOnItsWay {
        after: i64,
        /// Whether there may be commands after that key.
        has_rest: bool,
    },
}

impl RunningRow {
    pub(in crate::store) fn id(&self) -> QueryResult<Uuid> {
        Uuid::parse_str(&self.id).map_err(corrupt)
    }

    /// Whether it still runs, given how many agents have a command of it.
    pub(in crate::store) fn running(&self, sent: i64, now: Timestamp) -> Running {
        if self.ended || sent > 0 {
            return Running::Known(!self.ended);
        }
        // Nothing more of it is handed over.
        if self.cancelled || self.expires_at <= now.0 {
            return Running::Known(false);
        }
        if !self.resolved {
            return Running::Known(true);
        }
        Running::IfOnItsWay {
            after: self.dispatched_through,
            has_rest: self.dispatched_through < self.resolved_through,
        }
    }
}

/// Selects a row if one of the first commands with open rows is to run again and was not tried yet.
/// Hand-overs that failed don't count: that agent is away.
pub(in crate::store) fn runs_again(action_no: i64) -> Sql {
    sql("SELECT agent_no AS key FROM (SELECT agent_no, state, run, attempts FROM open_commands WHERE action_no = ? \
         LIMIT ?) o WHERE state = 1 AND run > 1 AND attempts = 0 LIMIT 1")
    .bind(action_no)
    .bind(sql_limit(LOOKED_AT))
}

/// An occurrence, with the key of its action.
#[derive(QueryableByName)]
pub(in crate::store) struct OccurrenceRow {
    #[diesel(sql_type = BigInt)]
    occurs_at: i64,
    #[diesel(sql_type = Bool)]
    triggered: bool,
    #[diesel(sql_type = BigInt)]
    made_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub(in crate::store) action_no: Option<i64>,
}

impl From<OccurrenceRow> for OccurrenceView {
    fn from(row: OccurrenceRow) -> Self {
        Self { at: Timestamp(row.occurs_at), triggered: row.triggered, made_at: Timestamp(row.made_at), action: None }
    }
}

/// A range of dropped occurrences.
#[derive(QueryableByName)]
pub(in crate::store) struct DroppedRow {
    #[diesel(sql_type = BigInt)]
    from_at: i64,
    #[diesel(sql_type = BigInt)]
    to_at: i64,
    #[diesel(sql_type = BigInt)]
    number: i64,
    #[diesel(sql_type = Text)]
    reason: String,
}

impl DroppedRow {
    pub(in crate::store) fn dropped(self) -> QueryResult<Dropped> {
        let reason = Reason::from_name(&self.reason).ok_or_else(|| corrupt(format!("a reason, {}", self.reason)))?;
        let count = u64::try_from(self.number).unwrap_or(0);
        Ok(Dropped { from: Timestamp(self.from_at), to: Timestamp(self.to_at), count, reason })
    }
}

/// Inserts a schedule unless the name is taken.
pub(in crate::store) fn insert(new: &NewSchedule, by: &str, now: Timestamp) -> Sql {
    let paused = new.paused.unwrap_or(false);
    sql(format!(
        "INSERT INTO schedules (name, document, digest, paused, decided, next_at, zone_data, created_at, created_by, \
         changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING {COLUMNS}"
    ))
    .bind(new.name.as_str())
    .bind(new.document.as_str())
    .bind(new.digest.clone())
    .bind(paused)
    .bind(new.next.decided.0)
    .bind(next_unless(paused, &new.next))
    .bind(new.next.zone_data.clone())
    .bind(now.0)
    .bind(by)
    .bind(now.0)
}

fn next_unless(paused: bool, next: &NextOccurrence) -> Option<i64> {
    next.at.filter(|_| !paused).map(|at| at.0)
}

/// Replaces a schedule.
pub(in crate::store) fn replace(old: &ScheduleRow, new: &NewSchedule, now: Timestamp) -> Sql {
    let paused = new.paused.unwrap_or(old.paused);
    sql(format!(
        "UPDATE schedules SET version = version + 1, document = ?, digest = ?, paused = ?, decided = ?, next_at = ?, \
         zone_data = ?, error = NULL, changed_at = ? WHERE no = ? RETURNING {COLUMNS}"
    ))
    .bind(new.document.as_str())
    .bind(new.digest.clone())
    .bind(paused)
    .bind(new.next.decided.0)
    .bind(next_unless(paused, &new.next))
    .bind(new.next.zone_data.clone())
    .bind(now.0)
    .bind(old.no)
}

/// Selects the schedule of a name.
pub(in crate::store) fn with_name(name: &str) -> Sql {
    sql(format!("SELECT {COLUMNS} FROM schedules WHERE name = ?")).bind(name)
}

/// Selects the schedule of a key. `lock` is what PostgreSQL adds to lock it.
pub(in crate::store) fn with_no(no: i64, lock: &'static str) -> Sql {
    sql(format!("SELECT {COLUMNS} FROM schedules WHERE no = ?{lock}")).bind(no)
}

/// Selects schedules by name.
pub(in crate::store) fn list(after: Option<&str>, limit: usize) -> Sql {
    sql(format!("SELECT {COLUMNS} FROM schedules WHERE name > ? ORDER BY name LIMIT ?"))
        .bind(after.unwrap_or_default())
        .bind(sql_limit(limit))
}

/// Pauses a schedule, or resumes it.
pub(in crate::store) fn pause(no: i64, next: Option<&NextOccurrence>, now: Timestamp) -> Sql {
    let changed = match next {
        None => sql("UPDATE schedules SET version = version + 1, paused = TRUE, next_at = NULL, changed_at = ?"),
        Some(next) => sql("UPDATE schedules SET version = version + 1, paused = FALSE, decided = ?, next_at = ?, \
             zone_data = ?, error = NULL, changed_at = ?")
        .bind(next.decided.0)
        .bind(next.at.map(|at| at.0))
        .bind(next.zone_data.clone()),
    };
    changed.bind(now.0).and(format!(" WHERE no = ? RETURNING {COLUMNS}")).bind(no)
}

/// Deletes a schedule. What is kept of its occurrences goes with their retention.
pub(in crate::store) fn remove(no: i64) -> Sql {
    sql("DELETE FROM schedules WHERE no = ?").bind(no)
}

/// Selects schedules that are due, earliest first.
pub(in crate::store) fn due(now: Timestamp, limit: usize) -> Sql {
    sql("SELECT no AS key, CAST(octet_length(document) AS BIGINT) AS bytes FROM schedules WHERE next_at <= ? \
         ORDER BY next_at, no LIMIT ?")
    .bind(now.0)
    .bind(sql_limit(limit))
}

/// Selects when the next schedule is due.
pub(in crate::store) fn next() -> Sql {
    sql("SELECT min(next_at) AS value FROM schedules WHERE next_at IS NOT NULL")
}

/// Selects schedules whose next time comes from older zone data.
pub(in crate::store) fn stale(zone_data: &str, after: i64, limit: usize) -> Sql {
    sql("SELECT no AS key, CAST(octet_length(document) AS BIGINT) AS bytes FROM schedules WHERE no > ? \
         AND zone_data < ? AND NOT paused ORDER BY no LIMIT ?")
    .bind(after)
    .bind(zone_data)
    .bind(sql_limit(limit))
}

/// Selects schedules to plan. `among` is the condition on the key.
pub(in crate::store) fn claim(among: &str) -> Sql {
    sql(format!(
        "SELECT no, version, name, document, decided, last_at, last_action_no, dropped_no, dropped_reason \
         FROM schedules WHERE no {among} AND NOT paused ORDER BY next_at, no"
    ))
}

/// Inserts an occurrence.
pub(in crate::store) fn insert_occurrence(
    no: i64,
    at: Timestamp,
    triggered: bool,
    action_no: i64,
    now: Timestamp,
) -> Sql {
    sql("INSERT INTO occurrences (schedule_no, occurs_at, triggered, made_at, action_no) VALUES (?, ?, ?, ?, ?)")
        .bind(no)
        .bind(at.0)
        .bind(triggered)
        .bind(now.0)
        .bind(action_no)
}

/// Selects the time of the last occurrence that an operator triggered.
pub(in crate::store) fn last_triggered(no: i64) -> Sql {
    sql("SELECT max(occurs_at) AS value FROM occurrences WHERE schedule_no = ? AND triggered").bind(no)
}

/// Selects the key of the action of the last occurrence.
pub(in crate::store) fn last_action(no: i64) -> Sql {
    sql("SELECT last_action_no AS value FROM schedules WHERE no = ?").bind(no)
}

/// Notes the last occurrence of a schedule.
pub(in crate::store) fn set_last(no: i64, at: Timestamp, action_no: i64) -> Sql {
    sql("UPDATE schedules SET last_at = ?, last_action_no = ?, dropped_no = NULL, dropped_reason = NULL WHERE no = ?")
        .bind(at.0)
        .bind(action_no)
        .bind(no)
}

/// Notes what became of a schedule that was planned.
pub(in crate::store) fn advance(no: i64, next: &NextOccurrence, error: Option<&str>, last: Last) -> Sql {
    let (dropped_no, dropped_reason) = last.dropped.unzip();
    sql("UPDATE schedules SET decided = ?, next_at = ?, zone_data = ?, error = ?, last_at = ?, last_action_no = ?, \
         dropped_no = ?, dropped_reason = ? WHERE no = ?")
    .bind(next.decided.0)
    .bind(next.at.map(|at| at.0))
    .bind(next.zone_data.clone())
    .bind(error.map(str::to_owned))
    .bind(last.at)
    .bind(last.action_no)
    .bind(dropped_no)
    .bind(dropped_reason.map(str::to_owned))
    .bind(no)
}

/// Extends a range of dropped occurrences.
pub(in crate::store) fn extend_dropped(dropped_no: i64, more: &Dropped, now: Timestamp) -> Sql {
    sql("UPDATE dropped_occurrences SET to_at = ?, number = number + ?, recorded_at = ? WHERE no = ?")
        .bind(more.to.0)
        .bind(i64::try_from(more.count).unwrap_or(i64::MAX))
        .bind(now.0)
        .bind(dropped_no)
}

/// Inserts a range of dropped occurrences.
pub(in crate::store) fn insert_dropped(schedule_no: i64, dropped: &Dropped, now: Timestamp) -> Sql {
    sql("INSERT INTO dropped_occurrences (schedule_no, from_at, to_at, number, reason, recorded_at) \
         VALUES (?, ?, ?, ?, ?, ?) RETURNING no AS key")
    .bind(schedule_no)
    .bind(dropped.from.0)
    .bind(dropped.to.0)
    .bind(i64::try_from(dropped.count).unwrap_or(i64::MAX))
    .bind(dropped.reason.as_str())
    .bind(now.0)
}

/// Selects the newest occurrences of a schedule.
pub(in crate::store) fn occurrences(no: i64, limit: usize) -> Sql {
    sql("SELECT occurs_at, triggered, made_at, action_no FROM occurrences WHERE schedule_no = ? \
         ORDER BY occurs_at DESC, triggered DESC LIMIT ?")
    .bind(no)
    .bind(sql_limit(limit))
}

/// Selects the newest ranges of dropped occurrences of a schedule.
pub(in crate::store) fn dropped(no: i64, limit: usize) -> Sql {
    sql("SELECT from_at, to_at, number, reason FROM dropped_occurrences WHERE schedule_no = ? ORDER BY no DESC LIMIT ?")
        .bind(no)
        .bind(sql_limit(limit))
}

/// Deletes occurrences that were made before a time.
pub(in crate::store) fn purge_occurrences(before: Timestamp, limit: usize) -> Sql {
    sql("DELETE FROM occurrences WHERE (schedule_no, occurs_at, triggered) IN (SELECT schedule_no, occurs_at, \
         triggered FROM occurrences WHERE made_at < ? ORDER BY made_at LIMIT ?)")
    .bind(before.0)
    .bind(sql_limit(limit))
}

/// Deletes ranges of dropped occurrences that were recorded before a time.
pub(in crate::store) fn purge_dropped(before: Timestamp, limit: usize) -> Sql {
    sql("DELETE FROM dropped_occurrences WHERE no IN (SELECT no FROM dropped_occurrences WHERE recorded_at < ? \
         ORDER BY recorded_at LIMIT ?)")
    .bind(before.0)
    .bind(sql_limit(limit))
}

/// The target and the operations of the action in a schedule's document.
pub(in crate::store) fn what_of(document: &str) -> Option<(String, Box<RawValue>)> {
    #[derive(serde::Deserialize)]
    struct Document {
        action: What,
    }
    #[derive(serde::Deserialize)]
    struct What {
        target: String,
        operations: Box<RawValue>,
    }
    let Document { action: What { target, operations } } = serde_json::from_str(document).ok()?;
    Some((target, operations))
}
