//! Actions and their counters.

use super::audit;
use super::counts::SUMS;
use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::action::{Action, ActionState, NewAction};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::hook::{HookEvent, Listener};
use crate::domain::time::Timestamp;
use crate::store::sql::actions::{
    self as statements, ActionRow, ActionViewRow, OpenActionRow, Stored, Sums, UnresolvedRow, WITHOUT_DOCUMENT, ids,
    in_state,
};
use crate::store::sql::dispatch::Named;
use crate::store::sql::hooks::{actions_ended, is_heard};
use crate::store::sql::{Key, sql, sql_limit};
use crate::store::{Accepted, ActionView, Actions, OpenAction, Resolution, Store, StoreResult, Unresolved};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::sync::Arc;
use uuid::Uuid;

#[async_trait]
impl Actions for PostgresStore {
    async fn action_insert(&self, actions: Vec<NewAction>) -> StoreResult<Vec<Accepted>> {
        let (actions, owner, now) = (Arc::new(actions), self.inner.incarnation.clone(), self.now());
        let insert = body!([actions, owner] conn => insert(conn, &actions, &owner, now));
        self.write(Caller::Pipeline, "action_insert", insert).await
    }

    async fn action_view(&self, id: Uuid) -> StoreResult<Option<ActionView>> {
        self.read(Caller::People, "action_view", body!([] conn => view(conn, id))).await
    }

    async fn action_list(
        &self,
        state: Option<ActionState>,
        beginning: Option<&str>,
        before: Option<i64>,
        limit: usize,
    ) -> StoreResult<Vec<ActionView>> {
        let beginning = beginning.map(str::to_owned);
        self.read(
            Caller::People,
            "action_list",
            body!([beginning] conn => list(conn, state, beginning.as_deref(), before, limit)),
        )
        .await
    }

    async fn action_get(&self, no: i64) -> StoreResult<Option<Action>> {
        self.read(Caller::Pipeline, "action_get", body!([] conn => get(conn, no))).await
    }

    async fn action_nos(&self, ids: &[Uuid]) -> StoreResult<Vec<(Uuid, i64)>> {
        let ids: Arc<Vec<String>> = Arc::new(ids.iter().map(Uuid::to_string).collect());
        self.read(Caller::Pipeline, "action_nos", body!([ids] conn => nos(conn, &ids))).await
    }

    async fn action_list_open(&self, after: i64, limit: usize) -> StoreResult<Vec<OpenAction>> {
        let here = self.inner.incarnation.clone();
        self.read(Caller::Pipeline, "action_list_open", body!([here] conn => list_open(conn, &here, after, limit)))
            .await
    }

    async fn action_list_unresolved(
        &self,
        horizon: Timestamp,
        after: (Timestamp, i64),
        limit: usize,
    ) -> StoreResult<Vec<Unresolved>> {
        let here = self.inner.incarnation.clone();
        let list = body!([here] conn => list_unresolved(conn, &here, horizon, after, limit));
        self.read(Caller::Pipeline, "action_list_unresolved", list).await
    }

    async fn action_resolution(&self, no: i64) -> StoreResult<Resolution> {
        self.read(Caller::Pipeline, "action_resolution", body!([] conn => resolution(conn, no))).await
    }

    async fn action_expect(&self, no: i64, agents: i64) -> StoreResult<i64> {
        self.write(Caller::Pipeline, "action_expect", body!([] conn => expect(conn, no, agents))).await
    }

    async fn action_cancel(&self, id: Uuid, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write(Caller::Pipeline, "action_cancel", body!([by] conn => cancel(conn, id, &by, now))).await
    }

    async fn action_pause(&self, id: Uuid, paused: bool, by: &Author) -> StoreResult<Option<ActionView>> {
        let (by, now) = (Arc::new(by.clone()), self.now());
        self.write(Caller::Pipeline, "action_pause", body!([by] conn => pause(conn, id, paused, &by, now))).await
    }

    async fn action_expire(&self, no: i64) -> StoreResult<bool> {
        self.write(Caller::Pipeline, "action_expire", body!([] conn => expire(conn, no))).await
    }

    async fn action_advance(&self, nos: Vec<i64>, limit: usize) -> StoreResult<Vec<i64>> {
        let nos = Arc::new(nos);
        let found =
            self.read(Caller::Pipeline, "action_advance", body!([nos] conn => advances(conn, &nos, limit))).await?;
        let moved: Vec<(i64, i64)> =
            nos.iter().zip(&found).filter_map(|(no, (_, next))| Some((*no, (*next)?))).collect();
        if !moved.is_empty() {
            let moved = Arc::new(moved);
            self.write(Caller::Pipeline, "action_advance", body!([moved] conn => advance(conn, &moved))).await?;
        }
        Ok(found.into_iter().map(|(through, next)| next.unwrap_or(through)).collect())
    }

    async fn action_complete(&self, nos: Vec<i64>) -> StoreResult<Vec<i64>> {
        let (nos, now, hooks) = (Arc::new(nos), self.now(), self.inner.hooks.get());
        let complete = body!([nos, hooks] conn => complete(conn, &nos, now, &hooks));
        self.write(Caller::Pipeline, "action_complete", complete).await
    }
}

async fn insert(
    conn: &mut AsyncPgConnection,
    new: &[NewAction],
    owner: &str,
    now: Timestamp,
) -> QueryResult<Vec<Accepted>> {
    let mut accepted = Vec::with_capacity(new.len());
    for action in new {
        accepted.push(insert_one(conn, action, owner, now).await?);
    }
    Ok(accepted)
}

pub(super) async fn insert_one(
    conn: &mut AsyncPgConnection,
    new: &NewAction,
    owner: &str,
    now: Timestamp,
) -> QueryResult<Accepted> {
    if let Some(Key { key: no }) = statements::insert(new, owner, now).get_result(conn).await.optional()? {
        let event = AuditEvent {
            did: "action.create",
            subject: &new.id.to_string(),
            detail: &new.name,
            what: Some((&new.target, &new.operations)),
        };
        audit::insert(conn, &new.author, event, now).await?;
        return Ok(Accepted::Stored { id: new.id, no, is_new: true });
    }
    // One of the two unique keys is stored.
    let by_key = statements::with_key(new.idempotency_key.as_deref()).get_result::<Stored>(conn).await.optional()?;
    if let Some(stored) = by_key {
        return stored.accept(new, Accepted::KeyMismatch);
    }
    let stored: Stored = statements::with_id(new.id).get_result(conn).await?;
    stored.accept(new, Accepted::Conflict)
}

async fn view(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<Option<ActionView>> {
    let row = sql(format!("SELECT a.*, s.* FROM actions a {SUMS} WHERE a.id = ?"))
        .bind(id.to_string())
        .get_result::<(ActionViewRow, Sums)>(conn)
        .await
        .optional()?;
    row.map(|(row, sums)| row.view(sums)).transpose()
}

async fn list(
    conn: &mut AsyncPgConnection,
    state: Option<ActionState>,
    beginning: Option<&str>,
    before: Option<i64>,
    limit: usize,
) -> QueryResult<Vec<ActionView>> {
    let state = state.map_or("TRUE", in_state);
    let begins = if beginning.is_some() { " AND id >= ? AND id < ?" } else { "" };
    let mut list = sql(format!(
        "SELECT a.*, s.* FROM (SELECT * FROM actions WHERE no < ? AND {state}{begins} ORDER BY no DESC LIMIT ?) a {SUMS} \
         ORDER BY a.no DESC"
    ))
    .bind(before.unwrap_or(i64::MAX));
    if let Some((first, end)) = beginning.map(ids) {
        list = list.bind(first).bind(end);
    }
    let rows: Vec<(ActionViewRow, Sums)> = list.bind(sql_limit(limit)).load(conn).await?;
    rows.into_iter().map(|(row, sums)| row.view(sums)).collect()
}

async fn get(conn: &mut AsyncPgConnection, no: i64) -> QueryResult<Option<Action>> {
    let row: Option<ActionRow> = statements::get(no).get_result(conn).await.optional()?;
    row.map(ActionRow::action).transpose()
}

async fn nos(conn: &mut AsyncPgConnection, ids: &[String]) -> QueryResult<Vec<(Uuid, i64)>> {
    let text = "SELECT a.id AS name, a.no AS number FROM UNNEST(?) j (id) \
         CROSS JOIN LATERAL (SELECT id, no FROM actions x WHERE x.id = j.id COLLATE \"C\" OFFSET 0) a";
    let rows: Vec<Named> = sql(text).bind(ids.to_vec()).load(conn).await?;
    rows.into_iter().map(Named::of_id).collect()
}

async fn list_open(conn: &mut AsyncPgConnection, here: &str, after: i64, limit: usize) -> QueryResult<Vec<OpenAction>> {
    let rows: Vec<OpenActionRow> = sql(format!(
        "SELECT a.*, n_total - n_succeeded - n_failed - n_timed_out - n_undeliverable - n_expired - n_cancelled \
         AS unfinished, n_sent AS sent FROM (SELECT no, valid_from, expires_at, live, owner IS NOT DISTINCT FROM ? AS owned, resolved, cancelled, paused, expired, \
         resolved_through, dispatched_through FROM actions WHERE ended_at IS NULL AND no > ? ORDER BY no LIMIT ?) a \
         {SUMS} ORDER BY a.no"
    ))
    .bind(here)
    .bind(after)
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(OpenAction::from).collect())
}

/// Of the actions that this node owns.
async fn list_unresolved(
    conn: &mut AsyncPgConnection,
    here: &str,
    horizon: Timestamp,
    after: (Timestamp, i64),
    limit: usize,
) -> QueryResult<Vec<Unresolved>> {
    let rows: Vec<UnresolvedRow> = statements::list_unresolved(Some(here), horizon, after, limit).load(conn).await?;
    Ok(rows.into_iter().map(Unresolved::from).collect())
}

async fn resolution(conn: &mut AsyncPgConnection, no: i64) -> QueryResult<Resolution> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        resolved_through: i64,
        #[diesel(sql_type = Nullable<BigInt>)]
        expected_total: Option<i64>,
        #[diesel(sql_type = Bool)]
        resolved: bool,
    }
    let (row, sums) = sql(format!(
        "SELECT a.resolved_through, a.expected_total, a.resolved, s.* FROM actions a {SUMS} WHERE a.no = ?"
    ))
    .bind(no)
    .get_result::<(Row, Sums)>(conn)
    .await?;
    Ok(Resolution {
        through: row.resolved_through,
        written: sums.counts(row.resolved).total,
        expected: row.expected_total,
        done: row.resolved,
    })
}

async fn expect(conn: &mut AsyncPgConnection, no: i64, agents: i64) -> QueryResult<i64> {
    Ok(statements::expect(no, agents).get_result::<Key>(conn).await?.key)
}

async fn cancel(
    conn: &mut AsyncPgConnection,
    id: Uuid,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    if statements::cancel(id).execute(conn).await? > 0 {
        audit::insert(
            conn,
            by,
            AuditEvent { did: "action.cancel", subject: &id.to_string(), ..AuditEvent::default() },
            now,
        )
        .await?;
    }
    view(conn, id).await
}

async fn pause(
    conn: &mut AsyncPgConnection,
    id: Uuid,
    paused: bool,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    if statements::pause(id, paused).execute(conn).await? > 0 {
        let did = if paused { "action.pause" } else { "action.resume" };
        audit::insert(conn, by, AuditEvent { did, subject: &id.to_string(), ..AuditEvent::default() }, now).await?;
    }
    view(conn, id).await
}

async fn expire(conn: &mut AsyncPgConnection, no: i64) -> QueryResult<bool> {
    Ok(statements::expire(no).execute(conn).await? > 0)
}

/// `dispatched_through` of these actions, and where it can advance to.
async fn advances(conn: &mut AsyncPgConnection, nos: &[i64], limit: usize) -> QueryResult<Vec<(i64, Option<i64>)>> {
    let mut found = Vec::with_capacity(nos.len());
    for no in nos {
        found.push(advanced(conn, *no, limit).await?);
    }
    Ok(found)
}

/// A command that has an outcome or an open row keeps one, so reading and advancing need no common
/// transaction.
async fn advanced(conn: &mut AsyncPgConnection, no: i64, limit: usize) -> QueryResult<(i64, Option<i64>)> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        dispatched_through: i64,
        #[diesel(sql_type = BigInt)]
        resolved_through: i64,
    }
    let Row { dispatched_through: through, resolved_through } =
        sql("SELECT dispatched_through, resolved_through FROM actions WHERE no = ?").bind(no).get_result(conn).await?;
    let next = match super::commands::first_untouched(conn, no, through, limit).await? {
        Some(untouched) => untouched - 1,
        None => super::commands::key_after(conn, no, through, limit).await?.unwrap_or(resolved_through),
    };
    Ok((through, (next > through).then_some(next)))
}

async fn advance(conn: &mut AsyncPgConnection, moved: &[(i64, i64)]) -> QueryResult<()> {
    let (nos, throughs): (Vec<i64>, Vec<i64>) = moved.iter().copied().unzip();
    sql("UPDATE actions a SET dispatched_through = m.through FROM UNNEST(?, ?) AS m (no, through) \
         WHERE a.no = ANY(?) AND a.no = m.no AND a.dispatched_through < m.through")
    .bind(nos.clone())
    .bind(throughs)
    .bind(nos)
    .execute(conn)
    .await
    .map(|_| ())
}

async fn complete(
    conn: &mut AsyncPgConnection,
    nos: &[i64],
    now: Timestamp,
    hooks: &[Listener],
) -> QueryResult<Vec<i64>> {
    // First the lock, then, by a statement of its own, the look at the counters: an update that had
    // to wait for the last page of commands would see its flag `resolved` beside the counters of
    // before.
    let candidates: Vec<Key> =
        sql("SELECT no AS key FROM actions WHERE no = ANY(?) AND resolved AND ended_at IS NULL \
         AND (NOT live OR cancelled OR expires_at <= ?) ORDER BY no FOR NO KEY UPDATE")
        .bind(nos.to_vec())
        .bind(now.0)
        .load(conn)
        .await?;
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let ended: Vec<Key> =
        sql("UPDATE actions a SET ended_at = ? WHERE no = ANY(?) AND NOT EXISTS (SELECT 1 FROM action_counts c \
         WHERE c.action_no = a.no GROUP BY c.action_no HAVING sum(c.total) <> sum(c.succeeded + c.failed \
         + c.timed_out + c.undeliverable + c.expired + c.cancelled)) RETURNING no AS key")
        .bind(now.0)
        .bind(candidates.into_iter().map(|row| row.key).collect::<Vec<_>>())
        .load(conn)
        .await?;
    let mut ended: Vec<i64> = ended.into_iter().map(|row| row.key).collect();
    ended.sort_unstable();
    if !ended.is_empty() && is_heard(hooks, HookEvent::ActionEnded) {
        let rows: Vec<(ActionViewRow, Sums)> =
            sql(format!("SELECT {WITHOUT_DOCUMENT}, s.* FROM actions a {SUMS} WHERE a.no = ANY(?) ORDER BY a.no"))
                .bind(ended.clone())
                .load(conn)
                .await?;
        let views = rows.into_iter().map(|(row, sums)| row.view(sums)).collect::<QueryResult<_>>()?;
        super::hooks::insert(conn, actions_ended(hooks, views, now)?).await?;
    }
    Ok(ended)
}
