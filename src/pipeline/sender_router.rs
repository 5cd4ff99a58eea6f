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
