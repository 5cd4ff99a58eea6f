//! Metadata.

use super::pools::Caller;
use super::store::PostgresStore;
use super::transaction::body;
use crate::domain::metadata::Value;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::agents::CHECK_IN_WRITTEN;
use crate::store::metadata::{AgentMetadata, Metadata, MetadataPage, NewValues, SEEN_WRITTEN, Seen};
use crate::store::sql::metadata::{KeyOfAgent, REPLACE, VALUE_COLUMNS, ValueRow, by_agent};
use crate::store::sql::schema::agents;
use crate::store::sql::{Key, Statement, filter, sql, sql_limit};
use crate::store::{Store, StoreResult};
use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use std::collections::HashSet;
use std::sync::Arc;

#[async_trait]
impl Metadata for PostgresStore {
    async fn metadata_write(&self, values: Vec<NewValues>, seen: Vec<Seen>) -> StoreResult<bool> {
        let (values, seen, here, now) = (Arc::new(values), Arc::new(seen), self.inner.incarnation.clone(), self.now());
        let write = body!([values, seen, here] conn => write(conn, &values, &seen, &here, now));
        self.write(Caller::Sessions, "metadata_write", write).await
    }

    async fn metadata_keys(&self, agent_nos: &[i64]) -> StoreResult<Vec<(i64, String)>> {
        let agent_nos = Arc::new(agent_nos.to_vec());
        self.read(Caller::Sessions, "metadata_keys", body!([agent_nos] conn => keys(conn, &agent_nos))).await
    }

    async fn metadata_of(&self, names: &[String], keys: Option<&[String]>) -> StoreResult<Vec<AgentMetadata>> {
        let (names, keys) = (Arc::new(names.to_vec()), Arc::new(keys.map(<[String]>::to_vec)));
        let read = body!([names, keys] conn => of(conn, &names, keys.as_deref()));
        self.read(Caller::People, "metadata_of", read).await
    }

    async fn metadata_since(
        &self,
        target: &Target,
        among: Option<&[i64]>,
        since: Timestamp,
        after: i64,
        limit: usize,
    ) -> StoreResult<MetadataPage> {
        let (target, among, now) = (Arc::new(target.clone()), Arc::new(among.map(<[i64]>::to_vec)), self.now());
        let read = body!([target, among] conn => page(conn, &target, among.as_deref(), since, now, after, limit));
        self.read(Caller::People, "metadata_since", read).await
    }

    async fn metadata_watch(&self, watches: bool) -> StoreResult<()> {
        let here = self.inner.incarnation.clone();
        self.write(Caller::Pipeline, "metadata_watch", body!([here] conn => watch(conn, &here, watches))).await
    }
}

async fn write(
    conn: &mut AsyncPgConnection,
    values: &[NewValues],
    seen: &[Seen],
    here: &str,
    now: Timestamp,
) -> QueryResult<bool> {
    if !values.is_empty() {
        put(conn, values, now).await?;
    }
    if !seen.is_empty() {
        see(conn, seen).await?;
    }
    let watched = sql("SELECT 1::bigint AS key FROM nodes WHERE watches AND incarnation <> ? LIMIT 1").bind(here);
    Ok(watched.get_result::<Key>(conn).await.optional()?.is_some())
}

/// A value, its agent and its key.
type Row<'a> = (i64, &'a str, &'a Value);

async fn put(conn: &mut AsyncPgConnection, values: &[NewValues], now: Timestamp) -> QueryResult<()> {
    let named: Vec<i64> = values.iter().map(|new| new.agent_no).collect();
    // A separate statement, so that the rows are written in the order of the list, in which nodes don't wait for each other in
    // a circle. What is written for an agent that is being removed is deleted when its commands are closed.
    let living: Vec<Key> =
        sql("SELECT no AS key FROM agents WHERE no = ANY(?) AND removed_at IS NULL").bind(named).load(conn).await?;
    let living: HashSet<i64> = living.into_iter().map(|row| row.key).collect();
    let living = values.iter().filter(|new| living.contains(&new.agent_no));
    let rows = living.flat_map(|new| new.values.iter().map(|(key, value)| (new.agent_no, key.as_str(), value)));
    let rows: Vec<Row<'_>> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    // Twice as fast as an upsert, which locks each row before it changes it.
    let changed = with_rows(
        "UPDATE agent_metadata SET value = n.value, error = n.error, collected_at = n.collected_at, \
         clamped = n.clamped, written_at = ? FROM ",
        " WHERE agent_metadata.agent_no = n.agent_no AND agent_metadata.key = n.key \
         AND agent_metadata.collected_at <= n.collected_at",
        &rows,
        now,
    );
    if changed.execute(conn).await? == rows.len() {
        return Ok(());
    }
    // Some are new, or older than what is stored. Another node may have inserted an older one since the update, and may insert
    // one at this moment.
    let missing = " WHERE NOT EXISTS (SELECT 1 FROM agent_metadata m WHERE m.agent_no = n.agent_no AND m.key = n.key \
         AND m.collected_at >= n.collected_at OFFSET 0) ";
    let insert = with_rows(
        "INSERT INTO agent_metadata (agent_no, key, value, error, collected_at, clamped, written_at) SELECT n.*, ? FROM ",
        &format!("{missing}{REPLACE}"),
        &rows,
        now,
    );
    insert.execute(conn).await.map(|_| ())
}

/// A statement over rows of values, called `n`, with the time of the write before them.
fn with_rows<'a>(begin: &str, end: &str, rows: &[Row<'a>], now: Timestamp) -> Statement<'a> {
    sql(format!("{begin}UNNEST(?, ?, ?, ?, ?, ?) AS n (agent_no, key, value, error, collected_at, clamped){end}"))
        .bind(now.0)
        .bind(rows.iter().map(|(agent_no, ..)| *agent_no).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., value)| value.value.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., value)| value.error.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., value)| value.collected_at.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|(.., value)| value.clamped).collect::<Vec<_>>())
}

async fn see(conn: &mut AsyncPgConnection, seen: &[Seen]) -> QueryResult<()> {
    sql("UPDATE agents SET last_seen = greatest(coalesce(agents.last_seen, 0), s.at), checked_in_at = CASE \
           WHEN s.checked_in THEN greatest(coalesce(agents.checked_in_at, 0), s.at) ELSE agents.checked_in_at END \
         FROM UNNEST(?, ?, ?) AS s (no, at, checked_in) WHERE agents.no = s.no AND agents.removed_at IS NULL \
         AND (coalesce(agents.last_seen, 0) < s.at - ? \
           OR (s.checked_in AND coalesce(agents.checked_in_at, 0) < s.at - ?))")
    .bind(seen.iter().map(|seen| seen.agent_no).collect::<Vec<_>>())
    .bind(seen.iter().map(|seen| seen.at.0).collect::<Vec<_>>())
    .bind(seen.iter().map(|seen| seen.checked_in).collect::<Vec<_>>())
    .bind(millis(SEEN_WRITTEN))
    .bind(millis(CHECK_IN_WRITTEN))
    .execute(conn)
    .await
    .map(|_| ())
}

fn millis(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

async fn keys(conn: &mut AsyncPgConnection, agent_nos: &[i64]) -> QueryResult<Vec<(i64, String)>> {
    let rows: Vec<KeyOfAgent> = sql("SELECT agent_no, key AS metadata_key FROM agent_metadata WHERE agent_no = ANY(?)")
        .bind(agent_nos.to_vec())
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|row| (row.agent_no, row.metadata_key)).collect())
}

async fn of(
    conn: &mut AsyncPgConnection,
    names: &[String],
    keys: Option<&[String]>,
) -> QueryResult<Vec<AgentMetadata>> {
    let rows: Vec<ValueRow> = sql(format!(
        "SELECT {VALUE_COLUMNS} FROM agents a JOIN agent_metadata m ON m.agent_no = a.no \
         WHERE a.name = ANY(?) AND a.removed_at IS NULL AND (? OR m.key = ANY(?)) ORDER BY a.no, m.key"
    ))
    .bind(names.to_vec())
    .bind(keys.is_none())
    .bind(keys.unwrap_or_default().to_vec())
    .load(conn)
    .await?;
    by_agent(rows)
}

async fn page(
    conn: &mut AsyncPgConnection,
    target: &Target,
    among: Option<&[i64]>,
    since: Timestamp,
    now: Timestamp,
    after: i64,
    limit: usize,
) -> QueryResult<MetadataPage> {
    let mut matching = agents::table
        .filter(filter::members(target, now))
        .filter(agents::no.gt(after))
        .order(agents::no)
        .limit(sql_limit(limit))
        .select(agents::no)
        .into_boxed();
    if let Some(among) = among {
        matching = matching.filter(agents::no.eq_any(among));
    }
    let nos: Vec<i64> = matching.load(conn).await?;
    let through = nos.last().copied().filter(|_| nos.len() >= limit);
    let rows: Vec<ValueRow> = sql(format!(
        "SELECT {VALUE_COLUMNS} FROM agents a JOIN agent_metadata m ON m.agent_no = a.no \
         WHERE a.no = ANY(?) AND m.written_at > ? ORDER BY a.no, m.key"
    ))
    .bind(nos)
    .bind(since.0)
    .load(conn)
    .await?;
    Ok(MetadataPage { agents: by_agent(rows)?, through })
}

async fn watch(conn: &mut AsyncPgConnection, here: &str, watches: bool) -> QueryResult<()> {
    sql("UPDATE nodes SET watches = ? WHERE incarnation = ?").bind(watches).bind(here).execute(conn).await.map(|_| ())
}
