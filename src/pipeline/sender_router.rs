//! Passes due commands to the senders of their agents' transports.
//!
//! Receives [`Dispatch`] from the delay scheduler and sends [`Deliver`] to the senders. It answers
//! after the senders have, so that the scheduler's credits bound what is in flight. Commands that
//! are not due yet go back to the scheduler. Commands of a transport without a sender here get a
//! `waiting` row, and a node that has one takes them from there.
//!
//! Crash: the scheduler gets the chunks in flight back and tries them again.

use super::messages::Dispatch;
use crate::context::Node;
use crate::error_chain::ErrorChain;
use crate::senders::{Deliver, Delivery, Recorder, hold_report};
use actix::prelude::*;
use futures_util::future::join_all;
use std::collections::HashMap;
use std::sync::Arc;

/// The sender of each transport.
pub type Routes = HashMap<String, Recipient<Deliver>>;

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
    type Result = ResponseActFuture<Self, Vec<(Arc<str>, Delivery)>>;

    fn handle(&mut self, Dispatch(deliveries): Dispatch, _: &mut Self::Context) -> Self::Result {
        crate::fault_point!("sender_router");
        let mut by_transport: Vec<(Arc<str>, Vec<Delivery>)> = Vec::new();
        // Nothing is delivered early. The database's clock may have been set back since the command
        // was queued.
        let now = self.node.store.now();
        let (due, early): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|(_, delivery)| delivery.not_before() <= now);
        for (transport, delivery) in due {
            match by_transport.iter_mut().find(|(known, _)| *known == transport) {
                Some((_, chunk)) => chunk.push(delivery),
                None => by_transport.push((transport, vec![delivery])),
            }
        }
        let mut taken_over = Vec::new();
        let mut unserved = Vec::new();
        for (transport, chunk) in by_transport {
            match self.routes.get(&*transport) {
                Some(sender) => {
                    let sender = sender.clone();
                    taken_over.push(async move {
                        let copy = chunk.clone();
                        let crashed = sender.send(Deliver(chunk)).await.is_err();
                        if crashed {
                            copy.into_iter().map(|delivery| (transport.clone(), delivery)).collect()
                        } else {
                            vec![]
                        }
                    });
                }
                None => {
                    log::warn!(transport = &*transport, commands = chunk.len(); "no sender here serves a transport");
                    unserved.extend(chunk.iter().map(hold_report));
                }
            }
        }
        let (node, recorder) = (self.node.clone(), self.recorder.clone());
        let done = async move {
            let back: Vec<_> = join_all(taken_over).await.into_iter().flatten().chain(early).collect();
            crate::fault_point!("sender_router.answered");
            if !unserved.is_empty() {
                match recorder.put(unserved).await {
                    Ok(_) => node.signals.commands_unserved(),
                    Err(error) => log::warn!(error:% = error.chain();
                        "commands without a sender are found again later"),
                }
            }
            back
        };
        Box::pin(done.into_actor(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::Action;
    use crate::testing::{TestNode, TestSender, delivery, supervision};
    use serde_json::json;
    use tokio::sync::mpsc::UnboundedReceiver;

    struct Fixture {
        node: TestNode,
        router: Addr<SenderRouter>,
        stream: UnboundedReceiver<Delivery>,
        webhook: UnboundedReceiver<Delivery>,
    }

    /// Serves streams, by a sender that crashes for one agent, and webhooks.
    async fn fixture(fatal: Option<i64>) -> Fixture {
        let node = TestNode::new().await;
        let ((to_stream, stream), (to_webhook, webhook)) = (TestSender::start(fatal), TestSender::start(None));
        let routes = Routes::from([("stream".to_owned(), to_stream), ("webhook".to_owned(), to_webhook)]);
        let router = SenderRouter::new(node.node.clone(), routes, node.recorder.clone());
        let router = crate::runtime::Unstarted::default().start("sender_router", router, &supervision());
        Fixture { node, router, stream, webhook }
    }

    /// Dispatches a command of `action` to each of these agents; answers whose came back.
    async fn dispatch(router: &Addr<SenderRouter>, action: &Arc<Action>, to: &[(&str, i64)]) -> Vec<i64> {
        let deliveries = to.iter().map(|(transport, agent)| (Arc::from(*transport), delivery(action, *agent)));
        let back = router.send(Dispatch(deliveries.collect())).await.expect("it is answered");
        back.into_iter().map(|(_, delivery)| delivery.due.agent_no).collect()
    }

    fn taken(deliveries: &mut UnboundedReceiver<Delivery>) -> Vec<i64> {
        std::iter::from_fn(|| deliveries.try_recv().ok()).map(|delivery| delivery.due.agent_no).collect()
    }

    #[actix_rt::test]
    async fn commands_go_to_the_sender_of_their_transport_in_order() {
        let mut fixture = fixture(None).await;
        let action = fixture.node.submit(json!({})).await;
        let to = [("stream", 3), ("webhook", 2), ("stream", 1), ("webhook", 4)];
        assert!(dispatch(&fixture.router, &action, &to).await.is_empty());
        assert_eq!((taken(&mut fixture.stream), taken(&mut fixture.webhook)), (vec![3, 1], vec![2, 4]));
    }

    #[actix_rt::test]
    async fn what_is_early_comes_back_and_the_rest_goes_out() {
        let mut fixture = fixture(None).await;
        let (now, later) = (fixture.node.submit(json!({})).await, fixture.node.submit(json!({"delay": "1h"})).await);
        let deliveries = [(&now, 1), (&later, 2)];
        let deliveries = deliveries.map(|(action, agent)| (Arc::from("stream"), delivery(action, agent)));
        let back = fixture.router.send(Dispatch(deliveries.into())).await.expect("it is answered");
        assert_eq!(back.iter().map(|(_, delivery)| delivery.due.agent_no).collect::<Vec<_>>(), [2]);
        assert_eq!(taken(&mut fixture.stream), [1]);
    }

    #[actix_rt::test]
    async fn commands_without_a_sender_get_a_waiting_row_and_other_nodes_are_told() {
        let mut fixture = fixture(None).await;
        let node = &fixture.node;
        let agents = [node.agents_of("smtp", 1).await, node.agents(1).await].concat();
        let action = node.resolved(json!({}), &agents).await;
        let to = [("smtp", agents[0]), ("stream", agents[1])];
        assert!(dispatch(&fixture.router, &action, &to).await.is_empty());
        assert_eq!(node.store.agent_with_due(&agents).await.unwrap(), [agents[0]]);
        assert!(node.has_heard("peers: [Open]").await);
        assert_eq!(taken(&mut fixture.stream), [agents[1]]);
    }

    #[actix_rt::test]
    async fn what_a_crashed_sender_had_comes_back_and_what_others_have_does_not() {
        let mut fixture = fixture(Some(7)).await;
        let action = fixture.node.submit(json!({})).await;
        let to = [("stream", 6), ("webhook", 1), ("stream", 7)];
        assert_eq!(dispatch(&fixture.router, &action, &to).await, [6, 7]);
        assert_eq!(taken(&mut fixture.webhook), [1]);
        assert!(dispatch(&fixture.router, &action, &to).await.is_empty());
        assert_eq!(taken(&mut fixture.stream), [6, 7]);
    }
}
