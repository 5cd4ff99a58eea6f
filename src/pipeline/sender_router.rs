//! Passes due commands to the sender of their agents' transport.
//!
//! Receives [`Dispatch`] from the delay scheduler and sends [`Deliver`] to the senders; its answer waits for theirs, so
//! that the scheduler's credits bound what is under way. A command that is not due yet goes back to the scheduler. Commands whose transport nobody serves here get a `waiting` row,
//! and another node that serves it takes them from there.
//!
//! Dies: the chunks in hand come back to the scheduler, which tries them again.

use super::batcher::Put;
use super::messages::{Cancelled, Deliver, Delivery, Dispatch};
use super::outcomes::{OutcomeSink, Outcomes, Upstream};
use crate::domain::command::Event;
use crate::domain::hint::Hint;
use crate::store::{Report, Store};
use actix::prelude::*;
use futures_util::future::join_all;
use std::collections::HashMap;
use std::sync::Arc;

/// A sender as the router knows it.
#[derive(Clone)]
pub struct Route {
    /// Takes commands over.
    pub deliver: Recipient<Deliver>,
    /// Hears of actions that users ended, if it wants to.
    pub cancelled: Option<Recipient<Cancelled>>,
}

/// See the module.
pub struct SenderRouter {
    store: Arc<dyn Store>,
    routes: HashMap<String, Route>,
    outcomes: Addr<Outcomes>,
    upstream: Upstream,
}

impl SenderRouter {
    /// With the senders by transport.
    pub fn new(
        store: Arc<dyn Store>,
        routes: HashMap<String, Route>,
        outcomes: Addr<Outcomes>,
        upstream: Upstream,
    ) -> Self {
        Self { store, routes, outcomes, upstream }
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
        // Nothing goes out early, however it came here: the database's clock may have been set back meanwhile.
        let now = self.store.now();
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
                Some(route) => {
                    let deliver = route.deliver.clone();
                    taken_over.push(async move {
                        let copy = chunk.clone();
                        let fell = deliver.send(Deliver(chunk)).await.is_err();
                        if fell {
                            copy.into_iter().map(|delivery| (transport.clone(), delivery)).collect()
                        } else {
                            vec![]
                        }
                    });
                }
                None => {
                    log::warn!(transport = &*transport, commands = chunk.len(); "no sender here serves a transport");
                    unserved.extend(chunk.into_iter().map(hold));
                }
            }
        }
        let (outcomes, upstream) = (self.outcomes.clone(), self.upstream.clone());
        let done = async move {
            let back: Vec<_> = join_all(taken_over).await.into_iter().flatten().chain(early).collect();
            crate::fault_point!("sender_router.answered");
            if !unserved.is_empty() {
                match outcomes.send(Put::<OutcomeSink>(unserved)).await {
                    Ok(Some(_)) => upstream.tell(vec![Hint::Open]),
                    _ => log::warn!("commands without a sender are looked at again later"),
                }
            }
            back
        };
        Box::pin(done.into_actor(self))
    }
}

/// The report that a command can't be handed over now.
pub(crate) fn hold(delivery: Delivery) -> Report {
    Report {
        action_no: delivery.due.action_no,
        agent_no: delivery.due.agent_no,
        policy: delivery.action.policy,
        event: Event::Hold { due_at: delivery.due.due_at },
        fresh: false,
    }
}

impl Handler<Cancelled> for SenderRouter {
    type Result = ();

    fn handle(&mut self, cancelled: Cancelled, _: &mut Self::Context) {
        for route in self.routes.values() {
            if let Some(recipient) = &route.cancelled {
                recipient.try_send(cancelled.clone()).ok();
            }
        }
    }
}
