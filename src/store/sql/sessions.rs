//! Sessions: their rows, and the decisions that follow from them on both databases.

use crate::store::sessions::{Opened, SessionHeld, SessionOpening, SessionState};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
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
}

/// The epoch of an agent's new connection.
#[derive(QueryableByName)]
pub(in crate::store) struct EpochRow {
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) no: i64,
    #[diesel(sql_type = BigInt)]
    pub(in crate::store) epoch: i64,
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
        match self.allowed(opening.agent_no, opening.token) {
            None => Some(Opened::NotAllowed),
            Some(agent) => opening.after.is_some_and(|after| agent.epoch > after).then_some(Opened::Replaced),
        }
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
