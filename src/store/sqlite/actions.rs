//! Actions and their counters.

use super::super::rows::{ActionRow, ActionViewRow, Key, OpenActionRow, corrupt, in_state, sql_limit};
use super::super::schema::actions;
use super::super::{Accepted, ActionView, OpenAction, Resolution};
use super::audit;
use super::counts::sums;
use super::json;
use crate::domain::action::{Action, ActionState, Membership, NewAction};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
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
                return Ok(Accepted::Stored { id, no, is_new: false });
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
        let event = AuditEvent { did: "action.create", subject: &new.id.to_string(), detail: &new.name };
        audit::insert(conn, &new.author, event, now)?;
        return Ok(Accepted::Stored { id: new.id, no, is_new: true });
    }
    let (no, digest) = actions::table
        .filter(actions::id.eq(new.id.to_string()))
        .select((actions::no, actions::digest))
        .first::<(i64, Vec<u8>)>(conn)?;
    let same = digest == new.digest;
    Ok(if same { Accepted::Stored { id: new.id, no, is_new: false } } else { Accepted::Conflict })
}

fn with_sums(conn: &mut SqliteConnection, row: ActionViewRow) -> QueryResult<ActionView> {
    let sums = sums(conn, row.no)?;
    row.view(sums)
}

pub(super) fn view(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<Option<ActionView>> {
    let row = actions::table
        .filter(actions::id.eq(id.to_string()))
        .select(ActionViewRow::as_select())
        .first(conn)
        .optional()?;
    row.map(|row| with_sums(conn, row)).transpose()
}

pub(super) fn list(
    conn: &mut SqliteConnection,
    state: Option<ActionState>,
    before: Option<i64>,
    limit: usize,
) -> QueryResult<Vec<ActionView>> {
    let mut query = actions::table
        .order(actions::no.desc())
        .limit(sql_limit(limit))
        .select(ActionViewRow::as_select())
        .into_boxed();
    if let Some(before) = before {
        query = query.filter(actions::no.lt(before));
    }
    if let Some(state) = state {
        query = query.filter(diesel::dsl::sql::<Bool>(in_state(state)));
    }
    query.load(conn)?.into_iter().map(|row| with_sums(conn, row)).collect()
}

pub(super) fn get(conn: &mut SqliteConnection, no: i64) -> QueryResult<Option<Action>> {
    let row = actions::table.find(no).select(ActionRow::as_select()).first(conn).optional()?;
    row.map(ActionRow::action).transpose()
}

pub(super) fn no(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<Option<i64>> {
    actions::table.filter(actions::id.eq(id.to_string())).select(actions::no).first(conn).optional()
}

pub(super) fn list_open(conn: &mut SqliteConnection, after: i64, limit: usize) -> QueryResult<Vec<OpenAction>> {
    let rows = sql_query(
        "SELECT no, valid_from, expires_at, live, TRUE AS owned, resolved, cancelled, paused, expired, resolved_through, dispatched_through, \
         (SELECT coalesce(sum(total - succeeded - failed - timed_out - undeliverable - c.expired - c.cancelled), 0) \
          FROM action_counts c WHERE c.action_no = a.no) AS unfinished, \
         (SELECT coalesce(sum(sent), 0) FROM action_counts c WHERE c.action_no = a.no) AS sent \
         FROM actions a WHERE ended_at IS NULL AND no > ? ORDER BY no LIMIT ?",
    )
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(sql_limit(limit))
    .load::<OpenActionRow>(conn)?;
    Ok(rows.into_iter().map(OpenAction::from).collect())
}

pub(super) fn list_unresolved(conn: &mut SqliteConnection, horizon: Timestamp, limit: usize) -> QueryResult<Vec<i64>> {
    actions::table
        .filter(actions::ended_at.is_null())
        .filter(actions::resolved.eq(false))
        .filter(actions::valid_from.le(horizon.0))
        .order(actions::no)
        .limit(sql_limit(limit))
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
            let expected = super::agents::count(conn, target, now)?;
            diesel::update(actions::table.find(no))
                .set((actions::expected_total.eq(expected), actions::owner.eq(owner)))
                .execute(conn)?;
            expected
        }
    };
    let written = sums(conn, no)?.counts(resolved).total;
    Ok(Resolution { through, written, expected, done: resolved })
}

pub(super) fn cancel(
    conn: &mut SqliteConnection,
    id: Uuid,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    // What has ended stays as it ended. With `resolved`, pages that are still on their way are refused.
    let going = actions::ended_at.is_null().and(actions::cancelled.eq(false));
    let changed = diesel::update(actions::table.filter(actions::id.eq(id.to_string())).filter(going))
        .set((actions::cancelled.eq(true), actions::resolved.eq(true)))
        .execute(conn)?;
    if changed > 0 {
        audit::insert(conn, by, AuditEvent { did: "action.cancel", subject: &id.to_string(), detail: "" }, now)?;
    }
    view(conn, id)
}

pub(super) fn pause(
    conn: &mut SqliteConnection,
    id: Uuid,
    paused: bool,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    let goes_on = actions::ended_at.is_null().and(actions::cancelled.eq(false)).and(actions::expired.eq(false));
    let other = actions::table.filter(actions::id.eq(id.to_string())).filter(actions::paused.ne(paused));
    let changed = diesel::update(other.filter(goes_on)).set(actions::paused.eq(paused)).execute(conn)?;
    if changed > 0 {
        let did = if paused { "action.pause" } else { "action.resume" };
        audit::insert(conn, by, AuditEvent { did, subject: &id.to_string(), detail: "" }, now)?;
    }
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
         AND (NOT live OR cancelled OR expires_at <= ?2) \
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

/// The tables with rows of an action and what else is in their keys, in the order in which they are deleted. The commands
/// first: then nothing can be reported about them any more.
const ROWS: [(&str, &str); 5] = [
    ("commands", "agent_no"),
    ("open_commands", "agent_no"),
    ("outcomes", "agent_no, run"),
    ("late_results", "agent_no, run"),
    ("action_counts", "lane"),
];

pub(super) fn purge(conn: &mut SqliteConnection, before: Timestamp, limit: usize) -> QueryResult<Option<usize>> {
    let begun = sql_query("SELECT action_no AS key FROM purges ORDER BY action_no LIMIT 1").get_result::<Key>(conn);
    let no = match begun.optional()? {
        Some(row) => row.key,
        None => {
            let ended = sql_query("SELECT no AS key FROM actions WHERE ended_at < ? ORDER BY ended_at LIMIT 1");
            let ended = ended.bind::<BigInt, _>(before.0).get_result::<Key>(conn).optional()?;
            let Some(Key { key: no }) = ended else { return Ok(None) };
            for statement in [
                "INSERT INTO purges (action_no) VALUES (?)",
                "UPDATE occurrences SET action_no = NULL WHERE action_no = ?",
                "DELETE FROM action_counts WHERE action_no = ?",
                "DELETE FROM actions WHERE no = ?",
            ] {
                sql_query(statement).bind::<BigInt, _>(no).execute(conn)?;
            }
            no
        }
    };
    let mut deleted = 0;
    for (table, key) in ROWS {
        if deleted >= limit {
            return Ok(Some(deleted));
        }
        deleted += sql_query(format!(
            "DELETE FROM {table} WHERE action_no = ?1 AND ({key}) IN \
             (SELECT {key} FROM {table} WHERE action_no = ?1 ORDER BY {key} LIMIT ?2)"
        ))
        .bind::<BigInt, _>(no)
        .bind::<BigInt, _>(sql_limit(limit - deleted))
        .execute(conn)?;
    }
    if deleted < limit {
        // There is one writer: what was not found isn't there.
        sql_query("DELETE FROM purges WHERE action_no = ?").bind::<BigInt, _>(no).execute(conn)?;
    }
    Ok(Some(deleted))
}

/// Looks at up to `limit` keys of actions that have rows, and marks those for deletion that have no row of their own.
pub(super) fn sweep(conn: &mut SqliteConnection, after: i64, limit: usize) -> QueryResult<Option<i64>> {
    #[derive(QueryableByName)]
    struct Next {
        #[diesel(sql_type = Nullable<BigInt>)]
        no: Option<i64>,
    }
    // One step in each index.
    let next = ROWS.map(|(table, _)| format!("SELECT min(action_no) AS no FROM {table} WHERE action_no > ?1"));
    let next = format!("SELECT min(no) AS no FROM ({})", next.join(" UNION ALL "));
    let (mut last, mut lost) = (None, 0);
    for _ in 0..limit {
        let found = sql_query(&next).bind::<BigInt, _>(last.unwrap_or(after)).get_result::<Next>(conn)?.no;
        let Some(no) = found else { break };
        lost += sql_query(
            "INSERT INTO purges (action_no) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM actions WHERE no = ?1) \
             AND NOT EXISTS (SELECT 1 FROM purges WHERE action_no = ?1)",
        )
        .bind::<BigInt, _>(no)
        .execute(conn)?;
        last = Some(no);
    }
    if lost > 0 {
        log::warn!(actions = lost; "rows of actions that are no more are going to be deleted");
    }
    Ok(last)
}
