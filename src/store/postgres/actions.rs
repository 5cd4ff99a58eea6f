//! Actions and their counters.

use super::audit;
use super::counts::SUMS;
use super::sql::sql;
use crate::domain::action::{Action, ActionState, Membership, NewAction};
use crate::domain::audit::{AuditEvent, Author};
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::rows::{ActionRow, ActionViewRow, Key, OpenActionRow, Sums, corrupt, in_state, sql_limit};
use crate::store::{Accepted, ActionView, OpenAction, Resolution};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

#[derive(QueryableByName)]
struct Known {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Binary)]
    digest: Vec<u8>,
}

pub(super) async fn insert(
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

async fn insert_one(
    conn: &mut AsyncPgConnection,
    new: &NewAction,
    owner: &str,
    now: Timestamp,
) -> QueryResult<Accepted> {
    // Whichever of the two unique keys is there already.
    let inserted = sql(
        "INSERT INTO actions (id, idempotency_key, name, target, document, operations, digest, created_at, valid_from, \
         expires_at, spread_ms, timeout_ms, max_deliveries, max_runs, live, priority, owner) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING no AS key",
    )
    .bind(new.id.to_string())
    .bind(new.idempotency_key.clone())
    .bind(new.name.as_str())
    .bind(new.target.as_str())
    .bind(new.document.as_str())
    .bind(new.operations.as_str())
    .bind(new.digest.clone())
    .bind(now.0)
    .bind(new.valid_from.0)
    .bind(new.expires_at.0)
    .bind(new.spread.as_millis())
    .bind(new.timeout.as_millis())
    .bind(new.max_deliveries)
    .bind(new.max_runs)
    .bind(new.membership == Membership::Live)
    .bind(new.priority)
    .bind(owner)
    .get_result::<Key>(conn)
    .await
    .optional()?;
    if let Some(Key { key: no }) = inserted {
        let event = AuditEvent { did: "action.create", subject: &new.id.to_string(), detail: &new.name };
        audit::insert(conn, &new.author, event, now).await?;
        return Ok(Accepted::Stored { id: new.id, no, is_new: true });
    }
    let by_key = sql("SELECT no, id, digest FROM actions WHERE idempotency_key = ?")
        .bind(new.idempotency_key.clone())
        .get_result::<Known>(conn)
        .await
        .optional()?;
    if let Some(known) = by_key {
        let id = Uuid::parse_str(&known.id).map_err(corrupt)?;
        let same = known.digest == new.digest;
        return Ok(if same { Accepted::Stored { id, no: known.no, is_new: false } } else { Accepted::KeyMismatch });
    }
    let known = sql("SELECT no, id, digest FROM actions WHERE id = ?")
        .bind(new.id.to_string())
        .get_result::<Known>(conn)
        .await?;
    let same = known.digest == new.digest;
    Ok(if same { Accepted::Stored { id: new.id, no: known.no, is_new: false } } else { Accepted::Conflict })
}

pub(super) async fn view(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<Option<ActionView>> {
    let row = sql(format!("SELECT a.*, s.* FROM actions a {SUMS} WHERE a.id = ?"))
        .bind(id.to_string())
        .get_result::<(ActionViewRow, Sums)>(conn)
        .await
        .optional()?;
    row.map(|(row, sums)| row.view(sums)).transpose()
}

pub(super) async fn list(
    conn: &mut AsyncPgConnection,
    state: Option<ActionState>,
    before: Option<i64>,
    limit: usize,
) -> QueryResult<Vec<ActionView>> {
    let state = state.map_or("TRUE", in_state);
    let rows: Vec<(ActionViewRow, Sums)> = sql(format!(
        "SELECT a.*, s.* FROM (SELECT * FROM actions WHERE no < ? AND {state} ORDER BY no DESC LIMIT ?) a {SUMS} \
         ORDER BY a.no DESC"
    ))
    .bind(before.unwrap_or(i64::MAX))
    .bind(sql_limit(limit))
    .load(conn)
    .await?;
    rows.into_iter().map(|(row, sums)| row.view(sums)).collect()
}

pub(super) async fn get(conn: &mut AsyncPgConnection, no: i64) -> QueryResult<Option<Action>> {
    let row = sql("SELECT * FROM actions WHERE no = ?").bind(no).get_result::<ActionRow>(conn).await.optional()?;
    row.map(ActionRow::action).transpose()
}

pub(super) async fn no(conn: &mut AsyncPgConnection, id: Uuid) -> QueryResult<Option<i64>> {
    let row = sql("SELECT no AS key FROM actions WHERE id = ?").bind(id.to_string());
    Ok(row.get_result::<Key>(conn).await.optional()?.map(|row| row.key))
}

pub(super) async fn list_open(
    conn: &mut AsyncPgConnection,
    here: &str,
    after: i64,
    limit: usize,
) -> QueryResult<Vec<OpenAction>> {
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

/// Those that this node owns.
pub(super) async fn list_unresolved(
    conn: &mut AsyncPgConnection,
    here: &str,
    horizon: Timestamp,
    limit: usize,
) -> QueryResult<Vec<i64>> {
    let rows: Vec<Key> =
        sql("SELECT no AS key FROM actions WHERE ended_at IS NULL AND NOT resolved AND owner = ? AND valid_from <= ? \
         ORDER BY no LIMIT ?")
        .bind(here)
        .bind(horizon.0)
        .bind(sql_limit(limit))
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| row.key).collect())
}

/// How far actions are resolved; and of those whose agents were never counted, how many there are.
pub(super) async fn resolutions(
    conn: &mut AsyncPgConnection,
    actions: &[(i64, Target)],
    now: Timestamp,
) -> QueryResult<(Vec<Resolution>, Vec<(i64, i64)>)> {
    let (mut resolutions, mut counted) = (Vec::with_capacity(actions.len()), Vec::new());
    for (no, target) in actions {
        let (resolution, expected) = resolution(conn, *no).await?;
        if !expected {
            counted.push((*no, super::agents::count(conn, target, now).await?));
        }
        resolutions.push(resolution);
    }
    Ok((resolutions, counted))
}

/// How far an action is resolved, and whether its agents were counted.
async fn resolution(conn: &mut AsyncPgConnection, no: i64) -> QueryResult<(Resolution, bool)> {
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
    let resolution = Resolution {
        through: row.resolved_through,
        written: sums.counts(row.resolved).total,
        expected: row.expected_total.unwrap_or_default(),
        done: row.resolved,
    };
    Ok((resolution, row.expected_total.is_some()))
}

/// Writes how many agents each action is for, if nobody else has.
pub(super) async fn expect(conn: &mut AsyncPgConnection, expected: &[(i64, i64)]) -> QueryResult<()> {
    let (nos, totals): (Vec<i64>, Vec<i64>) = expected.iter().copied().unzip();
    sql("UPDATE actions a SET expected_total = e.total FROM UNNEST(?, ?) AS e (no, total) \
         WHERE a.no = ANY(?) AND a.no = e.no AND a.expected_total IS NULL")
    .bind(nos.clone())
    .bind(totals)
    .bind(nos)
    .execute(conn)
    .await
    .map(|_| ())
}

pub(super) async fn cancel(
    conn: &mut AsyncPgConnection,
    id: Uuid,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    // What has ended stays as it ended. With `resolved`, pages that are still on their way are refused.
    let changed =
        sql("UPDATE actions SET cancelled = TRUE, resolved = TRUE WHERE id = ? AND ended_at IS NULL AND NOT cancelled")
            .bind(id.to_string())
            .execute(conn)
            .await?;
    if changed > 0 {
        audit::insert(conn, by, AuditEvent { did: "action.cancel", subject: &id.to_string(), detail: "" }, now).await?;
    }
    view(conn, id).await
}

pub(super) async fn pause(
    conn: &mut AsyncPgConnection,
    id: Uuid,
    paused: bool,
    by: &Author,
    now: Timestamp,
) -> QueryResult<Option<ActionView>> {
    let changed = sql("UPDATE actions SET paused = ? WHERE id = ? AND paused <> ? AND ended_at IS NULL AND NOT cancelled AND NOT expired")
        .bind(paused)
        .bind(id.to_string())
        .bind(paused)
        .execute(conn)
        .await?;
    if changed > 0 {
        let did = if paused { "action.pause" } else { "action.resume" };
        audit::insert(conn, by, AuditEvent { did, subject: &id.to_string(), detail: "" }, now).await?;
    }
    view(conn, id).await
}

pub(super) async fn expire(conn: &mut AsyncPgConnection, no: i64) -> QueryResult<bool> {
    let changed = sql("UPDATE actions SET expired = TRUE, resolved = TRUE WHERE no = ? AND NOT resolved").bind(no);
    Ok(changed.execute(conn).await? > 0)
}

/// Where `dispatched_through` of these actions is, and where it can go, if that is further.
pub(super) async fn advances(
    conn: &mut AsyncPgConnection,
    nos: &[i64],
    limit: usize,
) -> QueryResult<Vec<(i64, Option<i64>)>> {
    let mut found = Vec::with_capacity(nos.len());
    for no in nos {
        found.push(advanced(conn, *no, limit).await?);
    }
    Ok(found)
}

/// What is touched stays touched: this may be looked up before it is written.
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

pub(super) async fn advance(conn: &mut AsyncPgConnection, moved: &[(i64, i64)]) -> QueryResult<()> {
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

pub(super) async fn complete(conn: &mut AsyncPgConnection, nos: &[i64], now: Timestamp) -> QueryResult<Vec<i64>> {
    // First the lock, then, by a statement of its own, the look at the counters: an update that had to wait for the last
    // page of commands would see its flag `resolved` beside the counters of before.
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
    Ok(ended)
}

/// The tables with rows of an action, in the order in which they are deleted. The commands first: then nothing can be
/// reported about them any more.
const ROWS: [&str; 5] = ["commands", "open_commands", "outcomes", "late_results", "action_counts"];

/// Deletes up to `limit` rows of one action that ended before a time, or of one whose deleting was begun before; `None` if
/// there is none, or other nodes are at all of them.
///
/// The lock of its row in `purges` is held to the end: two nodes never delete rows of the same action, whose statements
/// would look for the same rows and find them gone. The row itself goes last, when a look at every table finds nothing.
pub(super) async fn purge(conn: &mut AsyncPgConnection, before: Timestamp, limit: usize) -> QueryResult<Option<usize>> {
    let Some(no) = begin_purge(conn, before).await? else { return Ok(None) };
    let mut deleted = 0;
    for table in ROWS {
        if deleted >= limit {
            return Ok(Some(deleted));
        }
        deleted += sql(format!(
            "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE action_no = ? LIMIT ?))"
        ))
        .bind(no)
        .bind(sql_limit(limit - deleted))
        .execute(conn)
        .await?;
    }
    let empty = ROWS.map(|table| format!("NOT EXISTS (SELECT 1 FROM {table} WHERE action_no = purges.action_no)"));
    sql(format!("DELETE FROM purges WHERE action_no = ? AND {}", empty.join(" AND "))).bind(no).execute(conn).await?;
    Ok(Some(deleted))
}

/// Takes out of sight one action that ended before a time: from then on it is known as one to be deleted alone. Answers
/// its key, or that of one whose deleting was begun before and that no other node is at, and locks its row in `purges`.
async fn begin_purge(conn: &mut AsyncPgConnection, before: Timestamp) -> QueryResult<Option<i64>> {
    let begun = sql("SELECT action_no AS key FROM purges ORDER BY action_no LIMIT 1 FOR UPDATE SKIP LOCKED")
        .get_result::<Key>(conn)
        .await
        .optional()?;
    if let Some(row) = begun {
        return Ok(Some(row.key));
    }
    let ended =
        sql("DELETE FROM actions WHERE no = (SELECT no FROM actions WHERE ended_at < ? ORDER BY ended_at LIMIT 1 \
         FOR UPDATE SKIP LOCKED) RETURNING no AS key")
        .bind(before.0)
        .get_result::<Key>(conn)
        .await
        .optional()?;
    let Some(Key { key: no }) = ended else { return Ok(None) };
    sql("DELETE FROM action_counts WHERE action_no = ?").bind(no).execute(conn).await?;
    sql("UPDATE occurrences SET action_no = NULL WHERE action_no = ?").bind(no).execute(conn).await?;
    sql("INSERT INTO purges (action_no) VALUES (?)").bind(no).execute(conn).await?;
    Ok(Some(no))
}

/// The smallest key beyond `after` that has rows in some table: one step in each index.
fn next_with_rows(after: &str) -> String {
    let next = ROWS
        .map(|table| format!("(SELECT action_no FROM {table} WHERE action_no > {after} ORDER BY action_no LIMIT 1)"));
    format!("LEAST({})", next.join(", "))
}

/// Looks at up to `limit` keys of actions that have rows, and marks those for deletion that have no row of their own.
/// One statement, and so one snapshot: an action comes before its rows, and leaves together with its mark's coming.
pub(super) async fn sweep(conn: &mut AsyncPgConnection, after: i64, limit: usize) -> QueryResult<Option<i64>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<BigInt>)]
        last: Option<i64>,
        #[diesel(sql_type = BigInt)]
        lost: i64,
    }
    let Row { last, lost } = sql(format!(
        "WITH RECURSIVE look (no, n) AS (SELECT {}, 1 UNION ALL SELECT {}, n + 1 FROM look WHERE no IS NOT NULL AND n < ?), \
         lost AS (INSERT INTO purges (action_no) SELECT no FROM look WHERE no IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM actions a WHERE a.no = look.no) \
         AND NOT EXISTS (SELECT 1 FROM purges p WHERE p.action_no = look.no) \
         ON CONFLICT DO NOTHING RETURNING action_no) \
         SELECT (SELECT max(no) FROM look) AS last, (SELECT count(*) FROM lost) AS lost",
        next_with_rows("?"),
        next_with_rows("look.no"),
    ))
    .bind_each(&[after; ROWS.len()])
    .bind(sql_limit(limit))
    .get_result(conn)
    .await?;
    if lost > 0 {
        log::warn!(actions = lost; "rows of actions that are no more are going to be deleted");
    }
    Ok(last)
}
