//! Senders, actors and listeners that have addresses and are not started yet.

use crate::context::Node;
use crate::runtime::{Drain, Supervision, Unstarted};
use crate::senders::{Cancelled, Deliver, SenderContext};
use crate::signals::OutcomesRecorded;
use actix::prelude::*;
use std::sync::Arc;

/// Starts a sender.
type StartSender = Box<dyn FnOnce(SenderContext, &Supervision)>;

/// A sender before it is started.
pub(super) struct Registration {
    pub(super) transport: &'static str,
    pub(super) deliver: Recipient<Deliver>,
    pub(super) cancelled: Recipient<Cancelled>,
    pub(super) drain: Recipient<Drain>,
    pub(super) start: StartSender,
}

impl Registration {
    /// A sender on the thread of the pipeline.
    pub(super) fn new<A>(transport: &'static str, make: impl FnOnce(SenderContext) -> A + 'static) -> Self
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin,
        A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    {
        let unstarted = Unstarted::default();
        Self::of(transport, &unstarted.address(), move |context, supervision| {
            unstarted.start(transport, make(context), supervision);
        })
    }

    /// A sender with this address, which `start` starts.
    pub(super) fn of<A>(
        transport: &'static str,
        address: &Addr<A>,
        start: impl FnOnce(SenderContext, &Supervision) + 'static,
    ) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    {
        Self {
            transport,
            deliver: address.clone().recipient(),
            cancelled: address.clone().recipient(),
            drain: address.clone().recipient(),
            start: Box::new(start),
        }
    }
}

/// Starts an actor.
type Start = Box<dyn FnOnce(Arc<Node>, &Supervision)>;

/// An actor of a user's own before it is started.
pub(super) struct ActorRegistration {
    pub(super) drain: Recipient<Drain>,
    pub(super) start: Start,
}

/// A listener before it is started.
pub(super) struct ListenerRegistration {
    pub(super) listener: Recipient<OutcomesRecorded>,
    pub(super) start: Box<dyn FnOnce(&Supervision)>,
}

/// The senders but the one for streams, and what users added to the server, before they are started.
pub(super) struct Extensions {
    pub(super) senders: Vec<Registration>,
    pub(super) actors: Vec<ActorRegistration>,
    pub(super) listeners: Vec<ListenerRegistration>,
}
