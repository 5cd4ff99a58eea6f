//! Schedules.

use super::audit;
use super::occurrences::{Making, cancel, make, running};
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::action::NewAction;
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::schedule::Dropped;
use crate::domain::time::Timestamp;
use crate::store::sql::actions::{ActionViewRow, WITHOUT_DOCUMENT};
use crate::store::sql::schedules::{self as statements, DroppedRow, MaybeRow, OccurrenceRow, ScheduleRow, SizeRow};
use crate::store::sql::sql;
use crate::store::{
    Accepted, Made, NewSchedule, NextOccurrence, OccurrenceView, Planner, ScheduleTag, ScheduleView, Schedules, Store,
    StoreResult, Triggered,
};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::HashMap;
use std::sync::Arc;

#[async_trait]
impl Schedules for PostgresStore {
    async fn schedule_insert(&self, new: NewSchedule, by: &Author) -> StoreResult<Option<ScheduleView>> {
        let (new, by, now) = (Arc::new(new), Arc::new(by.clone()), self.now());
        let insert = body!([new, by] conn => insert(conn, &new, &by, now));
        self.write(Caller::Pipeline, "schedule_insert", insert).await
    }

    async fn schedule_replace(
        &self,
        tag: ScheduleTag,
        new: NewSchedule,
        by: &Author,
    ) -> StoreResult<Option<ScheduleView>> {
        let (new, by, now) = (Arc::new(new), Arc::new(by.clone()), self.now());
        let replace = body!([new, by] conn => replace(conn, tag, &new, &by, now));
        self.write(Caller::Pipeline, "schedule_replace", replace).await
    }

    async fn schedule_view(&self, name: &str) -> StoreResult<Option<ScheduleView>> {
        let name = name.to_owned();
        let row = self.read(Caller::People, "schedule_view", body!([name] conn => with_name(conn, &name))).await?;
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

    async fn schedule_remove(&self, tag: ScheduleTag, by: &Author) -> StoreResult<bool> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write(Caller::Pipeline, "schedule_remove", body!([by] conn => remove(conn, tag, &by, now))).await
    }

    async fn schedule_trigger(
        &self,
        tag: ScheduleTag,
        action: NewAction,
        cancel_previous: bool,
        by: &Author,
    ) -> StoreResult<Option<Triggered>> {
        let (owner, by, now) = (self.inner.incarnation.clone(), by.clone(), self.now());
        let triggering = Arc::new(Triggering { tag, action, cancel_previous, owner, by, now });
        self.write(Caller::Pipeline, "schedule_trigger", body!([triggering] conn => trigger(conn, &triggering))).await
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
    audit::insert(conn, by, AuditEvent { did, subject: name, detail, what: None }, now).await
}

/// The same for a schedule that is new or has changed.
async fn note_document(
    conn: &mut AsyncPgConnection,
    by: &Author,
    did: &'static str,
    (name, document): (&str, &str),
    now: Timestamp,
) -> QueryResult<()> {
    let what = statements::what_of(document);
    let what = what.as_ref().map(|(target, operations)| (target.as_str(), operations.get()));
    audit::insert(conn, by, AuditEvent { did, subject: name, detail: "", what }, now).await
}

async fn with_name(conn: &mut AsyncPgConnection, name: &str) -> QueryResult<Option<ScheduleRow>> {
    statements::with_name(name).get_result(conn).await.optional()
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
        note_document(conn, by, "schedule.create", (&new.name, &new.document), now).await?;
    }
    Ok(row.map(ScheduleRow::view))
}

async fn replace(
    conn: &mut AsyncPgConnection,
    tag: ScheduleTag,
    new: &NewSchedule,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ScheduleView>> {
    let Some(row) = in_state(conn, tag).await? else { return Ok(None) };
    if row.is_same(new) {
        return Ok(Some(row.view()));
    }
    let row: ScheduleRow = statements::replace(&row, new, now).get_result(conn).await?;
    note_document(conn, by, "schedule.change", (row.name(), &new.document), now).await?;
    Ok(Some(row.view()))
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

/// What a trigger needs.
struct Triggering {
    tag: ScheduleTag,
    action: NewAction,
    cancel_previous: bool,
    owner: String,
    by: Author,
    now: Timestamp,
}

async fn trigger(conn: &mut AsyncPgConnection, triggering: &Triggering) -> QueryResult<Option<Triggered>> {
    let Triggering { tag, action, cancel_previous, owner, by, now } = triggering;
    let (tag, now) = (*tag, *now);
    let Some(row) = in_state(conn, tag).await? else { return Ok(None) };
    let last = statements::last_triggered(tag.no).get_result::<MaybeRow>(conn).await?.value;
    let at = Timestamp(now.0.max(last.map_or(i64::MIN, |last| last + 1)));
    let action = NewAction { scheduled_for: Some(at), ..action.clone() };
    let accepted = super::actions::insert_one(conn, &action, owner, now).await?;
    let mut cancelled = None;
    if let Accepted::Stored { id, no: action_no, is_new: true } = accepted {
        if *cancel_previous {
            let previous = statements::last_action(tag.no).get_result::<MaybeRow>(conn).await?.value;
            for action in running(conn, previous.into_iter().collect(), now).await? {
                if cancel(conn, row.name(), action, now).await? {
                    cancelled = Some(action);
                }
            }
        }
        statements::insert_occurrence(tag.no, at, true, action_no, now).execute(conn).await?;
        statements::set_last(tag.no, at, action_no).execute(conn).await?;
        note(conn, by, "schedule.trigger", row.name(), &id.to_string(), now).await?;
    }
    Ok(Some(Triggered { accepted, cancelled }))
}

async fn list(conn: &mut AsyncPgConnection, after: Option<&str>, limit: usize) -> QueryResult<Vec<ScheduleView>> {
    let rows: Vec<ScheduleRow> = statements::list(after, limit).load(conn).await?;
    Ok(rows.into_iter().map(ScheduleRow::view).collect())
}

async fn dropped(conn: &mut AsyncPgConnection, no: i64, limit: usize) -> QueryResult<Vec<Dropped>> {
    let rows: Vec<DroppedRow> = statements::dropped(no, limit).load(conn).await?;
    rows.into_iter().map(DroppedRow::dropped).collect()
}

async fn remove(conn: &mut AsyncPgConnection, tag: ScheduleTag, by: &Author, now: Timestamp) -> QueryResult<bool> {
    let Some(row) = in_state(conn, tag).await? else { return Ok(false) };
    statements::remove(tag.no).execute(conn).await?;
    note(conn, by, "schedule.remove", row.name(), "", now).await?;
    Ok(true)
}

async fn due(conn: &mut AsyncPgConnection, now: Timestamp, limit: usize) -> QueryResult<Vec<(i64, usize)>> {
    let rows: Vec<SizeRow> = statements::due(now, limit).load(conn).await?;
    Ok(rows.into_iter().map(<(i64, usize)>::from).collect())
}

async fn next(conn: &mut AsyncPgConnection) -> QueryResult<Option<Timestamp>> {
    Ok(statements::next().get_result::<MaybeRow>(conn).await?.value.map(Timestamp))
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
