//! Making the occurrences of schedules.

use super::audit;
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::hook::{Listener, ScheduleMissed};
use crate::domain::schedule::Dropped;
use crate::domain::time::Timestamp;
use crate::store::sql::actions as action_statements;
use crate::store::sql::hooks::occurrences_missed;
use crate::store::sql::schedules::{self as statements, ClaimedRow, Last, RUNNING, Running, RunningRow};
use crate::store::sql::{Key, sql};
use crate::store::{DueSchedule, Made, MadeOccurrence, Planner};
use diesel::prelude::*;
use uuid::Uuid;

/// What planning needs.
pub(super) struct Making<'a> {
    pub(super) planner: &'a dyn Planner,
    pub(super) owner: &'a str,
    pub(super) hooks: &'a [Listener],
    pub(super) now: Timestamp,
}

impl Making<'_> {
    /// Plans schedules, and makes what is to be made of them.
    pub(super) fn make(&self, conn: &mut SqliteConnection, nos: &[i64]) -> QueryResult<Made> {
        let mut made = Made::default();
        let mut missed = Vec::new();
        for no in nos {
            let claimed: Option<ClaimedRow> = statements::claim("= ?").bind(*no).get_result(conn).optional()?;
            if let Some((due, last)) = claimed.map(ClaimedRow::split) {
                missed.extend(self.make_one(conn, &due, last, &mut made)?);
            }
        }
        let events = occurrences_missed(self.hooks, &missed, self.now)?;
        made.hooks_told = !events.is_empty();
        super::hooks::insert(conn, &events)?;
        Ok(made)
    }

    /// Makes what is to be made of one schedule. Returns what was missed of it.
    fn make_one(
        &self,
        conn: &mut SqliteConnection,
        due: &DueSchedule,
        mut last: Last,
        made: &mut Made,
    ) -> QueryResult<Option<ScheduleMissed>> {
        let (no, name, now) = (due.tag.no, &due.name, self.now);
        let planned = self.planner.plan(due, now);
        let (next, error) = (planned.next.clone(), planned.error.clone());
        let previous = last.action_no.filter(|_| planned.asks_for_previous());
        let running = previous.map(|action_no| running(conn, action_no, now)).transpose()?.flatten();
        let settled = planned.settle(name, running.is_some());
        if let Some(action) = running.filter(|_| settled.cancel_previous)
            && cancel(conn, name, action, now)?
        {
            made.cancelled.push(action);
        }
        for dropped in settled.dropped {
            self.drop(conn, due, &mut last, dropped, made)?;
        }
        let mut before: Option<(i64, Uuid)> = None;
        for (at, action) in settled.make {
            let Key { key: action_no } = action_statements::insert(&action, self.owner, now).get_result(conn)?;
            statements::insert_occurrence(no, at, false, action_no, now).execute(conn)?;
            if let Some(action) = before.replace((action_no, action.id)).filter(|_| settled.cancel_each_other)
                && cancel(conn, name, action, now)?
            {
                made.cancelled.push(action);
            }
            last = Last { at: Some(at.0), action_no: Some(action_no), dropped: None };
            made.occurrences.push(MadeOccurrence { schedule: name.clone(), at, made_at: now, action: action.id });
        }
        statements::advance(no, &next, error.as_deref(), last).execute(conn)?;
        made.has_more |= next.at.is_some_and(|at| at <= now);
        made.errors.extend(error.map(|error| (name.clone(), error)));
        Ok(settled.missed)
    }

    /// Records a range of dropped occurrences, as part of the one before it if the reason is the
    /// same.
    fn drop(
        &self,
        conn: &mut SqliteConnection,
        due: &DueSchedule,
        last: &mut Last,
        dropped: Dropped,
        made: &mut Made,
    ) -> QueryResult<()> {
        let reason = dropped.reason.as_str();
        let before = last.dropped.filter(|(_, before)| *before == reason);
        let is_extended = match before {
            Some((dropped_no, _)) => statements::extend_dropped(dropped_no, &dropped, self.now).execute(conn)? > 0,
            None => false,
        };
        if !is_extended {
            let insert = statements::insert_dropped(due.tag.no, &dropped, self.now);
            last.dropped = Some((insert.get_result::<Key>(conn)?.key, reason));
        }
        made.dropped.push((due.name.clone(), dropped));
        Ok(())
    }
}

/// An action, if it still runs.
pub(super) fn running(conn: &mut SqliteConnection, action_no: i64, now: Timestamp) -> QueryResult<Option<(i64, Uuid)>> {
    let row = sql(format!("SELECT {RUNNING} FROM actions a WHERE a.no = ?")).bind(action_no);
    let Some(row): Option<RunningRow> = row.get_result(conn).optional()? else { return Ok(None) };
    let sent = super::counts::sums(conn, action_no)?.counts(true).sent;
    let runs = match row.running(sent, now) {
        Running::Known(runs) => runs,
        Running::IfOnItsWay { after, has_rest } => {
            statements::runs_again(action_no).get_result::<Key>(conn).optional()?.is_some()
                || has_rest && is_on_its_way(conn, action_no, after)?
        }
    };
    Ok(if runs { Some((action_no, row.id()?)) } else { None })
}

/// Whether one of the commands after a key is on its way. If it would take long to find out, one is.
fn is_on_its_way(conn: &mut SqliteConnection, action_no: i64, after: i64) -> QueryResult<bool> {
    let found = super::commands::first_untouched(conn, action_no, after, statements::LOOKED_AT)?;
    Ok(found.is_some() || super::commands::key_after(conn, action_no, after, statements::LOOKED_AT)?.is_some())
}

/// Cancels the action of an occurrence for a later one. False if it has ended.
pub(super) fn cancel(
    conn: &mut SqliteConnection,
    schedule: &str,
    (_, id): (i64, Uuid),
    now: Timestamp,
) -> QueryResult<bool> {
    let is_cancelled = action_statements::cancel(id).execute(conn)? > 0;
    if is_cancelled {
        let by = Author::server(&format!("schedule:{schedule}"));
        let event = AuditEvent { did: "action.cancel", subject: &id.to_string(), ..AuditEvent::default() };
        audit::insert(conn, &by, event, now)?;
    }
    Ok(is_cancelled)
}
