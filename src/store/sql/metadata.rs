//! Metadata: statements that are the same for both databases, and their rows.

use super::statement::{Sql, sql};
use super::values::corrupt;
use crate::domain::time::Timestamp;
use crate::store::metadata::{AgentMetadata, MetadataView};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use serde_json::value::RawValue;

/// A key of an agent.
#[derive(QueryableByName)]
pub(in crate::store) struct KeyOfAgent {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) agent_no: i64,
    #[diesel(sql_type = Text)]
    pub(in crate::store) metadata_key: String,
}

/// A value with its agent.
#[derive(QueryableByName)]
pub(in crate::store) struct ValueRow {
    #[diesel(sql_type = BigInt)]
    agent_no: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    metadata_key: String,
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    error: Option<String>,
    #[diesel(sql_type = BigInt)]
    collected_at: i64,
    #[diesel(sql_type = Bool)]
    clamped: bool,
}

/// The columns of a [`ValueRow`], of `a` and `m`.
pub(in crate::store) const VALUE_COLUMNS: &str =
    "a.no AS agent_no, a.name, m.key AS metadata_key, m.value, m.error, m.collected_at, m.clamped";

/// What a new value does to a stored one: it replaces one that isn't newer. The time always moves on, also if the value is
/// the same: else a value that is older than this one, and newer than the stored one, would win when it comes late.
pub(in crate::store) const REPLACE: &str = "ON CONFLICT (agent_no, key) DO UPDATE SET value = excluded.value, \
     error = excluded.error, collected_at = excluded.collected_at, clamped = excluded.clamped, \
     written_at = excluded.written_at WHERE agent_metadata.collected_at <= excluded.collected_at";

/// Groups rows that are ordered by agent.
pub(in crate::store) fn by_agent(rows: Vec<ValueRow>) -> QueryResult<Vec<AgentMetadata>> {
    let mut agents: Vec<AgentMetadata> = Vec::new();
    for row in rows {
        let value = row.value.map(RawValue::from_string).transpose().map_err(corrupt)?;
        let (collected_at, clamped) = (Timestamp(row.collected_at), row.clamped);
        let view = MetadataView { value, error: row.error, collected_at, clamped };
        match agents.last_mut() {
            Some(agent) if agent.agent_no == row.agent_no => drop(agent.values.insert(row.metadata_key, view)),
            _ => agents.push(AgentMetadata {
                agent_no: row.agent_no,
                name: row.name,
                values: [(row.metadata_key, view)].into(),
            }),
        }
    }
    Ok(agents)
}

/// Deletes the values of a removed agent.
pub(in crate::store) fn delete_of(agent_no: i64) -> Sql {
    sql("DELETE FROM agent_metadata WHERE agent_no = ?").bind(agent_no)
}
