//! Searches the fleet for the agents of one action, stride by stride.

use super::shared::Resolving;
use crate::domain::action::Action;
use crate::domain::stride::Stride;
use crate::domain::target::Target;
use crate::store::{Among, Matching, Part, StoreError, StoreResult};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A page that isn't full is written after this time, so that the agents found so far get their commands and the place
/// is kept.
const PAGE_TIME: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Search {
    work: Resolving,
    action: Arc<Action>,
    target: Target,
    /// The key up to which the fleet is searched.
    after: i64,
    stride: Stride,
}

/// Agents for one page of commands.
pub(super) struct Agents {
    pub(super) agents: Matching,
    /// The key up to which the fleet is searched.
    pub(super) through: i64,
    /// Whether it is the whole fleet.
    pub(super) last: bool,
}

impl Search {
    pub(super) fn new(work: Resolving, action: Arc<Action>, target: Target) -> Self {
        Self { work, action, target, after: 0, stride: Stride::default() }
    }

    /// Begins after this key.
    pub(super) fn begin_after(&mut self, after: i64) {
        self.after = after;
    }

    /// Whether what is found is of no use any more.
    fn is_over(&self) -> bool {
        self.action.is_cancelled() || self.work.stopping.load(Ordering::Relaxed)
    }

    /// Runs one search, when it is its turn among all actions.
    async fn search<T>(&mut self, search: impl AsyncFnOnce(&Self, usize) -> StoreResult<T>) -> StoreResult<T> {
        let turns = self.work.searches.clone();
        let closed = |_| StoreError::Unavailable("the resolver stops".into());
        let _turn = turns.acquire_owned().await.map_err(closed)?;
        let began = Instant::now();
        let found = search(self, self.stride.agents()).await?;
        self.stride.took(began.elapsed());
        Ok(found)
    }

    /// The next agents: `limit` of them, or fewer if the fleet ends, or a moment has passed.
    pub(super) async fn next(&mut self, limit: usize) -> StoreResult<Agents> {
        let (mut agents, began) = (Matching::new(), Instant::now());
        loop {
            let after = self.after;
            let found = self
                .search(async |search, searched| {
                    let part = Part { after, limit: limit - agents.len(), searched };
                    search.work.node.store.agent_search(&search.target, part).await
                })
                .await?;
            agents.extend(found.agents);
            let Some(through) = found.through else {
                self.after = agents.last().map_or(after, |(agent_no, _)| after.max(*agent_no));
                return Ok(Agents { agents, through: self.after, last: true });
            };
            self.after = through;
            if agents.len() >= limit || began.elapsed() >= PAGE_TIME || self.is_over() {
                return Ok(Agents { agents, through, last: false });
            }
        }
    }

    /// The number of agents that match now. `None` if that is of no use any more.
    pub(super) async fn count(&mut self) -> StoreResult<Option<i64>> {
        let among = Among { target: Some(self.target.clone()), disabled: None };
        let (mut count, mut after) = (0, 0);
        while !self.is_over() {
            let part =
                self.search(async |search, searched| search.work.node.store.agent_count(&among, after, searched).await);
            let part = part.await?;
            count += part.agents;
            match part.through {
                Some(through) => after = through,
                None => return Ok(Some(count)),
            }
        }
        Ok(None)
    }
}
