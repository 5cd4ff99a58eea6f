//! Writes commands, a page of an action at a time, several pages in one transaction.
//!
//! Receives [`NewPage`] from the resolver; tells the delay scheduler what is committed ([`Committed`]). The pages of one
//! action arrive in order and are written in order; a page that doesn't join on to what the store has (one before it was
//! lost in a fall, or the action was cancelled) is refused by the store, and the resolver reads how far the action is.
//!
//! Dies: see [`batcher`](super::batcher).

use super::batcher::{Batcher, Refused, Sink};
use super::delay_scheduler::DelayScheduler;
use super::hints::Hints;
use super::messages::{Committed, NewPage, Tell};
use super::notifier::Notifier;
use crate::domain::hint::Hint;
use crate::metrics::Metrics;
use crate::store::{Inserted, Store, StoreResult};
use actix::prelude::*;
use std::sync::Arc;

/// The actor.
pub type CommandStore = Batcher<CommandSink>;

/// Pages of commands, on their way into the store.
#[derive(Clone)]
pub struct CommandSink {
    /// Where they are written.
    pub store: Arc<dyn Store>,
    /// Who hears of what is committed.
    pub scheduler: Addr<DelayScheduler>,
    /// Who tells other nodes.
    pub hints: Addr<Hints>,
    /// For watchers.
    pub notifier: Notifier,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Sink for CommandSink {
    type Item = NewPage;
    type Answer = Inserted;

    const NAME: &'static str = "command_store";

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn weight(page: &NewPage) -> usize {
        page.commands.len()
    }

    async fn write(&self, pages: &[NewPage]) -> StoreResult<Vec<Inserted>> {
        self.store.command_insert(pages.iter().map(|page| page.page.clone()).collect()).await
    }

    async fn written(&self, pages: Vec<NewPage>, answers: &[Result<Inserted, Refused>]) {
        crate::fault_point!("command_store.written");
        self.notifier.notify();
        let mut told = Vec::new();
        for (NewPage { action, page, commands }, answer) in pages.into_iter().zip(answers) {
            if matches!(answer, Ok(Inserted::Written)) && !commands.is_empty() {
                told.push(Hint::Commands { action_no: action.no, after: page.after });
                self.metrics.commands_written(commands.len() as u64);
                let committed = Committed { action, after: page.after, through: page.through, commands };
                // Awaited so that pages don't pile up in the scheduler's mailbox; if it falls, it reads the store.
                self.scheduler.send(committed).await.ok();
            }
        }
        if !told.is_empty() {
            self.hints.try_send(Tell(told)).ok();
        }
    }
}
