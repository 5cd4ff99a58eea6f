//! What users add to a server: senders, actors of their own, and listeners for results.
//!
//! Each runs on a thread of its own: one that blocks holds up nothing else.

use super::error::{AppError, io_error};
use super::registration::{ActorRegistration, Extensions, ListenerRegistration, Registration};
use crate::context::Node;
use crate::domain::audit::Author;
use crate::runtime::{Drain, OnOwnThread, Supervision};
use crate::senders::{Cancelled, Deliver, SenderContext};
use crate::service::{ServiceError, actions};
use crate::signals::{OutcomesRecorded, RecordedOutcome};
use crate::store::Store;
use actix::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

/// The services that an actor of a user's own works with.
#[derive(Clone)]
pub struct ActorContext {
    name: &'static str,
    node: Arc<Node>,
}

impl ActorContext {
    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.node.store
    }

    /// Submits an action document (JSON), and answers with its id once it is durable. The same
    /// `key` again is the same action.
    ///
    /// # Errors
    /// If the document isn't valid, the key belongs to another document, or the store is away.
    pub async fn submit(&self, document: &str, key: Option<String>) -> Result<Uuid, ServiceError> {
        let by = Author::server(self.name);
        Ok(actions::submit(&self.node, document.as_bytes(), key, by).await?.id)
    }
}

impl ActorRegistration {
    fn new<A>(name: &'static str, make: impl FnOnce(ActorContext) -> A + Send + 'static) -> Result<Self, AppError>
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin + Handler<Drain>,
    {
        let unstarted = thread_of::<A>(name)?;
        let drain = unstarted.address().recipient();
        let start = Box::new(move |node, supervision: &Supervision| {
            unstarted.start(name, move || make(ActorContext { name, node }), supervision);
        });
        Ok(Self { drain, start })
    }
}

/// Calls a function for every batch of recorded results.
struct OutcomeListener<F>(F);

impl<F: FnMut(&[RecordedOutcome]) + Unpin + 'static> Actor for OutcomeListener<F> {
    type Context = Context<Self>;
}

impl<F: FnMut(&[RecordedOutcome]) + Unpin + 'static> Supervised for OutcomeListener<F> {}

impl<F: FnMut(&[RecordedOutcome]) + Unpin + 'static> Handler<OutcomesRecorded> for OutcomeListener<F> {
    type Result = ();

    fn handle(&mut self, OutcomesRecorded(outcomes): OutcomesRecorded, _: &mut Self::Context) {
        (self.0)(&outcomes);
    }
}

impl ListenerRegistration {
    fn new(listen: impl FnMut(&[RecordedOutcome]) + Unpin + Send + 'static) -> Result<Self, AppError> {
        let unstarted = thread_of::<OutcomeListener<_>>("on_outcome")?;
        let listener = unstarted.address().recipient();
        let start = Box::new(move |supervision: &Supervision| {
            unstarted.start("on_outcome", move || OutcomeListener(listen), supervision);
        });
        Ok(Self { listener, start })
    }
}

fn thread_of<A>(name: &str) -> Result<OnOwnThread<A>, AppError>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin,
{
    OnOwnThread::new().map_err(io_error(format!("the thread of {name}")))
}

fn sender<A>(
    transport: &'static str,
    make: impl FnOnce(SenderContext) -> A + Send + 'static,
) -> Result<Registration, AppError>
where
    A: Actor<Context = Context<A>> + Supervised + Unpin,
    A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
{
    let unstarted = thread_of::<A>(transport)?;
    let address = unstarted.address();
    let start = move |context, supervision: &Supervision| unstarted.start(transport, || make(context), supervision);
    Ok(Registration::of(transport, &address, start))
}

/// Something made once there is an actix system.
type Later<T> = Box<dyn FnOnce() -> Result<T, AppError>>;

/// What users added, before the server starts.
#[derive(Default)]
pub(super) struct Additions {
    senders: Vec<(&'static str, Later<Registration>)>,
    actors: Vec<Later<ActorRegistration>>,
    listeners: Vec<Later<ListenerRegistration>>,
}

impl Additions {
    pub(super) fn add_sender<A>(
        &mut self,
        transport: &'static str,
        make: impl FnOnce(SenderContext) -> A + Send + 'static,
    ) where
        A: Actor<Context = Context<A>> + Supervised + Unpin,
        A: Handler<Deliver> + Handler<Cancelled> + Handler<Drain>,
    {
        self.senders.push((transport, Box::new(move || sender(transport, make))));
    }

    pub(super) fn add_actor<A>(&mut self, name: &'static str, make: impl FnOnce(ActorContext) -> A + Send + 'static)
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin + Handler<Drain>,
    {
        self.actors.push(Box::new(move || ActorRegistration::new(name, make)));
    }

    pub(super) fn add_listener(&mut self, listen: impl FnMut(&[RecordedOutcome]) + Unpin + Send + 'static) {
        self.listeners.push(Box::new(move || ListenerRegistration::new(listen)));
    }

    /// The transports of the senders.
    pub(super) fn transports(&self) -> Vec<&'static str> {
        self.senders.iter().map(|(transport, _)| *transport).collect()
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// If one can't be started.
    pub(super) fn register(self) -> Result<Extensions, AppError> {
        Ok(Extensions {
            senders: self.senders.into_iter().map(|(_, make)| make()).collect::<Result<_, _>>()?,
            actors: self.actors.into_iter().map(|make| make()).collect::<Result<_, _>>()?,
            listeners: self.listeners.into_iter().map(|make| make()).collect::<Result<_, _>>()?,
        })
    }
}
