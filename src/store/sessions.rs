//! Which node holds an agent's connection: what goes in and out, and what both halves of the store decide alike.
//!
//! Connections of an agent are numbered by the store (their *epochs*): each one that is opened gets a higher number than all
//! before it, also if nothing is left of these. So the newest is always known, whatever clocks say. An agent that is
//! disabled or removed, or whose token is no longer valid, opens none.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// A connection that is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct SessionOpening {
    /// The agent.
    pub agent_no: i64,
    /// What the agent has shown. Without one, none is looked at.
    pub token: Option<Uuid>,
    /// Only if no newer one than this was opened: it is the same connection once more.
    pub after: Option<i64>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is the agent's newest connection, of this epoch.
    As(i64),
    /// The agent is disabled or removed, or its token is not valid.
    NotAllowed,
    /// The agent has a newer one.
    Replaced,
}

/// A connection that this node holds.
#[derive(Clone, Copy, Debug)]
pub struct SessionHeld {
    /// The agent.
    pub agent_no: i64,
    /// What the agent has shown.
    pub token: Option<Uuid>,
    /// Which of its connections.
    pub epoch: i64,
}

/// What the store says of a connection that this node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It is the agent's newest one, and written.
    Current,
    /// It is the newest one, and was not written; it is now.
    Restored,
    /// The agent is disabled or removed, or its token is not valid.
    NotAllowed,
    /// The agent has a newer one.
    Replaced,
}

/// An agent, as its connections need it.
#[derive(QueryableByName)]
pub(super) struct SessionRow {
    #[diesel(sql_type = BigInt)]
    pub(super) no: i64,
    /// Of its newest connection.
    #[diesel(sql_type = BigInt)]
    pub(super) epoch: i64,
    /// Neither disabled nor removed.
    #[diesel(sql_type = Bool)]
    pub(super) allowed: bool,
    /// The newest one is written as this node's.
    #[diesel(sql_type = Bool)]
    pub(super) stored: bool,
}

/// A connection's number.
#[derive(QueryableByName)]
pub(super) struct EpochRow {
    #[diesel(sql_type = BigInt)]
    pub(super) no: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) epoch: i64,
}

/// A token that is valid now.
#[derive(QueryableByName)]
pub(super) struct ValidToken {
    #[diesel(sql_type = Text)]
    pub(super) id: String,
}

/// What is known of the agents of a batch.
pub(super) struct Known {
    agents: HashMap<i64, SessionRow>,
    tokens: HashSet<String>,
}

impl Known {
    pub(super) fn new(agents: Vec<SessionRow>, tokens: Vec<ValidToken>) -> Self {
        let agents = agents.into_iter().map(|row| (row.no, row)).collect();
        Self { agents, tokens: tokens.into_iter().map(|token| token.id).collect() }
    }

    fn allowed(&self, agent_no: i64, token: Option<Uuid>) -> Option<&SessionRow> {
        let agent = self.agents.get(&agent_no).filter(|agent| agent.allowed)?;
        token.is_none_or(|token| self.tokens.contains(&token.to_string())).then_some(agent)
    }

    /// Why this one can't be opened; `None`: it can.
    pub(super) fn refuses(&self, opening: &SessionOpening) -> Option<Opened> {
        match self.allowed(opening.agent_no, opening.token) {
            None => Some(Opened::NotAllowed),
            Some(agent) => opening.after.is_some_and(|after| agent.epoch > after).then_some(Opened::Replaced),
        }
    }

    /// What is to be said of one that is held; `None`: it is to be written again.
    pub(super) fn judge(&self, held: &SessionHeld) -> Option<SessionState> {
        match self.allowed(held.agent_no, held.token) {
            None => Some(SessionState::NotAllowed),
            Some(agent) if agent.epoch > held.epoch => Some(SessionState::Replaced),
            Some(agent) => agent.stored.then_some(SessionState::Current),
        }
    }
}

/// The answers to openings, given the epochs of those that were opened.
pub(super) fn opened(sessions: &[SessionOpening], known: &Known, epochs: Vec<EpochRow>) -> Vec<Opened> {
    let epochs: HashMap<i64, i64> = epochs.into_iter().map(|row| (row.no, row.epoch)).collect();
    let answer = |opening: &SessionOpening| match known.refuses(opening) {
        Some(refused) => refused,
        None => epochs.get(&opening.agent_no).map_or(Opened::NotAllowed, |epoch| Opened::As(*epoch)),
    };
    sessions.iter().map(answer).collect()
}

/// The answers to a comparison, given the agents whose connections were written again.
pub(super) fn checked(sessions: &[SessionHeld], known: &Known, restored: &HashSet<i64>) -> Vec<SessionState> {
    let answer = |held: &SessionHeld| match known.judge(held) {
        Some(state) => state,
        None if restored.contains(&held.agent_no) => SessionState::Restored,
        // Another one came in between.
        None => SessionState::Replaced,
    };
    sessions.iter().map(answer).collect()
}

/// The ids of the tokens, as the tables have them.
pub(super) fn token_ids(tokens: impl Iterator<Item = Option<Uuid>>) -> Vec<String> {
    tokens.flatten().map(|token| token.to_string()).collect()
}
