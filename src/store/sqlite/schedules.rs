//! Schedules.

use super::audit;
use super::occurrences::{Making, cancel, running};
use super::store::SqliteStore;
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
use std::sync::Arc;

#[async_trait]
impl Schedules for SqliteStore {
    async fn schedule_insert(&self, new: NewSchedule, by: &Author) -> StoreResult<Option<ScheduleView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("schedule_insert", move |conn| insert(conn, &new, &by, now)).await
    }

    async fn schedule_replace(
        &self,
        tag: ScheduleTag,
        new: NewSchedule,
        by: &Author,
    ) -> StoreResult<Option<ScheduleView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("schedule_replace", move |conn| replace(conn, tag, &new, &by, now)).await
    }

    async fn schedule_view(&self, name: &str) -> StoreResult<Option<ScheduleView>> {
        let name = name.to_owned();
        self.read("schedule_view", move |conn| Ok(with_name(conn, &name)?.map(ScheduleRow::view))).await
    }

    async fn schedule_list(&self, after: Option<&str>, limit: usize) -> StoreResult<Vec<ScheduleView>> {
        let after = after.map(str::to_owned);
        self.read("schedule_list", move |conn| {
            let rows: Vec<ScheduleRow> = statements::list(after.as_deref(), limit).load(conn)?;
            Ok(rows.into_iter().map(ScheduleRow::view).collect())
        })
        .await
    }

    async fn schedule_occurrences(&self, no: i64, limit: usize) -> StoreResult<Vec<OccurrenceView>> {
        self.read("schedule_occurrences", move |conn| occurrences(conn, no, limit)).await
    }

    async fn schedule_dropped(&self, no: i64, limit: usize) -> StoreResult<Vec<Dropped>> {
        self.read("schedule_dropped", move |conn| {
            let rows: Vec<DroppedRow> = statements::dropped(no, limit).load(conn)?;
            rows.into_iter().map(DroppedRow::dropped).collect()
        })
        .await
    }

    async fn schedule_pause(
        &self,
        tag: ScheduleTag,
        next: Option<NextOccurrence>,
        by: &Author,
    ) -> StoreResult<Option<ScheduleView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("schedule_pause", move |conn| pause(conn, tag, next.as_ref(), &by, now)).await
    }

    async fn schedule_remove(&self, tag: ScheduleTag, by: &Author) -> StoreResult<bool> {
        let (by, now) = (by.clone(), self.now());
        self.write("schedule_remove", move |conn| {
            let Some(row) = in_state(conn, tag)? else { return Ok(false) };
            statements::remove(tag.no).execute(conn)?;
            note(conn, &by, "schedule.remove", row.name(), "", now)?;
            Ok(true)
        })
        .await
    }

    async fn schedule_trigger(
        &self,
        tag: ScheduleTag,
        action: NewAction,
        cancel_previous: bool,
        by: &Author,
    ) -> StoreResult<Option<Triggered>> {
        let (owner, by, now) = (self.incarnation.clone(), by.clone(), self.now());
        let triggering = Triggering { tag, action, cancel_previous, owner, by, now };
        self.write("schedule_trigger", move |conn| trigger(conn, triggering)).await
    }

    async fn schedule_due(&self, limit: usize) -> StoreResult<Vec<(i64, usize)>> {
        let now = self.now();
        self.read("schedule_due", move |conn| sizes(statements::due(now, limit).load(conn)?)).await
    }

    async fn schedule_next(&self) -> StoreResult<Option<Timestamp>> {
        self.read("schedule_next", |conn| Ok(statements::next().get_result::<MaybeRow>(conn)?.value.map(Timestamp)))
            .await
    }

    async fn schedule_stale(&self, zone_data: &str, after: i64, limit: usize) -> StoreResult<Vec<(i64, usize)>> {
        let stale = statements::stale(zone_data, after, limit);
        self.read("schedule_stale", move |conn| sizes(stale.load(conn)?)).await
    }

    async fn schedule_make(&self, nos: Vec<i64>, planner: Arc<dyn Planner>) -> StoreResult<Made> {
        let (owner, now, hooks) = (self.incarnation.clone(), self.now(), self.hooks.get());
        self.write("schedule_make", move |conn| {
            let making = Making { planner: &*planner, owner: &owner, hooks: &hooks, now };
            making.make(conn, &nos)
        })
        .await
    }

    async fn occurrence_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("occurrence_purge", move |conn| {
            let made = statements::purge_occurrences(before, limit).execute(conn)?;
            Ok(made + statements::purge_dropped(before, limit - made).execute(conn)?)
        })
        .await
    }
}

/// Writes an entry of the audit log.
fn note(
    conn: &mut SqliteConnection,
    by: &Author,
    did: &'static str,
    name: &str,
    detail: &str,
    now: Timestamp,
) -> QueryResult<()> {
    audit::insert(conn, by, AuditEvent { did, subject: name, detail, what: None }, now)
}

/// The same for a schedule that is new or has changed.
fn note_document(
    conn: &mut SqliteConnection,
    by: &Author,
    did: &'static str,
    (name, document): (&str, &str),
    now: Timestamp,
) -> QueryResult<()> {
    let what = statements::what_of(document);
    let what = what.as_ref().map(|(target, operations)| (target.as_str(), operations.get()));
    audit::insert(conn, by, AuditEvent { did, subject: name, detail: "", what }, now)
}

fn sizes(rows: Vec<SizeRow>) -> QueryResult<Vec<(i64, usize)>> {
    Ok(rows.into_iter().map(<(i64, usize)>::from).collect())
}

fn with_name(conn: &mut SqliteConnection, name: &str) -> QueryResult<Option<ScheduleRow>> {
    statements::with_name(name).get_result(conn).optional()
}

/// The schedule in this state.
fn in_state(conn: &mut SqliteConnection, tag: ScheduleTag) -> QueryResult<Option<ScheduleRow>> {
    let row: Option<ScheduleRow> = statements::with_no(tag.no, "").get_result(conn).optional()?;
    Ok(row.filter(|row| row.tag() == tag))
}

fn insert(
    conn: &mut SqliteConnection,
    new: &NewSchedule,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ScheduleView>> {
    let row: Option<ScheduleRow> = statements::insert(new, &by.name, now).get_result(conn).optional()?;
    if row.is_some() {
        note_document(conn, by, "schedule.create", (&new.name, &new.document), now)?;
    }
    Ok(row.map(ScheduleRow::view))
}

fn replace(
    conn: &mut SqliteConnection,
    tag: ScheduleTag,
    new: &NewSchedule,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ScheduleView>> {
    let Some(row) = in_state(conn, tag)? else { return Ok(None) };
    if row.is_same(new) {
        return Ok(Some(row.view()));
    }
    let row: ScheduleRow = statements::replace(&row, new, now).get_result(conn)?;
    note_document(conn, by, "schedule.change", (row.name(), &new.document), now)?;
    Ok(Some(row.view()))
}

fn pause(
    conn: &mut SqliteConnection,
    tag: ScheduleTag,
    next: Option<&NextOccurrence>,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ScheduleView>> {
    let Some(row) = in_state(conn, tag)? else { return Ok(None) };
    if row.is_paused() == next.is_none() {
        return Ok(Some(row.view()));
    }
    let row: ScheduleRow = statements::pause(tag.no, next, now).get_result(conn)?;
    let did = if next.is_none() { "schedule.pause" } else { "schedule.resume" };
    note(conn, by, did, row.name(), "", now)?;
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

fn trigger(conn: &mut SqliteConnection, triggering: Triggering) -> QueryResult<Option<Triggered>> {
    let Triggering { tag, mut action, cancel_previous, owner, by, now } = triggering;
    let Some(row) = in_state(conn, tag)? else { return Ok(None) };
    let last = statements::last_triggered(tag.no).get_result::<MaybeRow>(conn)?.value;
    let at = Timestamp(now.0.max(last.map_or(i64::MIN, |last| last + 1)));
    action.scheduled_for = Some(at);
    let accepted = super::actions::insert_one(conn, &action, &owner, now)?;
    let mut cancelled = None;
    if let Accepted::Stored { id, no: action_no, is_new: true } = accepted {
        let previous =
            if cancel_previous { statements::last_action(tag.no).get_result::<MaybeRow>(conn)?.value } else { None };
        let running = previous.map(|action_no| running(conn, action_no, now)).transpose()?.flatten();
        if let Some(action) = running
            && cancel(conn, row.name(), action, now)?
        {
            cancelled = Some(action);
        }
        statements::insert_occurrence(tag.no, at, true, action_no, now).execute(conn)?;
        statements::set_last(tag.no, at, action_no).execute(conn)?;
        note(conn, &by, "schedule.trigger", row.name(), &id.to_string(), now)?;
    }
    Ok(Some(Triggered { accepted, cancelled }))
}

fn occurrences(conn: &mut SqliteConnection, no: i64, limit: usize) -> QueryResult<Vec<OccurrenceView>> {
    let rows: Vec<OccurrenceRow> = statements::occurrences(no, limit).load(conn)?;
    let mut views = Vec::with_capacity(rows.len());
    for row in rows {
        let action_no = row.action_no;
        let mut view = OccurrenceView::from(row);
        if let Some(action_no) = action_no {
            let action = sql(format!("SELECT {WITHOUT_DOCUMENT} FROM actions a WHERE a.no = ?")).bind(action_no);
            let action: Option<ActionViewRow> = action.get_result(conn).optional()?;
            view.action = action.map(|action| action.standing()).transpose()?;
        }
        views.push(view);
    }
    Ok(views)
}
