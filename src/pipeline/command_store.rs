//! Writes commands: each page belongs to one action, and several pages go into one transaction.
//!
//! Receives [`NewPage`] from the resolver and sends [`Committed`] to the delay scheduler. The pages
//! of one action arrive in order and are written in order. The store refuses a page that doesn't
//! join on to what it has: an earlier page was lost in a crash, or the action was cancelled. The
//! resolver then reads how far the action is.
//!
//! Crash: see [`batcher`](crate::runtime::batcher).

use super::delay_scheduler::DelayScheduler;
use super::messages::{Committed, NewPage};
use crate::context::Node;
use crate::metrics::Metrics;
use crate::runtime::batcher::Verdict;
use crate::runtime::{Batcher, Sink, Writer};
use crate::store::{Inserted, StoreResult};
use actix::prelude::*;
use std::sync::Arc;

/// The actor.
pub type CommandStore = Batcher<CommandSink>;

/// The actor's handle for senders of pages.
pub type PageWriter = Writer<NewPage, Inserted>;

/// Writes pages of commands to the store.
#[derive(Clone)]
pub struct CommandSink {
    /// Store, metrics and signals.
    pub node: Arc<Node>,
    /// Receives the committed commands.
    pub scheduler: Addr<DelayScheduler>,
}

impl Sink for CommandSink {
    type Item = NewPage;
    type Answer = Inserted;

    const NAME: &'static str = "command_store";

    fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    fn weight(page: &NewPage) -> usize {
        page.commands.len()
    }

    async fn write(&self, pages: &[NewPage]) -> StoreResult<Vec<Inserted>> {
        self.node.store.command_insert(pages.iter().map(|page| page.page.clone()).collect()).await
    }

    async fn written(&self, pages: Vec<NewPage>, answers: &[Verdict<Inserted>]) {
        crate::fault_point!("command_store.written");
        let mut written = Vec::new();
        for (NewPage { action, page, commands }, answer) in pages.into_iter().zip(answers) {
            if matches!(answer, Ok(Inserted::Written)) && !commands.is_empty() {
                written.push((action.no, page.after));
                self.node.metrics.commands_written(commands.len() as u64);
                let committed = Committed { action, after: page.after, through: page.through, commands };
                // Awaited so that pages don't pile up in the scheduler's mailbox. After a crash the
                // scheduler reads the store.
                self.scheduler.send(committed).await.ok();
            }
        }
        self.node.signals.commands_written(written);
    }
}
