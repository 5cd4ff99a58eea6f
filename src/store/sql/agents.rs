//! Agents: their rows.

use super::values::corrupt;
use crate::domain::time::Timestamp;
use crate::store::AgentView;
use diesel::prelude::*;
use serde_json::value::RawValue;

/// An agent as users see it: name, transport, address, labels, facts, version, enrolled_at, last_seen, disabled, online.
pub(in crate::store) type AgentViewRow =
    (String, String, Option<String>, String, String, String, i64, Option<i64>, bool, bool);

/// Makes it what users see.
pub(in crate::store) fn agent_view(row: AgentViewRow) -> QueryResult<AgentView> {
    let (name, transport, address, labels, facts, version, enrolled_at, last_seen, disabled, online) = row;
    Ok(AgentView {
        name,
        status: if online { "online" } else { "offline" },
        transport,
        address,
        labels: RawValue::from_string(labels).map_err(corrupt)?,
        facts: RawValue::from_string(facts).map_err(corrupt)?,
        version,
        enrolled_at: Timestamp(enrolled_at),
        last_seen: last_seen.map(Timestamp),
        disabled,
    })
}
