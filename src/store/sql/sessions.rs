//! Sessions: their rows, and the decisions that follow from them on both databases.

use crate::store::sessions::{Opened, SessionHeld, SessionOpening, SessionState};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// An agent, as the decisions about its connections need it.
#[derive(QueryableByName)]
pub(in crate::store) struct SessionRow {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) no: i64,
    /// The epoch of its newest connection.
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) epoch: i64,
    /// Whether it is neither disabled nor removed.
    #[diesel(sql_type = Bool)]
    pub(in crate::store) allowed: bool,
    /// Whether its newest connection is stored as this node's.
    #[diesel(sql_type = Bool)]
    pub(in crate::store) stored: bool,
    /// The process that is connected, if it says which.
    #[diesel(sql_type = Nullable<Text>)]
    instance: Option<String>,
    /// Those that it and its predecessors have replaced, the latest last, separated by spaces.
    #[diesel(sql_type = Nullable<Text>)]
    replaced: Option<String>,
}

/// Processes that one agent's connections have replaced, at most.
const MAX_REPLACED: usize = 8;

impl SessionRow {
    fn replaced(&self) -> impl Iterator<Item = &str> {
        self.replaced.as_deref().unwrap_or_default().split_whitespace()
    }

    /// Whether this process was replaced by the one that is connected.
    fn has_replaced(&self, instance: &str) -> bool {
        self.instance.as_deref().is_some_and(|connected| connected != instance)
            && self.replaced().any(|replaced| replaced == instance)
    }

    /// Those that are replaced once this process is connected.
    fn replaced_by(&self, instance: Option<&str>) -> String {
        let before = self.instance.as_deref().filter(|before| Some(*before) != instance);
        let others = self.replaced().filter(|other| Some(*other) != instance && Some(*other) != before);
        let all: Vec<&str> = others.chain(before).collect();
        all[all.len().saturating_sub(MAX_REPLACED)..].join(" ")
    }
}

/// The epoch of an agent's new connection.
#[derive(QueryableByName)]
pub(in crate::store) struct EpochRow {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) no: i64,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) epoch: i64,
}

/// A connection that is opened.
#[derive(serde::Serialize)]
pub(in crate::store) struct OpenedRow {
    pub(in crate::store) agent_no: i64,
    pub(in crate::store) epoch: i64,
    pub(in crate::store) instance: Option<String>,
    pub(in crate::store) replaced: String,
}

/// A token that is valid now.
#[derive(QueryableByName)]
pub(in crate::store) struct ValidToken {
    #[diesel(sql_type = Text)]
    pub(in crate::store) id: String,
}

/// What is stored of the agents and tokens of a batch.
pub(in crate::store) struct Known {
    agents: HashMap<i64, SessionRow>,
    tokens: HashSet<String>,
}

impl Known {
    pub(in crate::store) fn new(agents: Vec<SessionRow>, tokens: Vec<ValidToken>) -> Self {
        let agents = agents.into_iter().map(|row| (row.no, row)).collect();
        Self { agents, tokens: tokens.into_iter().map(|token| token.id).collect() }
    }

    fn allowed(&self, agent_no: i64, token: Option<Uuid>) -> Option<&SessionRow> {
        let agent = self.agents.get(&agent_no).filter(|agent| agent.allowed)?;
        token.is_none_or(|token| self.tokens.contains(&token.to_string())).then_some(agent)
    }

    /// Why a connection can't be opened. `None` if it can.
    pub(in crate::store) fn refuses(&self, opening: &SessionOpening) -> Option<Opened> {
        let Some(agent) = self.allowed(opening.agent_no, opening.token) else { return Some(Opened::NotAllowed) };
        let is_replaced = opening.after.is_some_and(|after| agent.epoch > after);
        let is_duplicate = || opening.instance.is_some_and(|instance| agent.has_replaced(&instance.to_string()));
        match () {
            () if is_replaced => Some(Opened::Replaced),
            () if is_duplicate() => Some(Opened::Duplicate),
            () => None,
        }
    }

    /// The agents whose connections are refused as duplicates.
    pub(in crate::store) fn duplicates(&self, openings: &[SessionOpening]) -> Vec<i64> {
        let refused = openings.iter().filter(|opening| self.refuses(opening) == Some(Opened::Duplicate));
        refused.map(|opening| opening.agent_no).collect()
    }

    /// What is stored of the processes behind connections that are opened.
    pub(in crate::store) fn instances(&self, openings: &[SessionOpening], epochs: &[EpochRow]) -> Vec<OpenedRow> {
        let instances: HashMap<i64, Option<Uuid>> =
            openings.iter().map(|opening| (opening.agent_no, opening.instance)).collect();
        let row = |epoch: &EpochRow| {
            let instance = instances.get(&epoch.no).copied().flatten().map(|instance| instance.to_string());
            let replaced = self.agents.get(&epoch.no).map(|agent| agent.replaced_by(instance.as_deref()));
            OpenedRow { agent_no: epoch.no, epoch: epoch.epoch, instance, replaced: replaced.unwrap_or_default() }
        };
        epochs.iter().map(row).collect()
    }

    /// The state of a connection that this node holds. `None` if its row is missing.
    pub(in crate::store) fn judge(&self, held: &SessionHeld) -> Option<SessionState> {
        match self.allowed(held.agent_no, held.token) {
            None => Some(SessionState::NotAllowed),
            Some(agent) if agent.epoch > held.epoch => Some(SessionState::Replaced),
            Some(agent) => agent.stored.then_some(SessionState::Current),
        }
    }
}

/// The answers to openings, given the epochs of those that were opened.
pub(in crate::store) fn opened(sessions: &[SessionOpening], known: &Known, epochs: Vec<EpochRow>) -> Vec<Opened> {
    let epochs: HashMap<i64, i64> = epochs.into_iter().map(|row| (row.no, row.epoch)).collect();
    let answer = |opening: &SessionOpening| match known.refuses(opening) {
        Some(refused) => refused,
        None => epochs.get(&opening.agent_no).map_or(Opened::NotAllowed, |epoch| Opened::As(*epoch)),
    };
    sessions.iter().map(answer).collect()
}

/// The answers to a comparison, given the agents whose connections were inserted again.
pub(in crate::store) fn checked(sessions: &[SessionHeld], known: &Known, restored: &HashSet<i64>) -> Vec<SessionState> {
    let answer = |held: &SessionHeld| match known.judge(held) {
        Some(state) => state,
        None if restored.contains(&held.agent_no) => SessionState::Restored,
        // Another one came in between.
        None => SessionState::Replaced,
    };
    sessions.iter().map(answer).collect()
}

/// The ids of the tokens, as the tables have them.
pub(in crate::store) fn token_ids(tokens: impl Iterator<Item = Option<Uuid>>) -> Vec<String> {
    tokens.flatten().map(|token| token.to_string()).collect()
}
