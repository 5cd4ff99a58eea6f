//! Which agents have a connection to this process right now.
//!
//! Kept by the stream sender, read by the delay scheduler for each command: a shared set, since asking an actor for each
//! chunk would put a round trip where a look is enough. It may be a moment behind; order makes that harmless: an agent is
//! present *before* its backlog is read, and commands are committed *before* presence is looked at.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

/// See the module. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Presence(Arc<RwLock<HashSet<i64>>>);

impl Presence {
    /// Whether this agent is connected here.
    pub fn contains(&self, agent_no: i64) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&agent_no)
    }

    /// How many are.
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn insert(&self, agent_no: i64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(agent_no);
    }

    pub(crate) fn remove(&self, agent_no: i64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&agent_no);
    }

    pub(crate) fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
