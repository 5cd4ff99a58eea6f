//! Deleting actions, agents and tokens that are kept no longer.

use super::store::SqliteStore;
use crate::domain::time::Timestamp;
use crate::store::sql::{Key, agents, sql_limit, tokens};
use crate::store::{Retention, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable};

/// The tables with rows of an action, and the rest of their keys, in the order in which they are
/// deleted. Commands go first, so that no more results of them are accepted.
const ROWS: [(&str, &str); 5] = [
    ("commands", "agent_no"),
    ("open_commands", "agent_no"),
    ("outcomes", "agent_no, run"),
    ("late_results", "agent_no, run"),
    ("action_counts", "lane"),
];

#[async_trait]
impl Retention for SqliteStore {
    async fn action_purge(&self, ended_before: Timestamp, limit: usize) -> StoreResult<Option<usize>> {
        self.write("action_purge", move |conn| purge(conn, ended_before, limit)).await
    }

    async fn action_sweep(&self, after: i64, limit: usize) -> StoreResult<Option<i64>> {
        self.write("action_sweep", move |conn| sweep(conn, after, limit)).await
    }

    async fn identity_purge(&self, before: Timestamp, limit: usize) -> StoreResult<usize> {
        self.write("identity_purge", move |conn| purge_identities(conn, before, limit)).await
    }
}

fn purge_identities(conn: &mut SqliteConnection, before: Timestamp, limit: usize) -> QueryResult<usize> {
    let tokens =
        tokens::purge_revoked(before, limit).execute(conn)? + tokens::purge_expired(before, limit).execute(conn)?;
    Ok(tokens + agents::purge(before, limit).execute(conn)?)
}

fn purge(conn: &mut SqliteConnection, before: Timestamp, limit: usize) -> QueryResult<Option<usize>> {
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

/// Examines up to `limit` keys of actions that have rows, and marks those for deletion that have no
/// row in `actions`.
fn sweep(conn: &mut SqliteConnection, after: i64, limit: usize) -> QueryResult<Option<i64>> {
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
