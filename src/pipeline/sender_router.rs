//! Passes due commands to the senders of their agents' transports.
//!
//! Receives [`Dispatch`] from the delay scheduler and sends [`Deliver`] or [`DeliverToSessions`] to
//! the sender. It answers after the sender has, so that the scheduler's credits for a transport
//! bound what that sender has to take over, and a slow sender holds up no other. What the sender
//! doesn't take, and commands that are not due yet, go back to the scheduler. Commands of a
//! transport without a sender here are postponed, and a node that has one takes them from the store.
//!
//! Agents that don't connect are looked up here, so that senders get names and addresses. Commands
//! of disabled agents are postponed.
//!
//! Crash: the scheduler gets the chunks in flight back and tries them again.

use super::messages::Dispatch;
use crate::context::Node;
use crate::domain::agent::AgentContact;
use crate::domain::command::Event;
use crate::error_chain::ErrorChain;
use crate::senders::stream::DeliverToSessions;
use crate::senders::{Deferred, Deliver, Delivery, DueCommand, Recorder, report_of};
use crate::store::Report;
use actix::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The wait after a sender crashed or the store was away.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// The wait of a command whose agent is disabled or removed. A removed agent's commands are closed by a reconciler.
const DISABLED_RETRY: Duration = Duration::from_secs(60);

/// The way to the sender of one transport.
#[derive(Clone)]
pub enum Route {
    /// To the sessions of agents that connect.
    Sessions(Recipient<DeliverToSessions>),
    /// To the sender for agents that don't.
    Sender(Recipient<Deliver>),
}

/// The sender of each transport.
pub type Routes = HashMap<String, Route>;

/// Commands to try again, each after a wait.
type Back = Vec<(DueCommand, Duration)>;

/// See the module.
pub struct SenderRouter {
    node: Arc<Node>,
    routes: Routes,
    recorder: Recorder,
}

impl SenderRouter {
    /// A router to these senders.
    pub fn new(node: Arc<Node>, routes: Routes, recorder: Recorder) -> Self {
        Self { node, routes, recorder }
    }
}

impl Actor for SenderRouter {
    type Context = Context<Self>;
}

impl Supervised for SenderRouter {}

impl Handler<Dispatch> for SenderRouter {
    type Result = ResponseFuture<Back>;

    fn handle(&mut self, Dispatch { transport, commands }: Dispatch, _: &mut Self::Context) -> Self::Result {
        crate::fault_point!("sender_router");
        // Nothing is delivered early. The database's clock may have been set back since the command
        // was queued.
        let now = self.node.store.now();
        let (due, early): (Vec<_>, Vec<_>) = commands.into_iter().partition(|command| command.not_before() <= now);
        let mut back: Back = early.into_iter().map(|command| (command, Duration::ZERO)).collect();
        let (node, recorder) = (self.node.clone(), self.recorder.clone());
        let route = self.routes.get(&*transport).cloned();
        Box::pin(async move {
            match route {
                _ if due.is_empty() => {}
                Some(Route::Sessions(sessions)) => {
                    let copy = due.clone();
                    if sessions.send(DeliverToSessions(due)).await.is_err() {
                        back.extend(again(copy));
                    }
                }
                Some(Route::Sender(sender)) => back.extend(deliver(&node, &recorder, &sender, due).await),
                None => {
                    log::warn!(transport = &*transport, commands = due.len(); "no sender here serves a transport");
                    let postponed = |command: &DueCommand| {
                        let event = Event::Postponed { run: command.due.run, until: command.due.due_at };
                        report_of(&command.action, command.due.agent_no, event)
                    };
                    if record(&recorder, due.iter().map(postponed).collect()).await {
                        node.signals.commands_unserved();
                    }
                }
            }
            crate::fault_point!("sender_router.answered");
            back
        })
    }
}

fn again(commands: Vec<DueCommand>) -> Back {
    commands.into_iter().map(|command| (command, RETRY_INTERVAL)).collect()
}

/// Offers commands to a sender, and answers with those that it doesn't take.
async fn deliver(node: &Node, recorder: &Recorder, sender: &Recipient<Deliver>, commands: Vec<DueCommand>) -> Back {
    let agents: Vec<i64> = commands.iter().map(|command| command.due.agent_no).collect();
    let contacts = match node.store.agent_contacts(&agents).await {
        Ok(contacts) => contacts,
        Err(error) => {
            log::warn!(error:% = error.chain(), commands = commands.len(); "due commands wait for the store");
            return again(commands);
        }
    };
    let contacts: hashbrown::HashMap<i64, Arc<AgentContact>> =
        contacts.into_iter().map(|contact| (contact.no, Arc::new(contact))).collect();
    let (mut deliveries, mut disabled) = (Vec::with_capacity(commands.len()), Vec::new());
    let until = node.store.now().plus(DISABLED_RETRY);
    for command in commands {
        match contacts.get(&command.due.agent_no) {
            Some(agent) => deliveries.push(Delivery::new(command, agent.clone())),
            None => {
                let postponed = Event::Postponed { run: command.due.run, until };
                disabled.push(report_of(&command.action, command.due.agent_no, postponed));
            }
        }
    }
    record(recorder, disabled).await;
    let copy = deliveries.clone();
    match sender.send(Deliver(deliveries)).await {
        Ok(deferred) => {
            deferred.into_iter().map(|Deferred { delivery, after }| (delivery.into_command(), after)).collect()
        }
        Err(_) => again(copy.into_iter().map(Delivery::into_command).collect()),
    }
}

/// Whether the reports are recorded. If not, their commands are found again later.
async fn record(recorder: &Recorder, reports: Vec<Report>) -> bool {
    if reports.is_empty() {
        return true;
    }
    let recorded = recorder.put(reports).await;
    if let Err(error) = &recorded {
        log::warn!(error:% = error.chain(); "commands without a sender or with a disabled agent are found again later");
    }
    recorded.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::Action;
    use crate::store::AgentPatch;
    use crate::testing::{TestNode, TestSender, delivery, me, supervision};
    use serde_json::json;
    use tokio::sync::mpsc::UnboundedReceiver;

    struct Fixture {
        node: TestNode,
        router: Addr<SenderRouter>,
        stream: UnboundedReceiver<DueCommand>,
        webhook: UnboundedReceiver<DueCommand>,
    }

    /// Serves streams, by a sender that crashes for one agent, and webhooks.
    async fn fixture(fatal: Option<i64>) -> Fixture {
        let node = TestNode::new().await;
        let ((to_stream, stream), (to_webhook, webhook)) = (TestSender::start(fatal), TestSender::start(None));
        let routes = Routes::from([
            ("stream".to_owned(), Route::Sessions(to_stream.recipient())),
            ("webhook".to_owned(), Route::Sender(to_webhook.recipient())),
        ]);
        let router = SenderRouter::new(node.node.clone(), routes, node.recorder.clone());
        let router = crate::runtime::Unstarted::default().start("sender_router", router, &supervision());
        Fixture { node, router, stream, webhook }
    }

    /// Dispatches commands of `action` to these agents by one transport; answers whose came back.
    async fn dispatch(router: &Addr<SenderRouter>, action: &Arc<Action>, transport: &str, to: &[i64]) -> Vec<i64> {
        let commands = to.iter().map(|agent| delivery(action, *agent)).collect();
        let dispatch = Dispatch { transport: Arc::from(transport), commands };
        let back = router.send(dispatch).await.expect("it is answered");
        back.into_iter().map(|(command, _)| command.due.agent_no).collect()
    }

    fn taken(deliveries: &mut UnboundedReceiver<DueCommand>) -> Vec<i64> {
        std::iter::from_fn(|| deliveries.try_recv().ok()).map(|delivery| delivery.due.agent_no).collect()
    }

    #[actix_rt::test]
    async fn commands_go_to_the_sender_of_their_transport_in_order() {
        let mut fixture = fixture(None).await;
        let agents = fixture.node.agents_of("webhook", 2).await;
        let action = fixture.node.submit(json!({})).await;
        assert!(dispatch(&fixture.router, &action, "stream", &[3, 1]).await.is_empty());
        assert!(dispatch(&fixture.router, &action, "webhook", &[agents[1], agents[0]]).await.is_empty());
        assert_eq!((taken(&mut fixture.stream), taken(&mut fixture.webhook)), (vec![3, 1], vec![agents[1], agents[0]]));
    }

    #[actix_rt::test]
    async fn what_is_early_comes_back_and_the_rest_goes_out() {
        let mut fixture = fixture(None).await;
        let (now, later) = (fixture.node.submit(json!({})).await, fixture.node.submit(json!({"delay": "1h"})).await);
        let commands = vec![delivery(&now, 1), delivery(&later, 2)];
        let dispatch = Dispatch { transport: Arc::from("stream"), commands };
        let back = fixture.router.send(dispatch).await.expect("it is answered");
        assert_eq!(back.iter().map(|(command, _)| command.due.agent_no).collect::<Vec<_>>(), [2]);
        assert_eq!(taken(&mut fixture.stream), [1]);
    }

    #[actix_rt::test]
    async fn commands_without_a_sender_are_postponed_and_other_nodes_are_told() {
        let mut fixture = fixture(None).await;
        let node = &fixture.node;
        let agents = node.agents_of("smtp", 1).await;
        let action = node.resolved(json!({}), &agents).await;
        assert!(dispatch(&fixture.router, &action, "smtp", &agents).await.is_empty());
        assert_eq!(node.store.agent_with_due(&agents, node.store.now()).await.unwrap(), agents);
        assert!(node.has_heard("peers: [Open]").await);
        assert!(taken(&mut fixture.stream).is_empty());
    }

    #[actix_rt::test]
    async fn what_a_crashed_sender_had_comes_back() {
        let mut fixture = fixture(Some(7)).await;
        let action = fixture.node.submit(json!({})).await;
        assert_eq!(dispatch(&fixture.router, &action, "stream", &[6, 7]).await, [6, 7]);
        assert!(dispatch(&fixture.router, &action, "stream", &[6, 7]).await.is_empty());
        assert_eq!(taken(&mut fixture.stream), [6, 7]);
    }

    #[actix_rt::test]
    async fn commands_of_a_disabled_agent_are_postponed() {
        let mut fixture = fixture(None).await;
        let node = &fixture.node;
        let agents = node.agents_of("webhook", 2).await;
        let action = node.resolved(json!({}), &agents).await;
        let patch = AgentPatch { disabled: Some(true), ..AgentPatch::default() };
        node.store.agent_update("agent-00000", &patch, &me()).await.unwrap();
        assert!(dispatch(&fixture.router, &action, "webhook", &agents).await.is_empty());
        assert_eq!(taken(&mut fixture.webhook), [agents[1]]);
        node.pass(DISABLED_RETRY);
        assert_eq!(node.store.agent_with_due(&agents, node.store.now()).await.unwrap(), [agents[0]]);
    }
}
