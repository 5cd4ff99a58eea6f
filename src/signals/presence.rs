//! Which agents have a connection to this process.
//!
//! The stream sender writes it, and the delay scheduler reads it for each command. It is a shared
//! set, since asking an actor for each chunk would cost a round trip. It may be a moment behind.
//! The order of steps makes that harmless: an agent is present *before* its backlog is read, and
//! commands are committed *before* presence is read.

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

    /// All agents that are connected here, in the order of their keys.
    pub fn agents(&self) -> Vec<i64> {
        let mut agents: Vec<i64> = self.0.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        agents.sort_unstable();
        agents
    }

    /// The number of connected agents.
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no agent is connected.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_set() {
        let presence = Presence::default();
        let seen = presence.clone();
        assert!(seen.is_empty());
        presence.insert(1);
        presence.insert(2);
        presence.insert(2);
        assert_eq!((seen.len(), seen.contains(1), seen.contains(3)), (2, true, false));
        assert_eq!(seen.agents(), [1, 2]);
        presence.remove(1);
        presence.remove(3);
        assert_eq!((seen.len(), seen.contains(1), seen.contains(2)), (1, false, true));
        presence.clear();
        assert!(seen.is_empty());
    }
}
