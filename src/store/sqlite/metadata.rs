//! Metadata.

use super::store::{SqliteStore, json};
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::agents::CHECK_IN_WRITTEN;
use crate::store::metadata::{AgentMetadata, Metadata, MetadataPage, NewValues, SEEN_WRITTEN, Seen};
use crate::store::sql::metadata::{KeyOfAgent, REPLACE, VALUE_COLUMNS, ValueRow, by_agent};
use crate::store::sql::schema::agents;
use crate::store::sql::{filter, sql, sql_limit};
use crate::store::{Store, StoreResult};
use async_trait::async_trait;
use diesel::dsl;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};

#[async_trait]
impl Metadata for SqliteStore {
    async fn metadata_write(&self, values: Vec<NewValues>, seen: Vec<Seen>) -> StoreResult<bool> {
        let now = self.now();
        self.write("metadata_write", move |conn| write(conn, &values, &seen, now)).await.map(|()| false)
    }

    async fn metadata_keys(&self, agent_nos: &[i64]) -> StoreResult<Vec<(i64, String)>> {
        let agent_nos = agent_nos.to_vec();
        self.read("metadata_keys", move |conn| keys(conn, &agent_nos)).await
    }

    async fn metadata_of(&self, names: &[String], keys: Option<&[String]>) -> StoreResult<Vec<AgentMetadata>> {
        let (names, keys) = (names.to_vec(), keys.map(<[String]>::to_vec));
        self.read("metadata_of", move |conn| of(conn, &names, keys.as_deref())).await
    }

    async fn metadata_since(
        &self,
        target: &Target,
        among: Option<&[i64]>,
        since: Timestamp,
        after: i64,
        limit: usize,
    ) -> StoreResult<MetadataPage> {
        let (target, among, now) = (target.clone(), among.map(<[i64]>::to_vec), self.now());
        let read = move |conn: &mut SqliteConnection| page(conn, &target, among.as_deref(), since, now, after, limit);
        self.read("metadata_since", read).await
    }

    async fn metadata_watch(&self, _: bool) -> StoreResult<()> {
        Ok(())
    }
}

/// Row by row through one prepared statement, as outcomes are.
fn write(conn: &mut SqliteConnection, values: &[NewValues], seen: &[Seen], now: Timestamp) -> QueryResult<()> {
    let values = values.iter().flat_map(|new| new.values.iter().map(|(key, value)| (new.agent_no, key, value)));
    for (agent_no, key, value) in values {
        sql(format!(
            "INSERT INTO agent_metadata (agent_no, key, value, error, collected_at, clamped, written_at) \
             SELECT no, ?, ?, ?, ?, ?, ? FROM agents WHERE no = ? AND removed_at IS NULL {REPLACE}"
        ))
        .bind(key.as_str())
        .bind(value.value.as_deref())
        .bind(value.error.as_deref())
        .bind(value.collected_at.0)
        .bind(value.clamped)
        .bind(now.0)
        .bind(agent_no)
        .execute(conn)?;
    }
    for Seen { agent_no, at, checked_in } in seen {
        sql("UPDATE agents SET last_seen = max(coalesce(last_seen, 0), ?), \
             checked_in_at = CASE WHEN ? THEN max(coalesce(checked_in_at, 0), ?) ELSE checked_in_at END \
             WHERE no = ? AND removed_at IS NULL \
             AND (coalesce(last_seen, 0) < ? OR (? AND coalesce(checked_in_at, 0) < ?))")
        .bind(at.0)
        .bind(*checked_in)
        .bind(at.0)
        .bind(*agent_no)
        .bind(at.minus(SEEN_WRITTEN).0)
        .bind(*checked_in)
        .bind(at.minus(CHECK_IN_WRITTEN).0)
        .execute(conn)?;
    }
    Ok(())
}

fn keys(conn: &mut SqliteConnection, agent_nos: &[i64]) -> QueryResult<Vec<(i64, String)>> {
    let rows: Vec<KeyOfAgent> = sql_query(
        "SELECT agent_no, key AS metadata_key FROM agent_metadata WHERE agent_no IN (SELECT value FROM json_each(?))",
    )
    .bind::<Text, _>(json(agent_nos)?)
    .load(conn)?;
    Ok(rows.into_iter().map(|row| (row.agent_no, row.metadata_key)).collect())
}

fn of(conn: &mut SqliteConnection, names: &[String], keys: Option<&[String]>) -> QueryResult<Vec<AgentMetadata>> {
    let rows: Vec<ValueRow> = sql_query(format!(
        "SELECT {VALUE_COLUMNS} FROM agents a JOIN agent_metadata m ON m.agent_no = a.no \
         WHERE a.name IN (SELECT value FROM json_each(?1)) AND a.removed_at IS NULL \
         AND (?2 OR m.key IN (SELECT value FROM json_each(?3))) ORDER BY a.no, m.key"
    ))
    .bind::<Text, _>(json(names)?)
    .bind::<Bool, _>(keys.is_none())
    .bind::<Text, _>(json(keys.unwrap_or_default())?)
    .load(conn)?;
    by_agent(rows)
}

fn page(
    conn: &mut SqliteConnection,
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
        let listed =
            dsl::sql::<Bool>("agents.no IN (SELECT value FROM json_each(").bind::<Text, _>(json(among)?).sql("))");
        matching = matching.filter(listed);
    }
    let nos: Vec<i64> = matching.load(conn)?;
    let through = nos.last().copied().filter(|_| nos.len() >= limit);
    let rows: Vec<ValueRow> = sql_query(format!(
        "SELECT {VALUE_COLUMNS} FROM agents a JOIN agent_metadata m ON m.agent_no = a.no \
         WHERE a.no IN (SELECT value FROM json_each(?1)) AND m.written_at > ?2 ORDER BY a.no, m.key"
    ))
    .bind::<Text, _>(json(&nos)?)
    .bind::<BigInt, _>(since.0)
    .load(conn)?;
    Ok(MetadataPage { agents: by_agent(rows)?, through })
}
