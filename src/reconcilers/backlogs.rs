//! Tells the sessions of agents that are connected here that the store has commands for them.
//!
//! A session reads its agent's backlog when it begins, and goes on while there is more. What comes to wait in the store
//! after that, it has to be told: commands of an action that is resumed, those that another node wrote down, those that
//! found no room in the delay scheduler. Rows that wait for their agents are found by agent alone, so that those of absent
//! ones cost nothing. This is also how a lost signal is made up for.
//!
//! Rows that wait for an agent that doesn't connect would be found by nobody: those that an earlier version left are put
//! right.

use super::support::{readable, record};
use crate::context::Node;
use crate::domain::command::Event;
use crate::runtime::{Pace, Reconcile, RoundFailed};
use crate::senders::stream::LOOK_AHEAD;
use crate::senders::{Recorder, report_of};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it polls.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// Agents that are looked up at once.
const PAGE: usize = 1_000;

/// Agents that don't connect that are looked at in a round.
const STRAYS: usize = 10_000;

/// See the module.
pub struct Backlogs {
    node: Arc<Node>,
    recorder: Recorder,
    /// The agent that doesn't connect that was looked at last, and when.
    stray: (String, i64),
    looked: Option<Instant>,
}

impl Backlogs {
    /// A reconciler for this node, which reports to `recorder`.
    pub fn new(node: Arc<Node>, recorder: Recorder) -> Self {
        Self { node, recorder, stray: (String::new(), 0), looked: None }
    }

    /// Has commands that wait for agents that don't connect sent by their senders.
    async fn put_strays_right(&mut self) -> Result<(), RoundFailed> {
        if self.looked.is_some_and(|last| last.elapsed() < POLL_INTERVAL / 2) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let page = self.node.store.command_stray(&self.stray, STRAYS).await?;
        let (mut reports, until) = (Vec::new(), self.node.store.now());
        for (action_no, agent_no, run) in page.commands {
            if let Some(action) = readable(&self.node, action_no).await? {
                reports.push(report_of(&action, agent_no, Event::Postponed { run, until }));
            }
        }
        if !reports.is_empty() {
            log::info!(commands = reports.len(); "commands that wait for agents that don't connect are sent");
            record(&self.recorder, reports).await?;
        }
        self.stray = page.through.unwrap_or_default();
        Ok(())
    }
}

impl Reconcile for Backlogs {
    const NAME: &'static str = "backlogs";

    fn period(&self) -> Duration {
        POLL_INTERVAL
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        self.put_strays_right().await?;
        let node = &self.node;
        let horizon = node.store.now().plus(node.config.delay.horizon.0.max(LOOK_AHEAD));
        for page in node.presence.agents().chunks(PAGE) {
            let agents = node.store.agent_with_due(page, horizon).await?;
            node.signals.backlogs_found(agents);
        }
        Ok(Pace::Rest(MIN_INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Event;
    use crate::testing::{TestNode, me};
    use serde_json::json;

    async fn found(node: &TestNode) -> Vec<String> {
        node.heard().await;
        Backlogs::new(node.node.clone(), node.recorder.clone()).run_once().await.expect("it works");
        node.heard().await
    }

    #[actix_rt::test]
    async fn sessions_of_connected_agents_are_told_of_what_waits() {
        let node = TestNode::new().await;
        let agents = node.agents(4).await;
        node.connect(&agents[..3]).await;
        let action = node.resolved(json!({}), &agents).await;
        for agent in [agents[0], agents[1], agents[3]] {
            let due_at = node.store.now();
            node.tell(&action, agent, Event::Hold { due_at }).await;
        }
        assert_eq!(
            found(&node).await,
            [format!("stream: backlog {:?}", &agents[..2])],
            "the last one is not connected"
        );
        node.store.action_pause(action.id, true, &me()).await.expect("paused");
        assert!(found(&node).await.is_empty(), "what is paused waits");
    }

    #[actix_rt::test]
    async fn what_waits_for_an_agent_that_does_not_connect_is_sent() {
        let node = TestNode::new().await;
        let (hooked, connecting) = (node.agents_of("webhook", 2).await, node.agents(1).await);
        let fleet = [hooked.clone(), connecting].concat();
        let action = node.resolved(json!({}), &fleet).await;
        for agent in &fleet {
            node.tell(&action, *agent, Event::Hold { due_at: node.store.now() }).await;
        }
        let (none, stray) =
            ((String::new(), 0), async |after: &(String, i64)| node.store.command_stray(after, 1).await.unwrap());
        let first = stray(&none).await;
        assert_eq!(first.commands, [(action.no, hooked[0], 1)]);
        let second = stray(&first.through.expect("there is another")).await;
        assert_eq!(second.commands, [(action.no, hooked[1], 1)]);
        assert_eq!(stray(&second.through.expect("there may be another")).await, crate::store::StrayPage::default());
        let mut backlogs = Backlogs::new(node.node.clone(), node.recorder.clone());
        backlogs.run_once().await.expect("it works");
        assert!(stray(&none).await.commands.is_empty());
        assert_eq!(node.store.agent_with_due(&fleet, node.store.now()).await.unwrap(), fleet, "they are due");
    }

    #[actix_rt::test]
    async fn what_is_due_within_the_horizon_is_told_of_and_nothing_later() {
        let node = TestNode::new().await;
        let agents = node.agents(2).await;
        node.connect(&agents).await;
        let action = node.resolved(json!({}), &agents).await;
        let horizon = node.node.config.delay.horizon.0.max(LOOK_AHEAD);
        for (agent, wait) in [(agents[0], horizon / 2), (agents[1], horizon * 2)] {
            node.tell(&action, agent, Event::Hold { due_at: node.store.now().plus(wait) }).await;
        }
        assert_eq!(found(&node).await, [format!("stream: backlog {:?}", &agents[..1])]);
        node.pass(horizon * 2);
        assert_eq!(found(&node).await, [format!("stream: backlog {agents:?}")]);
    }
}
