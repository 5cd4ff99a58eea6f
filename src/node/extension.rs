//! What users add to a server beside senders: actors of their own, and listeners for results.

use crate::context::Node;
use crate::domain::audit::Author;
use crate::runtime::{Drain, Supervision, Unstarted};
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

/// Starts an actor.
type Start = Box<dyn FnOnce(Arc<Node>, &Supervision)>;

/// An actor of a user's own before it is started.
pub(super) struct ActorRegistration {
    pub(super) drain: Recipient<Drain>,
    pub(super) start: Start,
}

impl ActorRegistration {
    pub(super) fn new<A>(name: &'static str, make: impl FnOnce(ActorContext) -> A + 'static) -> Self
    where
        A: Actor<Context = Context<A>> + Supervised + Unpin + Handler<Drain>,
    {
        let unstarted = Unstarted::default();
        let drain = unstarted.address().recipient();
        let start = Box::new(move |node, supervision: &Supervision| {
            unstarted.start(name, make(ActorContext { name, node }), supervision);
        });
        Self { drain, start }
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

/// A listener before it is started.
pub(super) struct ListenerRegistration {
    pub(super) listener: Recipient<OutcomesRecorded>,
    pub(super) start: Box<dyn FnOnce(&Supervision)>,
}

impl ListenerRegistration {
    pub(super) fn new(listen: impl FnMut(&[RecordedOutcome]) + Unpin + 'static) -> Self {
        let unstarted = Unstarted::default();
        let listener = unstarted.address().recipient();
        let start = Box::new(move |supervision: &Supervision| {
            unstarted.start("on_outcome", OutcomeListener(listen), supervision);
        });
        Self { listener, start }
    }
}
