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

/// How long an action is resolved while others wait for their turn.
const TURN: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Search {
    work: Resolving,
    action: Arc<Action>,
    target: Target,
    /// The key up to which the fleet is searched.
    after: i64,
    stride: Stride,
    /// The last search found as many as it could: there is no need to look at more.
    is_dense: bool,
    began: Instant,
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
        let (began, stride) = (Instant::now(), work.kept().entry(action.no).or_default().stride);
        Self { work, action, target, after: 0, stride, is_dense: true, began }
    }

    /// Begins after this key.
    pub(super) fn begin_after(&mut self, after: i64) {
        self.after = after;
    }

    /// Whether what is found is of no use any more.
    pub(super) fn is_over(&self) -> bool {
        let is_expired = self.work.node.store.now() >= self.action.expires_at;
        is_expired || self.action.is_cancelled() || self.work.stopping.load(Ordering::Relaxed)
    }

    /// Whether it is the turn of other actions, which wait.
    pub(super) fn has_had_its_turn(&self) -> bool {
        self.began.elapsed() >= TURN && self.work.is_crowded.load(Ordering::Relaxed)
    }

    /// Runs one search, when it is its turn among all actions.
    async fn search<T>(
        &mut self,
        searched: usize,
        search: impl AsyncFnOnce(&Self, usize) -> StoreResult<T>,
    ) -> StoreResult<T> {
        let turns = self.work.searches.clone();
        let closed = |_| StoreError::Unavailable("the resolver stops".into());
        let _turn = turns.acquire_owned().await.map_err(closed)?;
        let began = Instant::now();
        let found = search(self, searched).await;
        // Of a page that is full at once, nothing is learnt; of one that took too long, much.
        if searched == self.stride.agents() {
            self.stride.took(began.elapsed());
            self.work.kept().entry(self.action.no).or_default().stride = self.stride;
        }
        found
    }

    /// The next agents: a `page` of them, or fewer if the fleet ends, or a moment has passed.
    pub(super) async fn next(&mut self, page: usize) -> StoreResult<Agents> {
        let (mut agents, began) = (Matching::new(), Instant::now());
        loop {
            let (after, limit) = (self.after, page - agents.len());
            let searched = if self.is_dense { limit.min(self.stride.agents()) } else { self.stride.agents() };
            let found = self
                .search(searched, async |search, searched| {
                    let part = Part { after, limit, searched };
                    search.work.node.store.agent_search(&search.target, part).await
                })
                .await?;
            self.is_dense = found.agents.len() >= limit.min(searched);
            agents.extend(found.agents);
            let Some(through) = found.through else {
                self.after = agents.last().map_or(after, |(agent_no, _)| after.max(*agent_no));
                return Ok(Agents { agents, through: self.after, last: true });
            };
            self.after = through;
            if agents.len() >= page || began.elapsed() >= PAGE_TIME || self.is_over() || self.has_had_its_turn() {
                return Ok(Agents { agents, through, last: false });
            }
        }
    }

    /// The number of agents that match now. `None` if that is of no use any more, or others have their turn: what was
    /// counted is kept for the next time.
    pub(super) async fn count(&mut self) -> StoreResult<Option<i64>> {
        let among = Among { target: Some(self.target.clone()), disabled: None };
        let no = self.action.no;
        while !self.is_over() && !self.has_had_its_turn() {
            let (after, count) = self.work.kept().entry(no).or_default().counted;
            let searched = self.stride.agents();
            let part = self.search(searched, async |search, searched| {
                search.work.node.store.agent_count(&among, after, searched).await
            });
            let part = part.await?;
            let count = count + part.agents;
            match part.through {
                Some(through) => self.work.kept().entry(no).or_default().counted = (through, count),
                None => return Ok(Some(count)),
            }
        }
        Ok(None)
    }
}
