//! Schedules and their occurrences.
//!
//! Thousands of schedules may be due at the same second. So a batch of them is planned in one
//! transaction, and their actions, occurrences and next times are one statement each.

use super::audit;
use super::counts::SUMS;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::action::{Membership, NewAction};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::hook::Listener;
use crate::domain::schedule::Dropped;
use crate::domain::time::Timestamp;
use crate::store::schedules::Settled;
use crate::store::sql::actions::{ActionViewRow, Sums, WITHOUT_DOCUMENT};
use crate::store::sql::hooks::occurrences_missed;
use crate::store::sql::schedules::{
    self as statements, ClaimedRow, DroppedRow, Last, OccurrenceRow, RUNNING, Running, RunningRow, ScheduleRow,
    SizeRow, TimeRow,
};
use crate::store::sql::{Key, corrupt, sql};
use crate::store::{
    Accepted, DueSchedule, Made, MadeOccurrence, NewSchedule, NextOccurrence, OccurrenceView, Planned, Planner, Put,
    ScheduleTag, ScheduleView, Schedules, Store, StoreResult,
};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

#[async_trait]
impl Schedules for PostgresStore {
    async fn schedule_insert(&self, new: NewSchedule, by: &Author) -> StoreResult<Option<ScheduleView>> {
        let (new, by, now) = (Arc::new(new), Arc::new(by.clone()), self.now());
        let insert = body!([new, by] conn => insert(conn, &new, &by, now));
        self.write(Caller::Pipeline, "schedule_insert", insert).await
    }

    async fn schedule_put(&self, new: NewSchedule, expected: Option<ScheduleTag>, by: &Author) -> StoreResult<Put> {
        let (new, by, now) = (Arc::new(new), Arc::new(by.clone()), self.now());
        let put = body!([new, by] conn => put(conn, &new, expected, &by, now));
        self.write(Caller::Pipeline, "schedule_put", put).await
    }

    async fn schedule_view(&self, name: &str) -> StoreResult<Option<ScheduleView>> {
        let name = name.to_owned();
        let row = self.read(Caller::People, "schedule_view", body!([name] conn => with_name(conn, &name, ""))).await?;
        Ok(row.map(ScheduleRow::view))
    }

    async fn schedule_list(&self, after: Option<&str>, limit: usize) -> StoreResult<Vec<ScheduleView>> {
        let after = after.map(str::to_owned);
        let list = body!([after] conn => list(conn, after.as_deref(), limit));
        self.read(Caller::People, "schedule_list", list).await
    }

    async fn schedule_occurrences(&self, no: i64, limit: usize) -> StoreResult<Vec<OccurrenceView>> {
        self.read(Caller::People, "schedule_occurrences", body!([] conn => occurrences(conn, no, limit))).await
    }

    async fn schedule_dropped(&self, no: i64, limit: usize) -> StoreResult<Vec<Dropped>> {
        self.read(Caller::People, "schedule_dropped", body!([] conn => dropped(conn, no, limit))).await
    }

    async fn schedule_pause(
        &self,
        tag: ScheduleTag,
        next: Option<NextOccurrence>,
        by: &Author,
    ) -> StoreResult<Option<ScheduleView>> {
        let (next, by, now) = (Arc::new(next), Arc::new(by.clone()), self.now());
        let pause = body!([next, by] conn => pause(conn, tag, (*next).as_ref(), &by, now));
        self.write(Caller::Pipeline, "schedule_pause", pause).await
    }

    async fn schedule_remove(&self, name: &str, by: &Author) -> StoreResult<bool> {
        let (name, by, now) = (name.to_owned(), Arc::new(by.clone()), self.now());
        self.write(Caller::Pipeline, "schedule_remove", body!([name, by] conn => remove(conn, &name, &by, now))).await
    }

    async fn schedule_trigger(
        &self,
        tag: ScheduleTag,
        action: NewAction,
        by: &Author,
    ) -> StoreResult<Option<Accepted>> {
        let (action, by, now) = (Arc::new(action), Arc::new(by.clone()), self.now());
        let owner = self.inner.incarnation.clone();
        let trigger = body!([action, by, owner] conn => trigger(conn, tag, (*action).clone(), &owner, &by, now));
        self.write(Caller::Pipeline, "schedule_trigger", trigger).await
    }

    async fn schedule_due(&self, limit: usize) -> StoreResult<Vec<(i64, usize)>> {
        let now = self.now();
        self.read(Caller::Pipeline, "schedule_due", body!([] conn => due(conn, now, limit))).await
    }

    async fn schedule_next(&self) -> StoreResult<Option<Timestamp>> {
        self.read(Caller::Pipeline, "schedule_next", body!([] conn => next(conn))).await
    }

    async fn schedule_stale(&self, zone_data: &str, after: i64, limit: usize) -> StoreResult<Vec<(i64, usize)>> {
        let zone_data = zone_data.to_owned();
        let stale = body!([zone_data] conn => stale(conn, &zone_data, after, limit));
        self.read(Caller::Pipeline, "schedule_stale", stale).await
    }

    async fn schedule_make(&self, nos: Vec<i64>, planner: Arc<dyn Planner>) -> StoreResult<Made> {
        let making = Making {
            nos,
            planner,
            owner: self.inner.incarnation.clone(),
            hooks: self.inner.hooks.get(),
            now: self.now(),
        };
        let making = Arc::new(making);
        self.write(Caller::Pipeline, "schedule_make", body!([making] conn => make(conn, &making))).await
    }

    async fn occurrence_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write(Caller::Pipeline, "occurrence_purge", body!([] conn => purge(conn, before, limit))).await
    }
}

/// Locks a schedule until the transaction ends.
const LOCK: &str = " FOR UPDATE";

/// Writes an entry of the audit log.
async fn note(
    conn: &mut AsyncPgConnection,
    by: &Author,
    did: &'static str,
    name: &str,
    detail: &str,
    now: Timestamp,
) -> QueryResult<()> {
    audit::insert(conn, by, AuditEvent { did, subject: name, detail }, now).await
}

async fn with_name(conn: &mut AsyncPgConnection, name: &str, lock: &'static str) -> QueryResult<Option<ScheduleRow>> {
    statements::with_name(name, lock).get_result(conn).await.optional()
}

/// The schedule in this state, locked.
async fn in_state(conn: &mut AsyncPgConnection, tag: ScheduleTag) -> QueryResult<Option<ScheduleRow>> {
    let row: Option<ScheduleRow> = statements::with_no(tag.no, LOCK).get_result(conn).await.optional()?;
    Ok(row.filter(|row| row.tag() == tag))
}

async fn insert(
    conn: &mut AsyncPgConnection,
    new: &NewSchedule,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ScheduleView>> {
    let row: Option<ScheduleRow> = statements::insert(new, &by.name, now).get_result(conn).await.optional()?;
    if row.is_some() {
        note(conn, by, "schedule.create", &new.name, "", now).await?;
    }
    Ok(row.map(ScheduleRow::view))
}

async fn put(
    conn: &mut AsyncPgConnection,
    new: &NewSchedule,
    expected: Option<ScheduleTag>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Put> {
    let Some(row) = with_name(conn, &new.name, LOCK).await? else {
        let made = if expected.is_none() { insert(conn, new, by, now).await? } else { None };
        return Ok(made.map_or(Put::Changed, Put::Created));
    };
    if expected.is_some_and(|expected| expected != row.tag()) {
        return Ok(Put::Changed);
    }
    if row.is_same(new) {
        return Ok(Put::Replaced(row.view()));
    }
    let row: ScheduleRow = statements::replace(row.tag().no, new, now).get_result(conn).await?;
    note(conn, by, "schedule.change", &new.name, "", now).await?;
    Ok(Put::Replaced(row.view()))
}

async fn pause(
    conn: &mut AsyncPgConnection,
    tag: ScheduleTag,
    next: Option<&NextOccurrence>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ScheduleView>> {
    let Some(row) = in_state(conn, tag).await? else { return Ok(None) };
    if row.is_paused() == next.is_none() {
        return Ok(Some(row.view()));
    }
    let row: ScheduleRow = statements::pause(tag.no, next, now).get_result(conn).await?;
    let did = if next.is_none() { "schedule.pause" } else { "schedule.resume" };
    note(conn, by, did, row.name(), "", now).await?;
    Ok(Some(row.view()))
}

async fn trigger(
    conn: &mut AsyncPgConnection,
    tag: ScheduleTag,
    mut action: NewAction,
    owner: &str,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<Accepted>> {
    let Some(row) = in_state(conn, tag).await? else { return Ok(None) };
    let last = statements::last_triggered(tag.no).get_result::<TimeRow>(conn).await?.at;
    let at = Timestamp(now.0.max(last.map_or(i64::MIN, |last| last + 1)));
    action.scheduled_for = Some(at);
    let accepted = super::actions::insert_one(conn, &action, owner, now).await?;
    if let Accepted::Stored { id, no: action_no, is_new: true } = accepted {
        statements::insert_occurrence(tag.no, at, true, action_no, now).execute(conn).await?;
        statements::set_last(tag.no, at, action_no).execute(conn).await?;
        note(conn, by, "schedule.trigger", row.name(), &id.to_string(), now).await?;
    }
    Ok(Some(accepted))
}

async fn list(conn: &mut AsyncPgConnection, after: Option<&str>, limit: usize) -> QueryResult<Vec<ScheduleView>> {
    let rows: Vec<ScheduleRow> = statements::list(after, limit).load(conn).await?;
    Ok(rows.into_iter().map(ScheduleRow::view).collect())
}

async fn dropped(conn: &mut AsyncPgConnection, no: i64, limit: usize) -> QueryResult<Vec<Dropped>> {
    let rows: Vec<DroppedRow> = statements::dropped(no, limit).load(conn).await?;
    rows.into_iter().map(DroppedRow::dropped).collect()
}

async fn remove(conn: &mut AsyncPgConnection, name: &str, by: &Author, now: Timestamp) -> QueryResult<bool> {
    let is_removed = statements::remove(name).execute(conn).await? > 0;
    if is_removed {
        note(conn, by, "schedule.remove", name, "", now).await?;
    }
    Ok(is_removed)
}

async fn due(conn: &mut AsyncPgConnection, now: Timestamp, limit: usize) -> QueryResult<Vec<(i64, usize)>> {
    let rows: Vec<SizeRow> = statements::due(now, limit).load(conn).await?;
    Ok(rows.into_iter().map(<(i64, usize)>::from).collect())
}

async fn next(conn: &mut AsyncPgConnection) -> QueryResult<Option<Timestamp>> {
    Ok(statements::next().get_result::<TimeRow>(conn).await?.at.map(Timestamp))
}

async fn stale(
    conn: &mut AsyncPgConnection,
    zone_data: &str,
    after: i64,
    limit: usize,
) -> QueryResult<Vec<(i64, usize)>> {
    let rows: Vec<SizeRow> = statements::stale(zone_data, after, limit).load(conn).await?;
    Ok(rows.into_iter().map(<(i64, usize)>::from).collect())
}

async fn purge(conn: &mut AsyncPgConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    let made = statements::purge_occurrences(before, limit).execute(conn).await?;
    Ok(made + statements::purge_dropped(before, limit - made).execute(conn).await?)
}

async fn occurrences(conn: &mut AsyncPgConnection, no: i64, limit: usize) -> QueryResult<Vec<OccurrenceView>> {
    let rows: Vec<OccurrenceRow> = statements::occurrences(no, limit).load(conn).await?;
    let action_nos: Vec<i64> = rows.iter().filter_map(|row| row.action_no).collect();
    let actions = sql(format!("SELECT {WITHOUT_DOCUMENT} FROM actions a WHERE a.no = ANY(?)")).bind(action_nos);
    let mut standing = HashMap::new();
    for action in actions.load::<ActionViewRow>(conn).await? {
        standing.insert(action.no, action.standing()?);
    }
    let views = rows.into_iter().map(|row| {
        let action = row.action_no.and_then(|no| standing.get(&no).copied());
        OccurrenceView { action, ..OccurrenceView::from(row) }
    });
    Ok(views.collect())
}

/// What planning needs.
struct Making {
    nos: Vec<i64>,
    planner: Arc<dyn Planner>,
    owner: String,
    hooks: Arc<Vec<Listener>>,
    now: Timestamp,
}

/// A schedule in a batch.
struct Planning {
    due: DueSchedule,
    last: Last,
    next: NextOccurrence,
    error: Option<String>,
    settled: Settled,
    /// The previous action, if it still runs.
    running: Option<(i64, Uuid)>,
}

/// An action that was inserted for an occurrence.
struct Inserted {
    /// The schedule's position in the batch.
    of: usize,
    at: Timestamp,
    action_no: i64,
    id: Uuid,
}

async fn make(conn: &mut AsyncPgConnection, making: &Making) -> QueryResult<Made> {
    let now = making.now;
    let claim = statements::claim("= ANY(?)").and(" FOR UPDATE SKIP LOCKED").bind(making.nos.clone());
    let claimed: Vec<ClaimedRow> = claim.load(conn).await?;
    let planned: Vec<(DueSchedule, Last, Planned)> = claimed
        .into_iter()
        .map(|row| {
            let (due, last) = row.split();
            let planned = making.planner.plan(&due, now);
            (due, last, planned)
        })
        .collect();
    let previous = planned.iter().filter(|(.., planned)| planned.asks_for_previous());
    let running = running(conn, previous.filter_map(|(_, last, _)| last.action_no).collect(), now).await?;
    let mut batch: Vec<Planning> = Vec::with_capacity(planned.len());
    for (due, last, planned) in planned {
        let running = last.action_no.and_then(|no| Some((no, *running.get(&no)?)));
        let (next, error) = (planned.next.clone(), planned.error.clone());
        let settled = planned.settle(&due.name, running.is_some());
        batch.push(Planning { due, last, next, error, settled, running });
    }
    let inserted = insert_all(conn, &batch, &making.owner, now).await?;
    let mut made = Made::default();
    let mut cancelled: Vec<(i64, Uuid, usize)> = Vec::new();
    for (of, schedule) in batch.iter().enumerate() {
        if let Some((no, id)) = schedule.running.filter(|_| schedule.settled.cancel_previous) {
            cancelled.push((no, id, of));
        }
    }
    for pair in inserted.windows(2) {
        let [first, second] = pair else { continue };
        if first.of == second.of && batch[first.of].settled.cancel_each_other {
            cancelled.push((first.action_no, first.id, first.of));
        }
    }
    cancel(conn, &batch, cancelled, now, &mut made).await?;
    let mut last_made: HashMap<usize, &Inserted> = HashMap::new();
    for occurrence in &inserted {
        let Inserted { of, at, id, .. } = *occurrence;
        last_made.insert(of, occurrence);
        let schedule = batch[of].due.name.clone();
        made.occurrences.push(MadeOccurrence { schedule, at, made_at: now, action: id });
    }
    let mut missed = Vec::new();
    for (of, schedule) in batch.iter_mut().enumerate() {
        let Planning { due, last, next, error, settled, .. } = schedule;
        for dropped in std::mem::take(&mut settled.dropped) {
            drop_range(conn, due, last, dropped, now, &mut made).await?;
        }
        if let Some(occurrence) = last_made.get(&of) {
            *last = Last { at: Some(occurrence.at.0), action_no: Some(occurrence.action_no), dropped: None };
        }
        if let Some(dropped) = settled.overlapping.take() {
            drop_range(conn, due, last, dropped, now, &mut made).await?;
        }
        missed.extend(settled.missed.take());
        made.has_more |= next.at.is_some_and(|at| at <= now);
        made.errors.extend(error.iter().map(|error| (due.name.clone(), error.clone())));
    }
    advance(conn, &batch).await?;
    let events = occurrences_missed(&making.hooks, &missed, now)?;
    made.hooks_told = !events.is_empty();
    super::hooks::insert(conn, events).await?;
    Ok(made)
}

/// Which of these actions still run, each with its id.
async fn running(conn: &mut AsyncPgConnection, nos: Vec<i64>, now: Timestamp) -> QueryResult<HashMap<i64, Uuid>> {
    let mut running = HashMap::new();
    if nos.is_empty() {
        return Ok(running);
    }
    let rows: Vec<(RunningRow, Sums)> =
        sql(format!("SELECT {RUNNING}, s.* FROM actions a {SUMS} WHERE a.no = ANY(?)")).bind(nos).load(conn).await?;
    for (row, sums) in rows {
        let runs = match row.running(sums.counts(true).sent, now) {
            Running::Known(runs) => runs,
            Running::IfOnItsWay { after, has_rest } => {
                statements::runs_again(row.no).get_result::<Key>(conn).await.optional()?.is_some()
                    || has_rest && is_on_its_way(conn, row.no, after).await?
            }
        };
        if runs {
            running.insert(row.no, row.id()?);
        }
    }
    Ok(running)
}

/// Whether one of the commands after a key is on its way. If it would take long to find out, one is.
async fn is_on_its_way(conn: &mut AsyncPgConnection, action_no: i64, after: i64) -> QueryResult<bool> {
    let found = super::commands::first_untouched(conn, action_no, after, statements::LOOKED_AT).await?;
    Ok(found.is_some() || super::commands::key_after(conn, action_no, after, statements::LOOKED_AT).await?.is_some())
}

/// Inserts the actions of a batch and its occurrences, in order.
async fn insert_all(
    conn: &mut AsyncPgConnection,
    batch: &[Planning],
    owner: &str,
    now: Timestamp,
) -> QueryResult<Vec<Inserted>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        no: i64,
        #[diesel(sql_type = Text)]
        id: String,
    }
    let all: Vec<(usize, &(Timestamp, NewAction))> = batch
        .iter()
        .enumerate()
        .flat_map(|(of, schedule)| schedule.settled.make.iter().map(move |made| (of, made)))
        .collect();
    let actions: Vec<&NewAction> = all.iter().map(|(_, (_, action))| action).collect();
    if actions.is_empty() {
        return Ok(Vec::new());
    }
    let texts = |of: &dyn Fn(&NewAction) -> String| actions.iter().map(|action| of(action)).collect::<Vec<String>>();
    let numbers = |of: &dyn Fn(&NewAction) -> i64| actions.iter().map(|action| of(action)).collect::<Vec<i64>>();
    let integers = |of: &dyn Fn(&NewAction) -> i32| actions.iter().map(|action| of(action)).collect::<Vec<i32>>();
    let rows: Vec<Row> = sql(
        "INSERT INTO actions (id, name, target, document, operations, digest, created_at, valid_from, expires_at, \
             spread_ms, timeout_ms, max_deliveries, max_runs, live, priority, owner, created_by, scheduled_for) \
             SELECT id, name, target, document, operations, digest, ?, valid_from, expires_at, \
             spread_ms, timeout_ms, max_deliveries::integer, max_runs, live, priority, ?, created_by, scheduled_for \
             FROM UNNEST(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS n (id, name, target, document, operations, \
             digest, valid_from, expires_at, spread_ms, timeout_ms, max_deliveries, max_runs, live, priority, \
             created_by, scheduled_for) RETURNING no, id",
    )
    .bind(now.0)
    .bind(owner)
    .bind(texts(&|action| action.id.to_string()))
    .bind(texts(&|action| action.name.clone()))
    .bind(texts(&|action| action.target.clone()))
    .bind(texts(&|action| action.document.clone()))
    .bind(texts(&|action| action.operations.clone()))
    .bind(actions.iter().map(|action| action.digest.clone()).collect::<Vec<Vec<u8>>>())
    .bind(numbers(&|action| action.valid_from.0))
    .bind(numbers(&|action| action.expires_at.0))
    .bind(numbers(&|action| action.spread.as_millis()))
    .bind(numbers(&|action| action.timeout.as_millis()))
    .bind(actions.iter().map(|action| action.max_deliveries.map(i64::from)).collect::<Vec<Option<i64>>>())
    .bind(integers(&|action| action.max_runs))
    .bind(actions.iter().map(|action| action.membership == Membership::Live).collect::<Vec<bool>>())
    .bind(integers(&|action| action.priority))
    .bind(texts(&|action| action.author.name.clone()))
    .bind(actions.iter().map(|action| action.scheduled_for.map(|time| time.0)).collect::<Vec<Option<i64>>>())
    .load(conn)
    .await?;
    let nos: HashMap<String, i64> = rows.into_iter().map(|row| (row.id, row.no)).collect();
    let mut inserted = Vec::with_capacity(actions.len());
    for (of, (at, action)) in all {
        let action_no = nos.get(&action.id.to_string()).copied();
        let action_no = action_no.ok_or_else(|| corrupt(format!("action {} was not inserted", action.id)))?;
        inserted.push(Inserted { of, at: *at, action_no, id: action.id });
    }
    sql("INSERT INTO occurrences (schedule_no, occurs_at, triggered, made_at, action_no) \
         SELECT schedule_no, occurs_at, FALSE, ?, action_no FROM UNNEST(?, ?, ?) AS n (schedule_no, occurs_at, action_no)")
    .bind(now.0)
    .bind(inserted.iter().map(|made| batch[made.of].due.tag.no).collect::<Vec<i64>>())
    .bind(inserted.iter().map(|made| made.at.0).collect::<Vec<i64>>())
    .bind(inserted.iter().map(|made| made.action_no).collect::<Vec<i64>>())
    .execute(conn)
    .await?;
    Ok(inserted)
}

/// Cancels the actions of occurrences for later ones, each with the position of its schedule.
async fn cancel(
    conn: &mut AsyncPgConnection,
    batch: &[Planning],
    actions: Vec<(i64, Uuid, usize)>,
    now: Timestamp,
    made: &mut Made,
) -> QueryResult<()> {
    for (no, id, of) in actions {
        if crate::store::sql::actions::cancel(id).execute(conn).await? > 0 {
            let by = Author::server(&format!("schedule:{}", batch[of].due.name));
            note(conn, &by, "action.cancel", &id.to_string(), "", now).await?;
            made.cancelled.push((no, id));
        }
    }
    Ok(())
}

/// Records a range of dropped occurrences, as part of the one before it if the reason is the same.
async fn drop_range(
    conn: &mut AsyncPgConnection,
    due: &DueSchedule,
    last: &mut Last,
    dropped: Dropped,
    now: Timestamp,
    made: &mut Made,
) -> QueryResult<()> {
    let reason = dropped.reason.as_str();
    let before = last.dropped.filter(|(_, before)| *before == reason);
    let is_extended = match before {
        Some((dropped_no, _)) => statements::extend_dropped(dropped_no, &dropped, now).execute(conn).await? > 0,
        None => false,
    };
    if !is_extended {
        let insert = statements::insert_dropped(due.tag.no, &dropped, now);
        last.dropped = Some((insert.get_result::<Key>(conn).await?.key, reason));
    }
    made.dropped.push((due.name.clone(), dropped));
    Ok(())
}

/// Notes what became of the schedules of a batch.
async fn advance(conn: &mut AsyncPgConnection, batch: &[Planning]) -> QueryResult<()> {
    let numbers = |of: &dyn Fn(&Planning) -> Option<i64>| batch.iter().map(of).collect::<Vec<Option<i64>>>();
    let texts = |of: &dyn Fn(&Planning) -> Option<String>| batch.iter().map(of).collect::<Vec<Option<String>>>();
    let nos: Vec<i64> = batch.iter().map(|schedule| schedule.due.tag.no).collect();
    sql("UPDATE schedules s SET decided = n.decided, next_at = n.next_at, zone_data = n.zone_data, error = n.error, \
         last_at = n.last_at, last_action_no = n.last_action_no, dropped_no = n.dropped_no, \
         dropped_reason = n.dropped_reason FROM UNNEST(?, ?, ?, ?, ?, ?, ?, ?, ?) AS n (no, decided, next_at, \
         zone_data, error, last_at, last_action_no, dropped_no, dropped_reason) WHERE s.no = n.no AND s.no = ANY(?)")
    .bind(nos.clone())
    .bind(batch.iter().map(|schedule| schedule.next.decided.0).collect::<Vec<i64>>())
    .bind(numbers(&|schedule| schedule.next.at.map(|at| at.0)))
    .bind(texts(&|schedule| schedule.next.zone_data.clone()))
    .bind(texts(&|schedule| schedule.error.clone()))
    .bind(numbers(&|schedule| schedule.last.at))
    .bind(numbers(&|schedule| schedule.last.action_no))
    .bind(numbers(&|schedule| schedule.last.dropped.map(|(no, _)| no)))
    .bind(texts(&|schedule| schedule.last.dropped.map(|(_, reason)| reason.to_owned())))
    .bind(nos)
    .execute(conn)
    .await
    .map(|_| ())
}
