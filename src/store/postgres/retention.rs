//! Deleting actions, agents and tokens that are kept no longer.

use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::time::Timestamp;
use crate::store::sql::{Key, agents, sql, sql_limit, tokens};
use crate::store::{Retention, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

/// The tables with rows of an action, in the order in which they are deleted. Commands go first, so
/// that no more results of them are accepted.
const ROWS: [&str; 5] = ["commands", "open_commands", "outcomes", "late_results", "action_counts"];

#[async_trait]
impl Retention for PostgresStore {
    async fn action_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<Option<usize>> {
        self.write(Caller::Pipeline, "action_purge", body!([] conn => purge(conn, ended_before, limit))).await
    }

    async fn action_sweep(&self, after: i64, limit: usize) -> StoreResult<Option<i64>> {
        self.write(Caller::Pipeline, "action_sweep", body!([] conn => sweep(conn, after, limit))).await
    }

    async fn identity_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write(Caller::Pipeline, "identity_purge", body!([] conn => purge_identities(conn, before, limit))).await
    }
}

async fn purge_identities(conn: &mut AsyncPgConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    let tokens = tokens::purge_revoked(before, limit).execute(conn).await?
        + tokens::purge_expired(before, limit).execute(conn).await?;
    Ok(tokens + agents::purge(before, limit).execute(conn).await?)
}

/// Deletes up to `limit` rows of one action that ended before a time or whose deletion has begun.
/// `None` if there is none, or other nodes are deleting all of them.
///
/// The action's row in `purges` stays locked to the end, so that two nodes never delete rows of the
/// same action: they would select the same rows, and one of them would find these gone. The row
/// itself goes last, when no table has rows left.
async fn purge(conn: &mut AsyncPgConnection, before: Timestamp, limit: usize) -> QueryResult<Option<usize>> {
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

/// Picks an action to delete and locks its row in `purges`: one whose deletion has begun and that
/// no other node is deleting, else one that ended before a time, which is hidden from then on.
/// Returns its key.
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

/// Examines up to `limit` keys of actions that have rows, and marks those for deletion that have no
/// row in `actions`. One statement and so one snapshot: an action is inserted before its rows, and
/// deleted in the transaction that marks it.
async fn sweep(conn: &mut AsyncPgConnection, after: i64, limit: usize) -> QueryResult<Option<i64>> {
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
