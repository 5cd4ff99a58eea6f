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
            if matches!(answer, Ok(Inserted::Written)) && page.through > page.after {
                if !commands.is_empty() {
                    written.push((action.no, page.after));
                    self.node.metrics.commands_written(commands.len() as u64);
                }
                let committed = Committed { action, after: page.after, through: page.through, commands };
                // Awaited so that pages don't pile up in the scheduler's mailbox. After a crash the
                // scheduler reads the store.
                self.scheduler.send(committed).await.ok();
            }
        }
        self.node.signals.commands_written(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Unstarted;
    use crate::store::CommandPage;
    use crate::testing::{REFUSED, TestNode, batcher};
    use serde_json::json;

    /// The delay scheduler is gone: what it gets is tested beside it.
    fn pages(node: &TestNode) -> PageWriter {
        let scheduler = Unstarted::<DelayScheduler>::default().address();
        Writer::new(batcher(CommandSink { node: node.node.clone(), scheduler }))
    }

    fn page(action: &Arc<crate::domain::action::Action>, after: i64, agents: &[i64], last: bool) -> NewPage {
        let rows = agents.iter().map(|agent_no| (*agent_no, None)).collect();
        let through = agents.last().copied().unwrap_or(after);
        let page = CommandPage { action_no: action.no, after, through, commands: rows, last };
        let commands = agents.iter().map(|agent_no| (*agent_no, Arc::from("stream"), action.valid_from));
        NewPage { action: action.clone(), page, commands: commands.collect() }
    }

    #[actix_rt::test]
    async fn pages_of_an_action_are_written_in_order_and_other_nodes_are_told_where_they_begin() {
        let node = TestNode::new().await;
        let agents = node.agents(3).await;
        let action = node.submit(json!({})).await;
        let progress = node.node.signals.progress().watch(action.no);
        let changes = progress.subscribe();
        let new = vec![page(&action, 0, &agents[..2], false), page(&action, agents[1], &agents[2..], true)];
        let answers = pages(&node).put(new).await.unwrap();
        assert!(matches!(answers[..], [Ok(Inserted::Written), Ok(Inserted::Written)]));
        assert_eq!(node.states(&action).await.len(), 3);
        assert!(changes.has_changed().unwrap());
        let begin = |after| format!("Commands {{ action_no: {}, after: {after} }}", action.no);
        assert_eq!(node.heard().await, [format!("peers: [{}, {}]", begin(0), begin(agents[1]))]);
    }

    #[actix_rt::test]
    async fn a_page_that_does_not_join_on_and_an_empty_one_are_told_to_nobody() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        let action = node.submit(json!({})).await;
        let pages = pages(&node);
        let answers = pages.put(vec![page(&action, agents[0], &agents[1..], false)]).await.unwrap();
        assert!(matches!(answers[..], [Ok(Inserted::StalePage)]));
        assert!(node.states(&action).await.is_empty());
        let answers = pages.put(vec![page(&action, 0, &[], true)]).await.unwrap();
        assert!(matches!(answers[..], [Ok(Inserted::Written)]));
        assert!(node.open(&action).await.is_some_and(|open| open.resolved));
        assert!(node.heard().await.is_empty());
    }

    #[actix_rt::test]
    async fn a_page_that_the_store_refuses_stops_no_other() {
        let node = TestNode::new().await;
        let agents = node.agents(1).await;
        let (bad, good) = (node.submit(json!({})).await, node.submit(json!({})).await);
        node.break_inserts("commands", &format!("NEW.action_no = {}", bad.no), REFUSED);
        let new = vec![page(&bad, 0, &agents, true), page(&good, 0, &agents, true)];
        let answers = pages(&node).put(new).await.unwrap();
        assert!(matches!(answers[..], [Err(_), Ok(Inserted::Written)]));
        assert_eq!((node.states(&bad).await.len(), node.states(&good).await.len()), (0, 1));
        assert_eq!(node.heard().await, [format!("peers: [Commands {{ action_no: {}, after: 0 }}]", good.no)]);
    }
}
