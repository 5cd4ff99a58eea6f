//! Actions and their counters.

use super::audit;
use super::counts::sums;
use super::store::{SqliteStore, json};
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::hook::{HookEvent, Listener};
use crate::domain::time::Timestamp;
use crate::store::sql::actions::{
    self as statements, ActionRow, ActionViewRow, OpenActionRow, Stored, UnresolvedRow, WITHOUT_DOCUMENT, ids, in_state,
};
use crate::store::sql::dispatch::Named;
use crate::store::sql::hooks::{actions_ended, is_heard};
use crate::store::sql::schema::actions;
use crate::store::sql::{Key, sql, sql_limit};
use crate::store::{Accepted, ActionView, Actions, OpenAction, Resolution, Store, StoreResult, Unresolved};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};
use uuid::Uuid;

#[async_trait]
impl Actions for SqliteStore {
    async fn action_insert(&self, actions: Vec<NewAction>) -> StoreResult<Vec<Accepted>> {
        let (owner, now) = (self.incarnation.clone(), self.now());
        self.write("action_insert", move |conn| insert(conn, &actions, &owner, now)).await
    }

    async fn action_view(&self, id: Uuid) -> StoreResult<Option<ActionView>> {
        self.read("action_view", move |conn| view(conn, id)).await
    }

    async fn action_list(
        &self,
        state: Option<ActionState>,
        beginning: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<ActionView>> {
        let beginning = beginning.map(str::to_owned);
        self.read("action_list", move |conn| list(conn, state, beginning.as_deref(), before, limit)).await
    }

    async fn action_get(&self, no: i64) -> StoreResult<Option<Action>> {
        self.read("action_get", move |conn| get(conn, no)).await
    }

    async fn action_nos(&self, ids: &[Uuid]) -> StoreResult<Vec<(Uuid, i64)>> {
        let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        self.read("action_nos", move |conn| nos(conn, &ids)).await
    }

    async fn action_list_open(&self, after: i64, limit: usize) -> StoreResult<Vec<OpenAction>> {
        self.read("action_list_open", move |conn| list_open(conn, after, limit)).await
    }

    async fn action_list_unresolved(
        &self,
        horizon: Timestamp,
        after: (Timestamp, i64),
        limit: usize,
    ) -> StoreResult<Vec<Unresolved>> {
        self.read("action_list_unresolved", move |conn| list_unresolved(conn, horizon, after, limit)).await
    }

    async fn action_resolution(&self, no: i64) -> StoreResult<Resolution> {
        self.read("action_resolution", move |conn| resolution(conn, no)).await
    }

    async fn action_expect(&self, no: i64, agents: i64) -> StoreResult<i64> {
        self.write("action_expect", move |conn| expect(conn, no, agents)).await
    }

    async fn action_cancel(&self, id: Uuid, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("action_cancel", move |conn| cancel(conn, id, &by, now)).await
    }

    async fn action_pause(&self, id: Uuid, paused: bool, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (by.clone(), self.now());
        self.write("action_pause", move |conn| pause(conn, id, paused, &by, now)).await
    }

    async fn action_expire(&self, no: i64) -> StoreResult<bool> {
        self.write("action_expire", move |conn| expire(conn, no)).await
    }

    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>> {
        // The one writer isn't kept waiting for the looking.
        let read = nos.clone();
        let found: Vec<(i64, Option<i64>)> =
            self.read("action_advance", move |conn| read.iter().map(|no| advanced(conn, *no, limit)).collect()).await?;
        let moved: Vec<(i64, i64)> =
            nos.iter().zip(&found).filter_map(|(no, (_, next))| Some((*no, (*next)?))).collect();
        if !moved.is_empty() {
            self.write("action_advance", move |conn| {
                moved.iter().try_for_each(|(no, through)| advance(conn, *no, *through))
            })
            .await?;
        }
        Ok(found.into_iter().map(|(through, next)| next.unwrap_or(through)).collect())
    }

    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>> {
        let (now, hooks) = (self.now(), self.hooks.get());
        self.write("action_complete", move |conn| complete(conn, &nos, now, &hooks)).await
    }
}

fn insert(conn: &mut SqliteConnection, new: &[NewAction], owner: &str, now: Timestamp) -> QueryResult<Vec<Accepted>> {
    new.iter().map(|action| insert_one(conn, action, owner, now)).collect()
}

pub(super) fn insert_one(
    conn: &mut SqliteConnection,
    new: &NewAction,
    owner: &str,
    now: Timestamp,
) -> QueryResult<Accepted> {
    if let Some(Key { key: no }) = statements::insert(new, owner, now).get_result(conn).optional()? {
        let event = AuditEvent {
            did: "action.create",
            subject: &new.id.to_string(),
            detail: &new.name,
            what: Some((&new.target, &new.operations)),
        };
        audit::insert(conn, &new.author, event, now)?;
        return Ok(Accepted::Stored { id: new.id, no, is_new: true });
    }
    // One of the two unique keys is stored.
    let by_key = statements::with_key(new.idempotency_key.as_deref()).get_result::<Stored>(conn).optional()?;
    if let Some(stored) = by_key {
        return stored.accept(new, Accepted::KeyMismatch);
    }
    let stored: Stored = statements::with_id(new.id).get_result(conn)?;
    stored.accept(new, Accepted::Conflict)
}

fn with_sums(conn: &mut SqliteConnection, row: ActionViewRow) -> QueryResult<ActionView> {
    let sums = sums(conn, row.no)?;
    row.view(sums)
}

fn view(conn: &mut SqliteConnection, id: Uuid) -> QueryResult<Option<ActionView>> {
    let row = actions::table
        .filter(actions::id.eq(id.to_string()))
        .select(ActionViewRow::as_select())
        .first(conn)
        .optional()?;
    row.map(|row| with_sums(conn, row)).transpose()
}

fn list(
    conn: &mut SqliteConnection,
    state: Option<ActionState>,
    beginning: Option<&str>,
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
    if let Some((first, end)) = beginning.map(ids) {
        query = query.filter(actions::id.ge(first)).filter(actions::id.lt(end));
    }
    if let Some(state) = state {
        query = query.filter(diesel::dsl::sql::<Bool>(in_state(state)));
    }
    query.load(conn)?.into_iter().map(|row| with_sums(conn, row)).collect()
}

fn get(conn: &mut SqliteConnection, no: i64) -> QueryResult<Option<Action>> {
    let row: Option<ActionRow> = statements::get(no).get_result(conn).optional()?;
    row.map(ActionRow::action).transpose()
}

fn nos(conn: &mut SqliteConnection, ids: &[String]) -> QueryResult<Vec<(Uuid, i64)>> {
    let text = "SELECT a.id AS name, a.no AS number FROM json_each(?1) j CROSS JOIN actions a ON a.id = j.value";
    let rows = sql_query(text).bind::<Text, _>(json(&ids)?).load::<Named>(conn)?;
    rows.into_iter().map(Named::of_id).collect()
}

fn list_open(conn: &mut SqliteConnection, after: i64, limit: usize) -> QueryResult<Vec<OpenAction>> {
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

fn list_unresolved(
    conn: &mut SqliteConnection,
    horizon: Timestamp,
    after: (Timestamp, i64),
    limit: usize,
) -> QueryResult<Vec<Unresolved>> {
    let rows: Vec<UnresolvedRow> = statements::list_unresolved(None, horizon, after, limit).load(conn)?;
    Ok(rows.into_iter().map(Unresolved::from).collect())
}

fn expect(conn: &mut SqliteConnection, no: i64, agents: i64) -> QueryResult<i64> {
    Ok(statements::expect(no, agents).get_result::<Key>(conn)?.key)
}

fn resolution(conn: &mut SqliteConnection, no: i64) -> QueryResult<Resolution> {
    let (through, expected, resolved) = actions::table
        .find(no)
        .select((actions::resolved_through, actions::expected_total, actions::resolved))
        .first::<(i64, Option<i64>, bool)>(conn)?;
    let written = sums(conn, no)?.counts(resolved).total;
    Ok(Resolution { through, written, expected, done: resolved })
}

fn cancel(conn: &mut SqliteConnection, id: Uuid, by: &Author, now: Timestamp) -> QueryResult<Option<ActionView>> {
    if statements::cancel(id).execute(conn)? > 0 {
        audit::insert(
            conn,
            by,
            AuditEvent { did: "action.cancel", subject: &id.to_string(), ..AuditEvent::default() },
            now,
        )?;
    }
    view(conn, id)
}

fn pause(
    conn: &mut SqliteConnection,
    id: Uuid,
    paused: bool,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    if statements::pause(id, paused).execute(conn)? > 0 {
        let did = if paused { "action.pause" } else { "action.resume" };
        audit::insert(conn, by, AuditEvent { did, subject: &id.to_string(), ..AuditEvent::default() }, now)?;
    }
    view(conn, id)
}

fn expire(conn: &mut SqliteConnection, no: i64) -> QueryResult<bool> {
    Ok(statements::expire(no).execute(conn)? > 0)
}

/// `dispatched_through` of an action, and where it can advance to. A command that has an outcome or
/// an open row keeps one, so reading and advancing need no common transaction.
fn advanced(conn: &mut SqliteConnection, no: i64, limit: usize) -> QueryResult<(i64, Option<i64>)> {
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

fn advance(conn: &mut SqliteConnection, no: i64, through: i64) -> QueryResult<()> {
    diesel::update(actions::table.find(no).filter(actions::dispatched_through.lt(through)))
        .set(actions::dispatched_through.eq(through))
        .execute(conn)
        .map(|_| ())
}

fn complete(conn: &mut SqliteConnection, nos: &[i64], now: Timestamp, hooks: &[Listener]) -> QueryResult<Vec<i64>> {
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
    let ended: Vec<i64> = ended.into_iter().map(|row| row.key).collect();
    if is_heard(hooks, HookEvent::ActionEnded) {
        let views = ended.iter().map(|no| ended_view(conn, *no)).collect::<QueryResult<_>>()?;
        super::hooks::insert(conn, &actions_ended(hooks, views, now)?)?;
    }
    Ok(ended)
}

/// The view of an action, without its document.
fn ended_view(conn: &mut SqliteConnection, no: i64) -> QueryResult<ActionView> {
    let row = sql(format!("SELECT {WITHOUT_DOCUMENT} FROM actions a WHERE a.no = ?"));
    let row: ActionViewRow = row.bind(no).get_result(conn)?;
    let sums = sums(conn, no)?;
    row.view(sums)
}
