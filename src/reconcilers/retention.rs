//! Deletes what is older than its retention, in batches small enough not to hold up other work.

use crate::context::Node;
use crate::domain::hook::MAX_AGE;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::store::StoreResult;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of rows deleted in one transaction.
const ROWS_AT_A_TIME: usize = 2_000;
/// How often to look for rows without their action, which earlier versions could leave behind.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum number of actions checked in one transaction of that sweep.
const SWEPT_AT_A_TIME: usize = 200;
/// The pause between two transactions.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub struct Retention {
    node: Arc<Node>,
    swept: Option<Instant>,
}

impl Retention {
    /// A reconciler for this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, swept: None }
    }

    /// Deletes audit log entries older than `retention.audit`.
    async fn purge_audit(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.audit.0);
        while store.audit_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Gives up events of hooks that no node has any more, and deletes events that ended longer ago
    /// than `retention.actions`.
    async fn purge_hook_events(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.actions.0);
        while store.hook_event_abandon(store.now().minus(MAX_AGE), ROWS_AT_A_TIME).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        while store.hook_event_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Deletes what is kept of occurrences longer than `retention.occurrences`.
    async fn purge_occurrences(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.occurrences.0);
        while store.occurrence_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Finds rows without their action. They are then deleted with the purged actions.
    async fn sweep(&mut self) -> StoreResult<()> {
        if self.swept.is_some_and(|last| last.elapsed() < SWEEP_INTERVAL) {
            return Ok(());
        }
        let mut after = 0;
        while let Some(last) = self.node.store.action_sweep(after, SWEPT_AT_A_TIME).await? {
            after = last;
            tokio::time::sleep(PAUSE).await;
        }
        self.swept = Some(Instant::now());
        Ok(())
    }

    /// Deletes actions that ended longer ago than `retention.actions`.
    async fn purge_actions(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.actions.0);
        let mut rows = 0;
        while let Some(deleted) = store.action_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? {
            rows += deleted;
            tokio::time::sleep(PAUSE).await;
        }
        if rows > 0 {
            log::info!(rows; "actions that are kept no longer are deleted");
        }
        Ok(())
    }

    /// Deletes tokens that ended, and agents that were removed, longer ago than `retention.actions`.
    async fn purge_identities(&self) -> StoreResult<()> {
        let (store, keep) = (&self.node.store, self.node.config.retention.actions.0);
        while store.identity_purge(store.now().minus(keep), ROWS_AT_A_TIME).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Reconcile for Retention {
    const NAME: &'static str = "retention";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        self.purge_audit().await?;
        self.purge_hook_events().await?;
        self.purge_occurrences().await?;
        self.sweep().await?;
        self.purge_actions().await?;
        self.purge_identities().await?;
        Ok(Pace::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::domain::action::Action;
    use crate::domain::hook::{HookEvent, Listener};
    use crate::domain::time::Span;
    use crate::testing::{TestNode, me};
    use serde_json::json;

    /// Keeps actions for an hour, and the audit log for two.
    async fn node() -> TestNode {
        let mut config = Config::default();
        (config.retention.actions, config.retention.audit) = (Span::secs(3_600), Span::secs(7_200));
        TestNode::with(config).await
    }

    async fn ended(node: &TestNode, agents: &[i64]) -> Arc<Action> {
        let action = node.resolved(json!({}), agents).await;
        for agent_no in agents {
            node.succeed(&action, *agent_no).await;
        }
        assert_eq!(node.store.action_complete(vec![action.no]).await.unwrap(), [action.no]);
        action
    }

    async fn run(retention: &mut Retention) {
        assert_eq!(retention.run_once().await.unwrap(), Pace::Wait);
    }

    #[actix_rt::test]
    async fn events_for_hooks_are_deleted_like_actions_and_given_up_when_their_hook_is_gone() {
        let node = node().await;
        let told = |name: &str| vec![Listener { name: name.into(), on: vec![HookEvent::ActionEnded] }];
        for hook in ["gone", "here"] {
            node.store.hook_register(told(hook));
            ended(&node, &[]).await;
        }
        let mut retention = Retention::new(node.node.clone());
        node.pass(MAX_AGE);
        node.pass(Duration::from_secs(1));
        run(&mut retention).await;
        let states = node.store.hook_list().await.unwrap().into_iter();
        let states: Vec<_> = states.map(|hook| (hook.name, hook.pending, hook.given_up)).collect();
        assert_eq!(states, [("here".to_owned(), 1, 0), ("gone".to_owned(), 0, 1)]);
        node.pass(Duration::from_secs(3_601));
        run(&mut retention).await;
        let names: Vec<String> = node.store.hook_list().await.unwrap().into_iter().map(|hook| hook.name).collect();
        assert_eq!(names, ["here"], "what still waits stays");
    }

    #[actix_rt::test]
    async fn an_action_is_deleted_when_it_ended_longer_ago_than_it_is_kept() {
        let node = node().await;
        let agents = node.agents(2).await;
        let (old, open) = (ended(&node, &agents).await, node.resolved(json!({}), &agents).await);
        node.pass(Duration::from_secs(1_800));
        let recent = ended(&node, &agents).await;
        let mut retention = Retention::new(node.node.clone());
        run(&mut retention).await;
        assert!(node.store.action_view(old.id).await.unwrap().is_some());
        node.pass(Duration::from_secs(1_801));
        run(&mut retention).await;
        assert!(node.store.action_view(old.id).await.unwrap().is_none());
        assert!(node.store.action_view(recent.id).await.unwrap().is_some());
        assert!(node.store.action_view(open.id).await.unwrap().is_some());
        assert!(node.store.command_unfinished(old.no, crate::store::Unfinished::All, 0, 9).await.unwrap().is_empty());
    }

    #[actix_rt::test]
    async fn agents_that_were_removed_and_tokens_that_ended_are_deleted_after_their_time() {
        let node = node().await;
        node.agents(2).await;
        let mut retention = Retention::new(node.node.clone());
        let removed = async |name: &str| {
            let no = node.store.agent_remove(name, &me()).await.unwrap().expect("there is one");
            node.store.agent_left(no, node.store.now().plus(Duration::from_secs(1))).await.unwrap();
        };
        removed("agent-00000").await;
        run(&mut retention).await;
        let left = async || node.store.identity_purge(node.store.now().plus(Duration::from_secs(1)), 10).await.unwrap();
        assert_eq!(left().await, 1, "it was kept");
        removed("agent-00001").await;
        node.pass(Duration::from_secs(3_601));
        run(&mut retention).await;
        assert_eq!(left().await, 0);
    }

    #[actix_rt::test]
    async fn entries_of_the_audit_log_are_deleted_after_their_time() {
        let node = node().await;
        node.submit(json!({})).await;
        let mut retention = Retention::new(node.node.clone());
        node.pass(Duration::from_secs(7_000));
        run(&mut retention).await;
        assert_eq!(node.store.audit_list(None, 9).await.unwrap().len(), 1);
        node.pass(Duration::from_secs(201));
        run(&mut retention).await;
        assert!(node.store.audit_list(None, 9).await.unwrap().is_empty());
    }

    #[actix_rt::test]
    async fn rows_whose_action_is_gone_are_found_once_a_day() {
        let node = node().await;
        let agents = node.agents(1).await;
        let orphan = format!("INSERT INTO commands (action_no, agent_no) VALUES (999, {})", agents[0]);
        let left =
            async || node.store.command_unfinished(999, crate::store::Unfinished::All, 0, 9).await.unwrap().len();
        node.sql(&orphan);
        let mut retention = Retention::new(node.node.clone());
        run(&mut retention).await;
        assert_eq!(left().await, 0);
        node.sql(&orphan);
        run(&mut retention).await;
        assert_eq!(left().await, 1, "it has looked just now");
        retention.swept = Instant::now().checked_sub(SWEEP_INTERVAL);
        if retention.swept.is_some() {
            run(&mut retention).await;
            assert_eq!(left().await, 0);
        }
    }
}
