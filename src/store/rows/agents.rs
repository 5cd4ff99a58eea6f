//! Rows of agents, tokens, nodes and the audit log.

use super::corrupt;
use crate::domain::agent::{Role, Token};
use crate::domain::audit::AuditEntry;
use crate::domain::time::Timestamp;
use crate::store::agents::AgentView;
use crate::store::nodes::NodeView;
use crate::store::schema::tokens;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use serde_json::value::RawValue;
use uuid::Uuid;

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

/// A token.
#[derive(Queryable, Insertable, QueryableByName)]
#[diesel(table_name = tokens)]
pub(in crate::store) struct TokenRow {
    pub(in crate::store) id: String,
    pub(in crate::store) hash: Vec<u8>,
    pub(in crate::store) role: String,
    pub(in crate::store) name: String,
    pub(in crate::store) agent_no: Option<i64>,
    pub(in crate::store) created_at: i64,
    pub(in crate::store) expires_at: Option<i64>,
    pub(in crate::store) revoked_at: Option<i64>,
    pub(in crate::store) enroll_nonce: Option<Vec<u8>>,
}

impl TokenRow {
    pub(in crate::store) fn new(token: &Token, hash: Vec<u8>) -> Self {
        Self {
            id: token.id.to_string(),
            hash,
            role: token.role.as_str().into(),
            name: token.name.clone(),
            agent_no: token.agent_no,
            created_at: token.created_at.0,
            expires_at: token.expires_at.map(|time| time.0),
            revoked_at: token.revoked_at.map(|time| time.0),
            enroll_nonce: None,
        }
    }

    pub(in crate::store) fn token(self) -> QueryResult<Token> {
        Ok(Token {
            id: Uuid::parse_str(&self.id).map_err(corrupt)?,
            role: Role::from_name(&self.role).ok_or_else(|| corrupt(format!("an unknown role, {}", self.role)))?,
            name: self.name,
            agent_no: self.agent_no,
            created_at: Timestamp(self.created_at),
            expires_at: self.expires_at.map(Timestamp),
            revoked_at: self.revoked_at.map(Timestamp),
            is_unused: self.enroll_nonce.is_some(),
        })
    }
}

/// An entry of the audit log.
#[derive(QueryableByName)]
pub(in crate::store) struct AuditRow {
    #[diesel(sql_type = BigInt)]
    no: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = Nullable<Text>)]
    token_id: Option<String>,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    did: String,
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = Text)]
    detail: String,
}

impl AuditRow {
    pub(in crate::store) fn entry(self) -> QueryResult<AuditEntry> {
        let Self { no, at, token_id, name, role, did, subject, detail } = self;
        let token = token_id.as_deref().map(Uuid::parse_str).transpose().map_err(corrupt)?;
        Ok(AuditEntry { no, at: Timestamp(at), token, name, role, did, subject, detail })
    }
}

/// A name and how many.
#[derive(QueryableByName)]
pub(in crate::store) struct Named {
    #[diesel(sql_type = Text)]
    pub(in crate::store) name: String,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) number: i64,
}

/// A node.
#[derive(QueryableByName)]
pub(in crate::store) struct NodeRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    incarnation: String,
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = BigInt)]
    heartbeat: i64,
    #[diesel(sql_type = BigInt)]
    agents: i64,
    #[diesel(sql_type = Text)]
    transports: String,
}

impl NodeRow {
    /// Its incarnation, and what it said last.
    pub(in crate::store) fn beat(&self) -> (String, i64) {
        (self.incarnation.clone(), self.heartbeat)
    }

    /// As users see it.
    pub(in crate::store) fn view(self, alive: bool) -> NodeView {
        let Self { name, incarnation, started_at, heartbeat, agents, transports } = self;
        // What can't be read was written by a later version.
        let transports = serde_json::from_str(&transports).unwrap_or_default();
        let (started_at, heartbeat) = (Timestamp(started_at), Timestamp(heartbeat));
        NodeView { name, incarnation, started_at, heartbeat, alive, agents, transports }
    }
}

/// All nodes, each with how many agents are connected to it.
pub(in crate::store) const NODES: &str = "SELECT n.name, n.incarnation, n.started_at, n.heartbeat, \
     CAST(n.transports AS TEXT) AS transports, (SELECT count(*) FROM agent_sessions s WHERE s.incarnation = n.incarnation) AS agents \
     FROM nodes n ORDER BY n.started_at, n.incarnation";
