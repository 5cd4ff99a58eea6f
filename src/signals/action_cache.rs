//! The actions that this process works on. Each is in memory once, however many of its commands are
//! in flight.
//!
//! An action stays in memory while any part holds it. Of the others, the most recent that fit into
//! [`KEPT`] bytes stay.

use crate::domain::action::Action;
use crate::store::{Store, StoreResult};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use uuid::Uuid;

/// Maximum bytes of actions that no part holds.
const KEPT: u64 = 64 * 1024 * 1024;

#[derive(Clone)]
struct BySize;

impl Weighter<i64, Arc<Action>> for BySize {
    fn weight(&self, _: &i64, action: &Arc<Action>) -> u64 {
        (action.operations.get().len() + action.name.len() + action.target.len() + 512) as u64
    }
}

/// See the module. Clones share their content.
#[derive(Clone)]
pub struct ActionCache {
    store: Arc<dyn Store>,
    kept: Arc<Cache<i64, Arc<Action>, BySize>>,
    held: Arc<Mutex<HashMap<i64, Weak<Action>>>>,
}

impl ActionCache {
    /// An empty cache over this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, kept: Arc::new(Cache::with_weighter(10_000, KEPT, BySize)), held: Arc::default() }
    }

    /// The action with this key, from memory or from the store.
    pub async fn get(&self, no: i64) -> StoreResult<Option<Arc<Action>>> {
        if let Some(action) = self.in_memory(no) {
            return Ok(Some(action));
        }
        Ok(self.store.action_get(no).await?.map(|action| self.keep(action)))
    }

    /// Keeps an action that was just stored or read. Returns the one copy of it.
    pub fn keep(&self, action: Action) -> Arc<Action> {
        let no = action.no;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Another caller may have been faster, and there must be only one copy.
        if let Some(action) = held.get(&no).and_then(Weak::upgrade) {
            return action;
        }
        let action = Arc::new(action);
        if held.len() >= 2 * 10_000 && held.len() >= 2 * self.kept.len() {
            held.retain(|_, action| action.strong_count() > 0);
        }
        held.insert(no, Arc::downgrade(&action));
        self.kept.insert(no, action.clone());
        action
    }

    /// The actions with these public ids. Those that don't exist are left out, and cost one read
    /// together.
    pub async fn get_by_ids(&self, ids: impl IntoIterator<Item = Uuid>) -> StoreResult<HashMap<Uuid, Arc<Action>>> {
        let ids: HashSet<Uuid> = ids.into_iter().collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut actions = HashMap::new();
        for (id, no) in self.store.action_nos(&ids.into_iter().collect::<Vec<_>>()).await? {
            if let Some(action) = self.get(no).await? {
                actions.insert(id, action);
            }
        }
        Ok(actions)
    }

    /// The action for the log: its public id if it is in memory, or else its number in the store.
    pub fn shown(&self, no: i64) -> String {
        self.in_memory(no).map_or_else(|| format!("no. {no}"), |action| action.id.to_string())
    }

    /// Marks an action as cancelled in all its users.
    pub(super) fn cancel(&self, no: i64) {
        if let Some(action) = self.in_memory(no) {
            action.set_cancelled();
        }
    }

    /// The public id of an action that is in memory and not marked as cancelled.
    pub fn not_cancelled(&self, no: i64) -> Option<Uuid> {
        self.in_memory(no).filter(|action| !action.is_cancelled()).map(|action| action.id)
    }

    /// Whether an action in memory is marked as paused. `None` if it isn't in memory.
    pub fn is_paused(&self, no: i64) -> Option<bool> {
        self.in_memory(no).map(|action| action.is_paused())
    }

    /// Marks an action as paused or as resumed in all its users.
    pub(super) fn pause(&self, no: i64, paused: bool) {
        if let Some(action) = self.in_memory(no) {
            action.set_paused(paused);
        }
    }

    fn in_memory(&self, no: i64) -> Option<Arc<Action>> {
        self.kept.get(&no).or_else(|| {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.get(&no).and_then(Weak::upgrade)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestNode, new_action};
    use serde_json::json;

    #[actix_rt::test]
    async fn an_action_is_in_memory_once() {
        let node = TestNode::new().await;
        let no = node.submit(json!({})).await.no;
        let cache = ActionCache::new(node.store.clone());
        let (one, two) = futures_util::join!(cache.get(no), cache.get(no));
        let (one, two) = (one.unwrap().expect("it is stored"), two.unwrap().expect("it is stored"));
        assert!(Arc::ptr_eq(&one, &two), "also if two ask at the same time");
        let by_id = cache.get_by_ids([one.id, one.id, Uuid::from_u128(7)]).await.unwrap();
        assert!(by_id.len() == 1 && Arc::ptr_eq(&one, &by_id[&one.id]));
    }

    #[actix_rt::test]
    async fn what_is_held_stays_the_same_after_it_was_evicted() {
        let node = TestNode::new().await;
        let action = node.submit(json!({})).await;
        let cache = &node.node.actions;
        cache.kept.clear();
        assert!(Arc::ptr_eq(&action, &cache.get(action.no).await.unwrap().expect("it is held")));
        cache.cancel(action.no);
        assert!(action.is_cancelled());
    }

    #[actix_rt::test]
    async fn marks_reach_those_in_memory_and_nothing_is_known_of_others() {
        let node = TestNode::new().await;
        let cache = &node.node.actions;
        node.store.action_insert(vec![new_action(json!({}), node.store.now())]).await.unwrap();
        cache.cancel(1);
        cache.pause(1, true);
        assert_eq!((cache.not_cancelled(1), cache.is_paused(1)), (None, None));
        let action = cache.get(1).await.unwrap().expect("it is stored");
        assert_eq!((cache.not_cancelled(1), cache.is_paused(1)), (Some(action.id), Some(false)));
        cache.pause(1, true);
        assert!(action.is_paused());
        cache.pause(1, false);
        cache.cancel(1);
        assert_eq!((cache.not_cancelled(1), cache.is_paused(1)), (None, Some(false)));
    }

    #[actix_rt::test]
    async fn an_unknown_action_is_none() {
        let node = TestNode::new().await;
        assert!(node.node.actions.get(7).await.unwrap().is_none());
        assert!(node.node.actions.get_by_ids([Uuid::from_u128(7)]).await.unwrap().is_empty());
    }
}
