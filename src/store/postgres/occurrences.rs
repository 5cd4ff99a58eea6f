//! Making the occurrences of schedules.
//!
//! Thousands of schedules may be due at the same second. So a batch of them is planned in one
//! transaction, and their actions, occurrences and next times are one statement each.

use super::audit;
use super::counts::SUMS;
use crate::domain::action::{Membership, NewAction};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::hook::Listener;
use crate::domain::schedule::Dropped;
use crate::domain::time::Timestamp;
use crate::store::schedules::Settled;
use crate::store::sql::actions::{self as action_statements, Sums};
use crate::store::sql::hooks::occurrences_missed;
use crate::store::sql::schedules::{self as statements, ClaimedRow, Last, RUNNING, Running, RunningRow};
use crate::store::sql::{Key, corrupt, sql};
use crate::store::{DueSchedule, Made, MadeOccurrence, NextOccurrence, Planned, Planner};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// What planning needs.
pub(super) struct Making {
    pub(super) nos: Vec<i64>,
    pub(super) planner: Arc<dyn Planner>,
    pub(super) owner: String,
    pub(super) hooks: Arc<Vec<Listener>>,
    pub(super) now: Timestamp,
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

/// Plans schedules, and makes what is to be made of them.
pub(super) async fn make(conn: &mut AsyncPgConnection, making: &Making) -> QueryResult<Made> {
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
    for (no, id, of) in cancelled {
        if cancel(conn, &batch[of].due.name, (no, id), now).await? {
            made.cancelled.push((no, id));
        }
    }
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
pub(super) async fn running(
    conn: &mut AsyncPgConnection,
    nos: Vec<i64>,
    now: Timestamp,
) -> QueryResult<HashMap<i64, Uuid>> {
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

/// Cancels the action of an occurrence for a later one. False if it has ended.
pub(super) async fn cancel(
    conn: &mut AsyncPgConnection,
    schedule: &str,
    (_, id): (i64, Uuid),
    now: Timestamp,
) -> QueryResult<bool> {
    let is_cancelled = action_statements::cancel(id).execute(conn).await? > 0;
    if is_cancelled {
        let by = Author::server(&format!("schedule:{schedule}"));
        let event = AuditEvent { did: "action.cancel", subject: &id.to_string(), ..AuditEvent::default() };
        audit::insert(conn, &by, event, now).await?;
    }
    Ok(is_cancelled)
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
